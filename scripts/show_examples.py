"""Show profiles of random sessions, with their claims marked as supported or not, on one HTML page."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
from pydantic import Field

from langptune.config.base import Strict
from langptune.data import contracts
from langptune.files import whole
from langptune.interpretability.inputs import drawn
from langptune.provenance import Record
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project

STYLE = """:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:1.5rem auto;max-width:72rem;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.4rem}section{border-top:1px solid #bbb;padding:1rem 0}h2{font-size:1.05rem;margin:.2rem 0}
.all{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr));gap:.9rem;margin-top:.7rem}
.one{background:#f5f4f1;padding:.7rem .9rem;border-radius:4px}.one h3{font-size:.9rem;margin:0 0 .3rem}
.facts{color:#4a4a4a;font-size:.875rem}ul{margin:.3rem 0;padding-left:1.2rem}p{margin:.3rem 0;overflow-wrap:anywhere}
.claims{list-style:none;padding:0;font-size:.875rem}.claims li{padding:.1rem 0;overflow-wrap:anywhere}
.yes::before{content:"\\2713  ";color:#00613f;font-weight:700}
.no::before{content:"\\2717  ";color:#a1260d;font-weight:700}"""


class Column(Strict):
    """The files of one method."""

    title: str
    ranks: str
    measures: str
    claims: str
    simulation: str


class Spec(StageSpec):
    """Measures of all methods in, one page out."""

    title: str
    columns: Annotated[list[Column], Field(min_length=1)]
    items_in: str
    sessions_in: str
    evaluation_in: str
    history_items: int = Field(description="most recent items shown")
    candidates: int
    measured: int = Field(description="sessions that were measured")
    examples: int = Field(description="of them, how many are shown")
    seed: int
    page_out: str


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow.comparison import example_columns

    how = project.config.interpretability
    return {
        "title": f"Examples: {project.datasets[job.dataset].title}",
        "columns": example_columns(project, job.dataset),
        "history_items": max(project.source(name).history_items for name in project.workflow.readable),
        "candidates": how.candidates,
        "measured": how.sessions,
        "examples": how.examples,
        "seed": how.seed,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=10)


def show(spec: Spec, record: Record, log: Log) -> None:
    """Draw from the measured sessions, and show the methods side by side; every text is escaped."""
    titles = contracts.read(spec.items_in, "items")["title"].to_list()
    evaluation = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == "test")
    measured = drawn(evaluation["session"].to_list(), spec.measured, spec.seed)
    chosen = drawn(measured, spec.examples, spec.seed + 1)
    sessions = {
        row["session"]: row
        for row in contracts.read(spec.sessions_in, "sessions").filter(pl.col("session").is_in(chosen)).to_dicts()
    }
    tables = [_rows(column, chosen) for column in spec.columns]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(spec.title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(spec.title)}</h1>"
        f"<p>{len(chosen)} of the {len(measured)} measured test sessions, drawn at random (seed {spec.seed + 1}), not "
        "picked. Each claim of a profile is marked: supported by the history that the encoder saw, or not. "
        f"Rank: of the true next item among {len(titles):,}; 1 is best. Simulation: its place among {spec.candidates} "
        "items for a reader of the profile alone.</p>"
    ]
    for session in chosen:
        row = sessions[session]
        recent = list(zip(row["history"], row["ratings"], strict=True))[-spec.history_items :]
        shown = "".join(
            f"<li>{html.escape(titles[item])} <span class=facts>{rated:g}</span></li>" for item, rated in recent
        )
        parts.append(
            f"<section><h2>User {html.escape(row['user_id'])}</h2><p class=facts>Most recent items and ratings, the "
            f"newest last; next was <b>{html.escape(titles[row['target']])}</b></p><ul>{shown}</ul><div class=all>"
        )
        parts += [
            _one(column, own[session], len(titles), spec.candidates)
            for column, own in zip(spec.columns, tables, strict=True)
        ]
        parts.append("</div></section>")
    parts.append("</body></html>")
    with whole(spec.page_out) as part:
        part.write_text("".join(parts), encoding="utf-8")
    record.note(sessions=chosen)
    log(f"{len(chosen)} sessions, {len(spec.columns)} methods")


def _rows(column: Column, chosen: list[int]) -> dict[int, dict[str, Any]]:
    """Session -> measures, rank, place and claims of one method."""
    claim = pl.struct("kind", "value", "liked", "supported")
    claims = contracts.read_parquet(column.claims).group_by("session", maintain_order=True).agg(claim.alias("checked"))
    table = (
        contracts.read_parquet(column.measures)
        .join(contracts.read(column.ranks, "ranks").select("session", "rank"), on="session")
        .join(contracts.read_parquet(column.simulation), on="session")
        .join(claims, on="session", how="left")
    )
    return {row["session"]: row for row in table.filter(pl.col("session").is_in(chosen)).to_dicts()}


def _one(column: Column, row: dict[str, Any], items: int, candidates: int) -> str:
    lines = "".join(
        f"<li class={'yes' if claim['supported'] else 'no'}><span>{html.escape(_label(claim))}</span>"
        f" <span class=facts>{claim['kind']}, {'supported' if claim['supported'] else 'not supported'}</span></li>"
        for claim in row["checked"] or []
    )
    text = html.escape(row["profile"]) or "(empty)"
    return (
        f"<div class=one><h3>{html.escape(column.title)}</h3><p>{text}</p>"
        f"<ul class=claims>{lines or '<li>no claims</li>'}</ul>"
        f"<p class=facts>rank {row['rank']:,} of {items:,} · simulation {row['place']} of {candidates}</p></div>"
    )


def _label(claim: dict[str, Any]) -> str:
    return claim["value"] if claim["liked"] else f"not: {claim['value']}"


if __name__ == "__main__":
    run(Spec, show, __file__)
