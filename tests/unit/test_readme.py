"""The README does not lie: its numbers are those of the reference results, its links lead somewhere."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_table_is_the_reference_table():
    reference = ROOT / "results/reference/ml-100k-demo/table_long.csv"
    rows = {(row["title"], row["metric"]): row for row in csv.DictReader(reference.open(encoding="utf-8"))}
    shown = re.findall(
        r"^\| ([^|]+) \| ([\d.]+ \[[^]]+\]) \| ([\d.]+ \[[^]]+\]) \| ([\d.]+ \[[^]]+\]) \|$", README, re.M
    )
    assert {title for title, *_ in shown} == {title for title, _ in rows}
    for title, *cells in shown:
        for metric, cell in zip(("ndcg@10", "recall@10", "mrr"), cells, strict=True):
            row = rows[title, metric]
            assert cell == f"{float(row['mean']):.4f} [{float(row['low']):.4f}, {float(row['high']):.4f}]", title


def test_reference_results_are_traceable_and_name_no_machine_path():
    for folder in (p for p in (ROOT / "results" / "reference").iterdir() if p.is_dir()):
        told = json.loads((folder / "table.csv.manifest.json").read_text())
        assert told["git"]["commit"] and told["code"] and told["lock"]
        for file in folder.glob("*.json"):
            assert not re.search(r'"/(tmp|work|root|home)/', file.read_text()), file


def test_adding_things_needs_no_tests():
    """The environment of the demo has the library alone; what docs/extend.md names is there."""
    page = (ROOT / "docs" / "extend.md").read_text()
    assert "tests/" not in page
    for module in re.findall(r"python -m (langptune[\w.]*)", page):
        file = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        assert not re.search(r"^(from|import) (tests|pytest)\b", file.read_text(), re.M), file
    for file in re.findall(r"`((?:src|scripts|workflow|config)/[\w./-]+\.\w+)`", page):
        assert (ROOT / file).is_file(), file


def test_links_and_commands_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert "@@" not in README
