"""Print the tables of a config's run, or update its HTML report; `make` calls this after a run."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from langptune import processes
from langptune.cli import finish
from langptune.config.base import read_yaml
from langptune.config.load import load
from langptune.config.workflow import Workflow
from langptune.errors import UserError, printable
from langptune.files import whole_file
from langptune.provenance import ROOT
from langptune.reading import read_plain
from langptune.survey.runs import surveyed

TABLES = {
    "tables": "comparison",
    "interpretability": "interpretability",
    "memorisation": "memorisation",
    "partial": "partial",
}
"""Value of the argument -> the folder of a dataset with its table.md."""


def tables(workflow: Workflow, folder: str) -> list[str]:
    """The tables of all datasets of a config, as Markdown.

    Raises:
        UserError: one of them does not exist.
    """
    out = []
    for dataset in workflow.config.datasets:
        file = ROOT / workflow.config.results / dataset / folder / "table.md"
        try:
            out.append(printable(read_plain(file).decode(errors="replace"), "\n\t"))
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; run the config first") from None
    return out


def stale(workflow: Workflow) -> bool:
    """Whether a table or figure is newer than the report, or there is no report."""
    results = ROOT / workflow.config.results
    report = results / "report.html"
    shown = [
        file
        for dataset in workflow.config.datasets
        for folder in ("comparison", "interpretability")
        for file in (results / dataset / folder).glob("*")
    ]
    return not report.is_file() or any(file.stat().st_mtime > report.stat().st_mtime for file in shown)


def report(workflow: Workflow, config: Path) -> int:
    """Make the HTML report if it is out of date, and return the exit status of Snakemake."""
    if not stale(workflow):
        return 0
    results = workflow.config.results
    interpreted = any(
        (ROOT / results / dataset / "interpretability" / "table.html").is_file() for dataset in workflow.config.datasets
    )
    command = processes.python("-m", "snakemake", "--nolock", "--configfile", config.resolve(), "--cores", "1")
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        # A temporary file, because Snakemake would write through a symbolic link. It requires the suffix.
        made = Path(folder) / "report.html"
        command += ["--quiet", "all", "--report", str(made), "--", "all"]
        status = processes.run(command + ["interpretability"] * interpreted, cwd=ROOT).returncode
        if made.is_file():
            whole_file(made, ROOT / results / "report.html")
    return status


def main() -> int:
    """Print it; exit status 2 after one line on an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*TABLES, "surveys", "report"])
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "config.yaml")
    args = parser.parse_args()
    workflow = load(read_yaml(args.config), ROOT, str(args.config))
    results = workflow.config.results
    if args.what == "report":
        return report(workflow, args.config)
    if args.what == "surveys":
        print("\n".join(f"{results}/{run.folder}/survey/questionnaire.html" for run in surveyed(workflow)))
        return 0
    print("\n".join(tables(workflow, TABLES[args.what])), end="")
    if args.what in ("tables", "interpretability"):
        more = ", figures and examples" if args.what == "interpretability" else " and figures"
        folder = f"{results}/*/{TABLES[args.what]}/"
        print(f"\ntables{more}: {folder}   report: {results}/report.html")
    return 0


if __name__ == "__main__":
    finish(main)
