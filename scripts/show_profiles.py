"""Show profiles of the same users before and after training, side by side, on one HTML page."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Annotated

import numpy as np
import polars as pl
from pydantic import Field

from langptune.config.base import Strict
from langptune.data import contracts
from langptune.files import whole
from langptune.provenance import Record
from langptune.randomness import numbered
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a}
section{border-top:1px solid #ccc;padding:.8rem 0}h2{font-size:1rem;margin:.2rem 0}
.all{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:.8rem}
.one{background:#f4f4f2;padding:.6rem .8rem;border-radius:4px}.one h3{font-size:.85rem;margin:0 0 .3rem}
.facts{color:#555;font-size:.85rem}ul{margin:.2rem 0;padding-left:1.2rem}p{margin:.2rem 0;overflow-wrap:anywhere}"""


class Column(Strict):
    """The profiles and ranks of one method."""

    title: str
    profiles: str = Field(description="profiles.parquet")
    ranks: str = Field(description="ranks.parquet")


class ShowSpec(StageSpec):
    """Profiles of all methods in, one page out."""

    title: str
    columns: Annotated[list[Column], Field(min_length=1)]
    items_in: str
    sessions_in: str
    evaluation_in: str
    sessions: int = Field(12, description="how many, drawn at random")
    history_items: int = Field(5, description="most recent items shown")
    seed: int = 0
    page_out: str


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    from langptune.workflow.comparison import profile_columns

    title = f"Profiles before and after training: {project.datasets[job.dataset].title}"
    return {"title": title, "columns": profile_columns(project, job.dataset)}


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=10)


def show(spec: ShowSpec, record: Record, log: Log) -> None:
    """Draw sessions, and show the profiles of each method side by side; every text is escaped."""
    titles = contracts.read(spec.items_in, "items")["title"].to_list()
    ids = contracts.read(spec.evaluation_in, "evaluation")["session"].to_numpy()
    chosen = np.sort(numbered(spec.seed).choice(ids, min(spec.sessions, len(ids)), replace=False))
    sessions = {
        row["session"]: row
        for row in contracts.read(spec.sessions_in, "sessions").filter(pl.col("session").is_in(chosen)).to_dicts()
    }
    tables = []
    for column in spec.columns:
        profiles = contracts.read(column.profiles, "profiles").filter(pl.col("sample") == 0)
        ranks = contracts.read(column.ranks, "ranks").select("session", "rank")
        tables.append({row["session"]: row for row in profiles.join(ranks, on="session").to_dicts()})
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(spec.title)}</title><style>{STYLE}</style><h1>{html.escape(spec.title)}</h1>"
        f"<p>{len(chosen)} test sessions drawn at random (seed {spec.seed}), not picked. Rank: of the true next item "
        f"among {len(titles):,}; 1 is best.</p>"
    ]
    for session in chosen.tolist():
        row = sessions[session]
        shown = "".join(f"<li>{html.escape(titles[item])}</li>" for item in row["history"][-spec.history_items :])
        parts.append(
            f"<section><h2>User {html.escape(row['user_id'])}</h2><p class=facts>Most recent items, the newest last; "
            f"next was <b>{html.escape(titles[row['target']])}</b></p><ul>{shown}</ul><div class=all>"
        )
        for column, rows in zip(spec.columns, tables, strict=True):
            profile = rows[session]
            state = "ended" if profile["finished"] else "cut at the limit"
            text = html.escape(profile["profile"]) or "(empty)"
            parts.append(
                f"<div class=one><h3>{html.escape(column.title)}</h3><p>{text}</p>"
                f"<p class=facts>rank {profile['rank']:,} · {profile['tokens']} tokens, {state}</p></div>"
            )
        parts.append("</div></section>")
    with whole(spec.page_out) as part:
        part.write_text("".join(parts), encoding="utf-8")
    record.note(sessions=chosen.tolist())
    log(f"{len(chosen)} sessions, {len(spec.columns)} methods")


if __name__ == "__main__":
    run(ShowSpec, show, __file__)
