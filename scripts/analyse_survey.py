"""Analyse the responses to a survey: preferences, claims, agreement, exclusions, and the size of a next study."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from langptune.files import whole
from langptune.provenance import Record, write_json
from langptune.stage import Log, StageSpec, run
from langptune.survey.analysis import analyse
from langptune.survey.report import report, table
from langptune.survey.responses import read_responses
from langptune.survey.schema import load_codebook


class AnalyseSpec(StageSpec):
    """A codebook and a folder of response files in, numbers out. In short: --survey FOLDER --responses FOLDER"""

    codebook_in: str
    responses_in: str = Field(description="folder of respondents' files; every *.json in it is used or excluded")
    seconds_per_question: Annotated[float, Field(ge=0)] = Field(5.0, description="faster than this is excluded")
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="resamples")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    power: Annotated[float, Field(gt=0, lt=1)] = Field(0.8, description="that a next study should have")
    seed: Annotated[int, Field(ge=0)] = 0
    analysis_out: str
    report_out: str
    table_out: str


def work(spec: AnalyseSpec, record: Record, log: Log) -> None:
    """Read, exclude, analyse, and write three files."""
    codebook = load_codebook(spec.codebook_in)
    used, excluded = read_responses(spec.responses_in, codebook, spec.seconds_per_question)
    analysis = analyse(codebook, used, excluded, spec.bootstrap, spec.confidence, spec.seed, spec.power)
    analysis["seconds_per_question"] = spec.seconds_per_question
    write_json(spec.analysis_out, analysis)
    with whole(spec.report_out) as part:
        part.write_text(report(analysis, spec.seconds_per_question), encoding="utf-8")
    with whole(spec.table_out) as part:
        part.write_text(table(analysis), encoding="utf-8")
    record.note(survey=codebook.survey, respondents=len(used), excluded=analysis["excluded"])
    for reason, count in analysis["excluded"].items():
        if count:
            log(f"excluded, {reason}: {count}")
    log(
        f"{len(used)} of {analysis['files']} responses used"
        + ("" if used else ": no valid response, nothing to analyse")
    )
    log(f"results: {spec.report_out}")


def short(arguments: list[str]) -> list[str]:
    """``--survey FOLDER --responses FOLDER [--out FOLDER]`` as ``--spec``; other arguments unchanged."""
    if not any(word.split("=")[0] in ("--survey", "--responses", "--out") for word in arguments):
        return arguments
    parser = argparse.ArgumentParser(prog="analyse_survey.py", description=AnalyseSpec.__doc__)
    parser.add_argument("--survey", type=Path, required=True, help="folder with codebook.json")
    parser.add_argument(
        "--responses", type=Path, default=None, help="folder of response files (default: SURVEY/responses)"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for analysis.* (default: the survey's)")
    args = parser.parse_args(arguments)
    out = args.out or args.survey
    spec = {
        "codebook_in": args.survey / "codebook.json",
        "responses_in": args.responses or args.survey / "responses",
        "analysis_out": out / "analysis.json",
        "report_out": out / "analysis.md",
        "table_out": out / "analysis.csv",
    }
    return ["--spec", json.dumps({key: str(path) for key, path in spec.items()})]


if __name__ == "__main__":
    sys.argv[1:] = short(sys.argv[1:])
    run(AnalyseSpec, work, __file__)
