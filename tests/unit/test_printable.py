"""Untrusted text in what a person reads: terminal, log, error."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import unicodedata

import pytest

from langptune import plan
from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.errors import UserError, printable
from langptune.stage import Log
from tests.conftest import ROOT

HOSTILE = "id\x1b]0;owned\x07\x1b[2J\x9b1m\r\u202eexe\u2066\ufeff\x7f\ud800\u2028\U000e0041"


def test_printable_text_stays_and_the_rest_is_escaped():
    for text in ("", "Les Misérables (1995)", "日本語 👩\u200d👧 می\u200cخواهم", "a\xa0b", "e\u0301", r"\\x1b"):
        assert printable(text) == text
    shown = printable(HOSTILE)
    assert shown.isascii() and shown.startswith(
        r"id\x1b]0;owned\x07\x1b[2J\x9b1m\r\u202eexe\u2066\ufeff\x7f\ud800\u2028"
    )
    assert printable("a\nb\tc\x1b", "\n\t") == "a\nb\tc\\x1b"
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp"):
            assert printable(chr(code)).isascii(), hex(code)


def test_an_error_is_one_line_that_prints():
    message = str(UserError(f"file: id {HOSTILE}\nsecond line"))
    assert message.isprintable() and message.endswith("second line") and r"\x1b" in message


def test_a_log_and_the_terminal_print(tmp_path, capsys):
    log = Log(tmp_path / "log")
    log(f"left out {HOSTILE}")
    log(f"a stack trace\n  of two lines {HOSTILE}", quiet=True)
    for text in (capsys.readouterr().err, (tmp_path / "log").read_text()):
        assert "left out" in text and printable(text, "\n") == text


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "\u202e", "\x9b31m"])
def test_a_script_that_quotes_its_input_prints(tmp_path, text):
    """The spec of a real script contains escape sequences as a key and as a path."""
    for spec in ({text: 1}, {"items_in": text}):
        command = [sys.executable, str(ROOT / "scripts/describe_data.py"), "--spec", json.dumps(spec)]
        done = subprocess.run([*command, "--log", str(tmp_path / "log")], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        for written in (done.stderr, (tmp_path / "log").read_text()):
            assert printable(written, "\n") == written


def test_a_table_of_another_user_is_printable(tmp_path, monkeypatch, capsys):
    """``make demo`` prints the table in the terminal; anyone with write access to the results may have written it."""
    spec = importlib.util.spec_from_file_location("show", ROOT / "scripts" / "show.py")
    show = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(show)
    monkeypatch.setattr(show, "ROOT", tmp_path)
    workflow = load(read_yaml(ROOT / "config/smoke.yaml"), ROOT, "smoke.yaml")
    table = tmp_path / workflow.config.results / workflow.config.datasets[0] / "comparison/table.md"
    table.parent.mkdir(parents=True)
    table.write_bytes(f"| {HOSTILE} |\n".encode(errors="surrogatepass") + b"\xff\n")
    (text,) = show.tables(workflow, "comparison")
    assert r"\x1b]0;owned" in text and printable(text, "\n") == text and text.count("\n") == 2
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(UserError, match="run the config first"):
        show.tables(workflow, "comparison")


def test_a_plan_of_others_manifests_prints():
    line = plan.Line("rule", "d", HOSTILE, 1, "jobs", 1.0, "cpu", None, 1.0, 0, HOSTILE)
    assert printable(plan.table([line]), "\n") == plan.table([line])
