"""Make a questionnaire that asks which of two profiles describes a user better, as one file, and its codebook."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import polars as pl
from pydantic import Field

from langptune.data import contracts
from langptune.errors import UserError
from langptune.files import whole
from langptune.provenance import Record, file_hash, write_json
from langptune.stage import Log, StageSpec, run
from langptune.survey.draw import Words, describe, draw, new_salt
from langptune.survey.page import page
from langptune.survey.schema import Codebook, Side, load_codebook
from langptune.workflow.needs import Needs

if TYPE_CHECKING:
    from langptune.workflow.job import Job
    from langptune.workflow.project import Project

CONSENT = [
    "This study asks how well texts written by a computer describe what a person likes. You will compare pairs of "
    "short texts; it takes about a minute a pair.",
    "Taking part is voluntary. You can stop at any time by closing this page: your answers then do not leave it.",
    "The page asks for nothing that says who you are, and sends nothing anywhere. At the end you save your answers as "
    "a file, under a random number, and decide whether to hand it over. The file holds your answers, their order, the "
    "number of seconds that you took, and a comment if you write one. It will be analysed together with those of other "
    "people and may be published.",
    "Until you save, this browser tab keeps your answers so that a reload does not lose them; then it forgets them.",
]
AGREEMENT = "I have read this, I am of age, and I agree to take part."


class MakeSpec(StageSpec):
    """Two methods' profiles of the same users in, a questionnaire and its codebook out."""

    title: Annotated[str, Field(min_length=1)] = Field(description="heading of the page; must not name the methods")
    language: Literal["en"] = "en"
    consent: Annotated[list[str], Field(min_length=1)] = Field(CONSENT, description="paragraphs before the questions")
    agreement: Annotated[str, Field(min_length=1)] = Field(AGREEMENT, description="what a respondent ticks")
    contact: Annotated[str, Field(min_length=1)] = Field(
        "the person who gave you this page", description="whom respondents may ask"
    )
    reference_title: str
    reference_in: str = Field(description="profiles.parquet of the zero-shot encoder")
    trained_title: str
    trained_in: str = Field(description="profiles.parquet of the trained encoder")
    items_in: str
    sessions_in: str
    evaluation_in: str
    questions: Annotated[int, Field(ge=1, le=200)] = Field(12, description="users asked about, drawn at random")
    checks: Annotated[int, Field(ge=0, le=20)] = Field(2, description="attention checks mixed in")
    repeats: Annotated[int, Field(ge=0, le=20)] = Field(1, description="pairs shown again, sides swapped")
    history_items: Annotated[int, Field(ge=1)] = Field(20, description="most recent items shown of a history")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the users that are drawn")
    questionnaire_out: str
    codebook_out: str
    codebook_md_out: str


def spec(project: Project, job: Job) -> dict[str, object]:
    """Settings of a job."""
    how, methods = project.config.interpretability, project.methods
    return {
        "title": "Which text describes a person's taste?",
        "reference_title": methods[how.reference].title,
        "trained_title": methods[job.method].title,
        "questions": how.survey_questions,
        "history_items": methods[job.method].history_items,
        "seed": how.seed,
    }


def needs(project: Project, job: Job) -> Needs:
    """The needs of a job."""
    return Needs(memory=500, minutes=10)


def make(spec: MakeSpec, record: Record, log: Log) -> None:
    """Draw users, give random identifiers, write page and codebook.

    Raises:
        UserError: the title of a method is in a text that respondents read.
    """
    for title in (spec.reference_title, spec.trained_title):
        shown = " ".join([spec.title, *spec.consent, spec.agreement, spec.contact])
        if title and re.search(rf"(?<!\w){re.escape(title)}(?!\w)", shown, re.IGNORECASE):
            raise UserError(
                f"'{title}', a method's title, is in a text that respondents read: leave it out of title and consent"
            )
    ids = contracts.read(spec.evaluation_in, "evaluation")["session"]
    drawn = partial(
        draw,
        titles=contracts.read(spec.items_in, "items")["title"].to_list(),
        sessions=contracts.read(spec.sessions_in, "sessions").filter(pl.col("session").is_in(ids.to_list())),
        profiles={
            "reference": contracts.read(spec.reference_in, "profiles"),
            "trained": contracts.read(spec.trained_in, "profiles"),
        },
        sides={
            "reference": Side(title=spec.reference_title, profiles_sha256=file_hash(spec.reference_in)),
            "trained": Side(title=spec.trained_title, profiles_sha256=file_hash(spec.trained_in)),
        },
        words=Words(spec.title, spec.consent, spec.agreement, spec.contact, spec.language),
        questions=spec.questions,
        checks=spec.checks,
        repeats=spec.repeats,
        history_items=spec.history_items,
        seed=spec.seed,
    )
    data, codebook = again(spec, drawn) or drawn(salt=new_salt())
    # The codebook is written first: answers to the page cannot be analysed without it.
    write_json(spec.codebook_out, codebook.model_dump(mode="json", by_alias=True))
    with whole(spec.questionnaire_out) as part:
        part.write_text(page(data), encoding="utf-8")
    with whole(spec.codebook_md_out) as part:
        part.write_text(describe(codebook), encoding="utf-8")
    users = len(codebook.asked())
    record.note(survey=codebook.survey, asked=users, identical=codebook.identical, sessions=codebook.sessions)
    log(
        f"survey {codebook.survey}: {users} users, {len(codebook.pairs)} pairs with checks and repeats"
        + (f"; asked for {spec.questions}, but only {users} differ" if users < spec.questions else "")
    )


def again(spec: MakeSpec, drawn: Callable[..., tuple[dict, Codebook]]) -> tuple[dict, Codebook] | None:
    """The existing survey, drawn again from its salt; None where there is none, or where its spec was another one.

    People may be answering it, so the same command must not change its identifiers. Another survey gets another salt,
    so that the codebook of the first may be published.
    """
    try:
        known = load_codebook(spec.codebook_out)
    except UserError:
        return None
    if known.salt is None:
        return None
    data, codebook = drawn(salt=known.salt)
    return (data, codebook) if codebook == known else None


if __name__ == "__main__":
    run(MakeSpec, make, __file__)
