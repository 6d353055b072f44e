"""`make doctor` names what is missing before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys

import yaml

from tests.conftest import ROOT

CONFIG = {
    "datasets": ["ml-100k-small"],
    "encoders": ["gpt-4.1-mini"],
    "decoders": ["minilm-l6"],
    "methods": ["langptune-0", "pop"],
    "interpretability": {"reader": "smollm2-135m", "judges": ["gpt-4.1-mini", "smollm2-fits"]},
}


def test_a_key_that_is_not_set_is_named_once(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "scripts/doctor.py", "--config", str(tmp_path / "config.yaml")]
    output = {}
    for key in ("", "secret-of-a-test"):
        env = os.environ | {"OPENAI_API_KEY": key}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        output[key] = done.stdout + done.stderr
        assert "secret-of-a-test" not in output[key]
    assert output[""].count("`export OPENAI_API_KEY=...`") == 1
    assert "OPENAI_API_KEY" not in output["secret-of-a-test"] and "config" in output["secret-of-a-test"]
