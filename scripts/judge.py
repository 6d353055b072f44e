"""Compare the profiles of a method with those of a reference, by a language model as judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
from pydantic import Field

from langptune import stage
from langptune.config.judges import Judge
from langptune.config.models import EncoderEntry
from langptune.data import contracts
from langptune.data.sample import pick
from langptune.errors import UserError
from langptune.profiles.shuffle import deal
from langptune.provenance import Record
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project


class Spec(stage.StageSpec):
    """Two files of profiles in, the judge's verdicts on pairs of them out: both orders of each session.

    Every answer is kept in `cache` at once; the same question is never asked, or paid for, again.
    """

    judge: str = Field(description="name of the judge in judges.yaml")
    judge_entry: Judge = Field(description="its entry")
    model: EncoderEntry = Field(description="registry entry of its model")
    model_in: str = Field(description="the model's materialised folder")
    method: str = Field(description="title of the method that is judged; the judge does not see it")
    profiles_in: str = Field(description="its profiles.parquet")
    shuffle: int | None = Field(None, description="deal each session the profile of another user, by this seed")
    reference: str = Field(description="title of the reference; the judge does not see it")
    reference_in: str = Field(description="its profiles.parquet")
    items_in: str
    sessions_in: str
    evaluation_in: str
    sessions: Annotated[int, Field(ge=1)] = Field(20, description="test sessions, drawn at random")
    seed: int = Field(0, description="of that draw, and of the judge's requests")
    max_usd: float = Field(1.0, description="most that this job may cost, in US dollars", strict=False)
    threads: int = Field(2, description="CPU threads of a local model")
    dtype: str = Field("auto", description="of a local model; auto: the fastest that the hardware supports")
    cache: str = Field(description="folder of answers")
    verdicts_out: str

    def secrets(self) -> tuple[str, ...]:
        """The key of an endpoint."""
        return (self.model.source.key,) if self.model.source.key else ()

    def needs_gpu(self) -> bool:
        """True for a local model, which a server of this job runs."""
        return self.model.source.endpoint is None


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    how, name = project.config.interpretability, job.wildcards["judge"]
    return {
        "judge": name,
        "judge_entry": project.judges[name].model_copy(update={"title": ""}),
        "model": project.used(project.judges[name].model),
        "method": project.methods[job.method].title,
        "shuffle": job.shuffle,
        "reference": project.methods[how.reference].title,
        "sessions": how.judge_sessions,
        "seed": how.seed,
        "max_usd": how.judge_max_usd,
        "threads": project.config.generation.threads,
        "dtype": project.config.generation.dtype,
        "cache": project.answers,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    name = project.judges[job.wildcards["judge"]].model
    return Needs(
        # One server per job. While it loads the model, it needs twice the model's memory in float32.
        memory=3000,
        minutes=30,
        # Only a local model needs more than one thread.
        threads=1 if project.is_remote(name) else project.config.generation.threads,
        gpus=1,
        model=project.models[name],
        per_million=8,
        per_billion=100,
    )


def work(spec: Spec, record: Record, log: stage.Log) -> None:
    """Draw sessions, build both orders of each pair, ask, read the verdicts."""
    stage.set_threads(spec.threads)
    from langptune.endpoint.client import paced
    from langptune.judge import ask, prompt

    tests = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == "test")["session"]
    chosen = pick(tests.sort().to_numpy(), spec.sessions, spec.seed).tolist()
    table = contracts.read(spec.sessions_in, "sessions")
    sessions = table.filter(pl.col("session").is_in(chosen)).sort("session")
    users = dict(table.select("session", "user_id").iter_rows())
    sides = [
        _profiles(spec.profiles_in, chosen, users, spec.shuffle),
        _profiles(spec.reference_in, chosen, users, None),
    ]
    items = contracts.read(spec.items_in, "items")
    pairs = ask.pairs(*sides, sessions, items, spec.judge_entry.history_items)
    cut = [prompt.cut(pair, spec.judge_entry) for pair in pairs]
    questions = [
        question
        for pair in pairs
        for question in prompt.questions(
            pair, spec.judge_entry, spec.judge, spec.seed, spec.model.context, spec.model.fold_system
        )
    ]

    def progress(done: int, total: int, seconds: float) -> None:
        log(f"{spec.judge}: {done}/{total} answers, {(total - done) * seconds / done / 60:.1f} min left")

    replies, client = ask.answers(
        spec.model,
        spec.model_in,
        [question.request for question in questions],
        spec.cache,
        Path(spec.verdicts_out).with_suffix(".server.log"),
        spec.threads,
        _dtype(spec),
        spec.max_usd,
        paced(progress),
        log,
    )
    verdicts = ask.table(questions, replies, spec.judge_entry)
    contracts.write_parquet(verdicts, spec.verdicts_out)
    counts = {key: verdicts.filter(pl.col("outcome") == key)["session"].n_unique() for key in ("win", "tie", "loss")}
    unparsed = int((verdicts["verdict"] == "unparsed").sum())
    record.note(
        sessions=len(chosen),
        **counts,
        unparsed_answers=unparsed,
        identical_profiles=sum(pair.method == pair.reference for pair in pairs),
        profiles_cut=sum(profiles for profiles, _ in cut),
        items_cut=sum(items for _, items in cut),
        prompts_that_lost_items=sum(question.dropped > 0 for question in questions if not question.swapped),
        without_answer=sum(bool(answer.fault) for answer in replies),
        reasoning_removed=sum(answer.thought for answer in replies),
        asked=client.spent.requests,
        cached=client.spent.cached,
        prompt_tokens=client.spent.prompt_tokens,
        tokens=client.spent.tokens,
        usd=round(client.spent.usd, 6),
        answered_by=sorted({answer.model for answer in replies}),
    )
    log(
        f"{spec.judge}: {spec.method} against {spec.reference}, {len(chosen)} sessions: {counts['win']} better, "
        f"{counts['tie']} equal, {counts['loss']} worse; {unparsed} of {len(replies)} answers unparsed; "
        f"{client.spent.line}"
    )


def _dtype(spec: Spec) -> str:
    """The dtype of a local model."""
    if spec.model.source.endpoint is not None or spec.dtype != "auto":
        return spec.dtype
    from langptune.models.load import pick_device, pick_dtype

    return str(pick_dtype(spec.dtype, pick_device())).removeprefix("torch.")


def _profiles(path: str, chosen: list[int], users: dict[int, str], shuffle: int | None) -> pl.DataFrame:
    """The first profile of each chosen session; with ``shuffle``, exchanged between users as in rank_texts.py.

    Raises:
        UserError: a chosen session has no profile.
    """
    table = contracts.read(path, "profiles")
    if shuffle is not None:
        table = deal(table, users, shuffle)
    table = table.filter((pl.col("sample") == 0) & pl.col("session").is_in(chosen))
    if len(table) < len(chosen):
        raise UserError(
            f"{path}: has profiles of {len(table)} of the {len(chosen)} sessions drawn; rerun the rule that makes it"
        )
    return table


if __name__ == "__main__":
    stage.run(Spec, work, __file__)
