"""Compare all runs on a dataset: tables with intervals, paired tests against the reference, contrasts, gains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
from pydantic import Field

from langptune import metrics
from langptune.comparison import grid, pages, statistics, tables
from langptune.comparison.grid import ContrastEntry, PublishedValue, RunEntry
from langptune.data import contracts
from langptune.files import whole
from langptune.provenance import Record, file_hash
from langptune.stage import Log, StageSpec, run
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class CompareSpec(StageSpec):
    """One comparison. The runs' files are no declared inputs, because some may be missing in a partial comparison."""

    dataset: str = Field(description="registry name")
    title: str = Field(description="the dataset's title")
    facts: list[str] = Field([], description="sentences above the table: protocol, sample, what a reader must know")
    runs: Annotated[list[RunEntry], Field(min_length=1)] = Field(
        description="method, models, seed, title, group, note, trials, metrics_path; in config order"
    )
    allow_missing: bool = Field(False, description="compare what there is and mark the rest, instead of failing")
    sessions_in: str | None = Field(None, description="sessions.parquet, to say how many of all were compared")
    published: list[PublishedValue] = Field([], description="method, models, metric, value: numbers beside our rows")
    reference: str = Field(description="method that the others are tested against, each of the same models")
    contrasts: list[ContrastEntry] = Field([], description="name, title, of, against: pairs that are tested, too")
    metrics: list[str] = Field(list(metrics.DEFAULT), description="columns of the table")
    main_metric: str = Field("ndcg@10", description="sorts the table; its p-values are shown")
    bootstrap: Annotated[int, Field(ge=100)] = Field(2000, description="resamples of sessions and seeds")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="of the intervals")
    seed: int = Field(0, description="of the resamples and sign flips")
    table_csv_out: str = Field(description="wide table, full precision")
    table_long_out: str = Field(description="long table (CSV), full precision")
    table_md_out: str = Field(description="Markdown table")
    table_html_out: str = Field(description="the Markdown table as a page")
    table_tex_out: str = Field(description="LaTeX table (booktabs)")
    comparisons_out: str = Field(description="tests and effect sizes (CSV)")
    contrasts_out: str = Field(description="tests and effect sizes of the contrasts (CSV)")
    gains_out: str = Field(description="per-session values, differences and rank gains (Parquet)")


def spec(project: Project, job: Job, **variant: object) -> dict[str, object]:
    """Settings of a job; ``variant``: fields that override them."""
    from langptune.workflow.comparison import run_entry

    how, numbers = project.config.comparison, project.workflow.published_of(job.dataset)
    return {
        "dataset": job.dataset,
        "title": project.datasets[job.dataset].title,
        "facts": _facts(project, job.dataset),
        "runs": [run_entry(project, run) for run in project.runs(job.dataset)],
        "published": [
            {"method": method, "models": models, "metric": metric, "value": number.value}
            for (method, models, metric), number in numbers.items()
        ],
        "reference": project.workflow.reference,
        "contrasts": [
            {"name": name, **contrast.model_dump()}
            for name, contrast in project.workflow.contrasts_of(job.dataset).items()
        ],
        "metrics": how.metrics,
        "main_metric": how.main_metric,
        "bootstrap": how.bootstrap,
        "confidence": how.confidence,
        "seed": how.seed,
        **variant,
    }


def _facts(project: Project, dataset: str) -> list[str]:
    """The sentences above a table on the comparison and its protocol."""
    config = project.config
    return [
        f"Protocol {project.datasets[dataset].protocol.name}; full-catalogue ranking, items that the user has already "
        f"seen left out; test sessions drawn with seed {config.sample.seed} where not all are compared.",
        f"Selected on validation: hyperparameters with seed {config.seeds[0]}, epochs with each run's own seed.",
        *_training_facts(project, dataset),
        *_published_facts(project, dataset),
        *_contrast_facts(project, dataset),
    ]


def _training_facts(project: Project, dataset: str) -> list[str]:
    """The training data of trained methods; empty where a comparison has none."""
    from langptune.workflow.comparison import trained_recipes

    recipes, sizes = trained_recipes(project, dataset), project.config.sample
    if not recipes:
        return []
    train, val = (f"{size} sampled" if size else "all" for size in (sizes.train, sizes.val))
    titles: dict[str, list[str]] = {}
    for recipe in recipes:
        texts = getattr(recipe, "texts", None)
        if texts == "mixed" and recipe.sessions == "all" and train != "all":
            titles.setdefault(f"all (histories) and {train} (profiles)", []).append(recipe.title)
        else:
            titles.setdefault("all" if recipe.sessions == "all" else train, []).append(recipe.title)
    listed = "; ".join(f"{sessions} for {', '.join(dict.fromkeys(names))}" for sessions, names in titles.items())
    return [
        f"Train sessions that phases draw from: {listed}. They select by NDCG on {val} validation sessions. "
        "Baselines see all sessions of both."
    ]


def _published_facts(project: Project, dataset: str) -> list[str]:
    """The sources of published numbers, where the config includes them."""
    file, numbers = project.config.comparison.published, project.workflow.published_of(dataset).values()
    if file is None:
        return []
    if not numbers:
        return [f"{file} has no number for this dataset and these methods, models and metrics."]
    sources = "; ".join(sorted({f"{number.source} ({number.protocol})" for number in numbers}))
    return [f"Published: {sources}. On {next(iter(numbers)).dataset} as it was prepared and drawn there."]


def _contrast_facts(project: Project, dataset: str) -> list[str]:
    """The contrasts of the config that this dataset cannot have; empty where it has all."""
    here = project.workflow.contrasts_of(dataset)
    absent = [name for name in project.config.comparison.contrasts if name not in here]
    if not absent:
        return []
    return [
        f"Contrasts left out, because one of their methods has its encoder from this dataset and so no run on it: "
        f"{', '.join(absent)}."
    ]


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=1000, minutes=30, per_sessions=5)


def compare(spec: CompareSpec, record: Record, log: Log) -> None:
    """Collect the runs, compute the comparison, write it in every format.

    Raises:
        UserError: a run is missing (unless ``allow_missing``), runs have different sessions, or the reference or a
            method of a contrast is unknown.
    """
    collected = grid.collect(spec.runs, spec.metrics, spec.allow_missing)
    comparison = statistics.compare(
        collected,
        spec.reference,
        spec.main_metric,
        spec.bootstrap,
        spec.confidence,
        spec.seed,
        spec.published,
        spec.contrasts,
    )
    facts = spec.facts
    if spec.sessions_in is not None:
        sessions = contracts.read(spec.sessions_in, "sessions", ["session", "split", "user_id"])
        there = (sessions["split"] == "test").sum()
        facts = [*facts, f"Compared on {len(collected.sessions)} of {there} test sessions."]
        chosen = sessions.filter(pl.col("session").is_in(pl.Series(collected.sessions).implode()))
        if (users := chosen["user_id"].n_unique()) < len(chosen):
            facts.append(
                f"The {len(chosen)} sessions are those of {users} users. Intervals and tests treat them as "
                "independent, so they are too narrow."
            )
    page = pages.to_markdown(comparison, spec.title, facts)
    for path, text in (
        (spec.table_csv_out, tables.wide_csv(comparison)),
        (spec.table_long_out, tables.long_csv(comparison)),
        (spec.table_md_out, page),
        (spec.table_html_out, pages.to_html(page, spec.title)),
        (spec.table_tex_out, pages.to_latex(comparison, spec.title, facts, spec.dataset)),
        (spec.comparisons_out, tables.comparisons_csv(comparison)),
        (spec.contrasts_out, tables.contrasts_csv(comparison)),
    ):
        with whole(path) as part:
            part.write_text(text, encoding="utf-8")
    contracts.write_parquet(statistics.gains(comparison), spec.gains_out)

    against = ", ".join(row.key for row in comparison.references)
    missing = [entry.metrics_path for entry in spec.runs if not Path(entry.metrics_path).exists()]
    record.note(
        sessions=len(collected.sessions),
        reference=against,
        missing=missing,
        runs={e.metrics_path: file_hash(e.metrics_path) for e in spec.runs if e.metrics_path not in missing},
    )
    log(
        f"{spec.dataset}: {len(spec.runs) - len(missing)} of {len(spec.runs)} runs compared on "
        f"{len(collected.sessions)} sessions against {against}; {len(comparison.contrasts)} contrasts"
    )


if __name__ == "__main__":
    run(CompareSpec, compare, __file__)
