"""A new figure of a comparison is one new file: the workflow, the script and the report find it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from langptune import provenance
from langptune.figures import comparison
from tests.conftest import ROOT, copy_of_repo, jobs_of, snakemake

pytestmark = pytest.mark.workflow


def test_one_new_file_is_a_figure_of_every_comparison(tmp_path):
    """The file is copied from docs/extend.md."""
    page = (ROOT / "docs/extend.md").read_text()
    figure = re.search(r"\*\*A figure of the comparison\*\*.*?```python\n(.*?)```", page, re.S)[1]
    repo = copy_of_repo(tmp_path / "repo", tmp_path / "nothing")
    (repo / "src/langptune/figures/comparison/counts.py").write_text(figure)
    done = snakemake("--configfile", "config/smoke.yaml", "-n", "--", "figures", cwd=repo)
    assert done.returncode == 0, done.stdout[-3000:]
    before = comparison.drawn({"contrasts": True, "published": False})
    assert "counts" not in before and jobs_of(done.stdout)["plot"] == len(before) + 1
    assert "results/smoke/ml-100k-small/comparison/counts.png" in done.stdout

    run = {"method": "pop", "models": "pop", "seed": 0, "title": "Pop", "group": "baselines", "metrics_path": "absent"}
    spec = {
        "runs": [run],
        "reference": "pop",
        "figures_out": [str(tmp_path / f"counts.{end}") for end in ("png", "pdf")],
    }
    command = [sys.executable, "scripts/plot.py", "--spec", json.dumps(spec)]
    environment = {**os.environ, "PYTHONPATH": str(repo / "src"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "counts.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((tmp_path / "counts.png.manifest.json").read_text())
    plain = provenance.code_hash(ROOT / "scripts" / "plot.py")
    assert manifest["code"] != plain, "the hash of the code must include the figure's own file"


def test_the_workflow_lists_figures_without_drawing_any():
    """Parsing imports the registry, but not matplotlib."""
    code = "import sys; from langptune.figures import comparison as c; c.drawn({'contrasts': 1, 'published': 1}); "
    code += "sys.exit('matplotlib' in sys.modules or 'polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
