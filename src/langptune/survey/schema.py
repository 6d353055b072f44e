"""The survey's files as typed models: the codebook, which holds the roles of the profiles, and a response."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from langptune.config.base import Strict, validate
from langptune.errors import UserError
from langptune.reading import read_json

CODEBOOK_SCHEMA = "langptune-survey-codebook/1"
RESPONSE_SCHEMA = "langptune-survey-response/1"

PREFERENCES = ("a-much", "a-bit", "equal", "b-bit", "b-much")
"""Which profile describes the taste better; A is the one on the left."""
EASE = ("a", "equal", "b")
"""Which profile is easier to read."""
CLAIMS = ("yes", "no", "unsure")
"""Whether a profile claims something that the history does not support."""

Role = Literal["reference", "trained", "instruction", "filler"]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Survey = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Pair(Strict):
    """One question: two profiles of one history, under opaque names.

    The answer to a ``pair`` is a result; a ``repeat`` shows a pair again with its sides swapped; a ``check`` has an
    instruction in place of one profile, and its only correct answer is "much better" for the side of the instruction.
    """

    question: Id
    kind: Literal["pair", "repeat", "check"]
    session: int = Field(description="of sessions.parquet")
    repeats: Id | None = Field(None, description="the question that a repeat shows again")
    roles: dict[Id, Role] = Field(description="opaque id of each of the two profiles -> what it is")
    texts: dict[Id, str] = Field(description="opaque id -> the profile as it is shown")

    @model_validator(mode="after")
    def _check_roles(self) -> Pair:
        roles = {"instruction", "filler"} if self.kind == "check" else {"reference", "trained"}
        if len(self.roles) != 2 or set(self.roles.values()) != roles or set(self.texts) != set(self.roles):
            raise ValueError(f"a {self.kind} needs two profiles with a text each: {' and '.join(sorted(roles))}")
        if (self.kind == "repeat") != (self.repeats is not None):
            raise ValueError("a repeat, and nothing else, names the question that it repeats")
        return self


class Side(Strict):
    """One of the two compared methods."""

    title: str
    profiles_sha256: str = Field(description="of its profiles.parquet")


class Codebook(Strict):
    """Everything that the analysis needs and respondents must not see."""

    schema_: Literal["langptune-survey-codebook/1"] = Field(CODEBOOK_SCHEMA, alias="schema")
    survey: Survey = Field(description="hash of all that is asked, of what is what and of the salt")
    title: str
    language: Literal["en"]
    seed: int
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = Field(
        None, description="secret behind names and id; null in codebooks made before there was one"
    )
    reference: Side
    trained: Side
    sessions: Annotated[int, Field(ge=1)] = Field(description="evaluated sessions with a profile by both methods")
    identical: Annotated[int, Field(ge=0)] = Field(description="of them, those where both wrote the same: never asked")
    pairs: Annotated[list[Pair], Field(min_length=1)] = Field(description="in the order of the file")

    @model_validator(mode="after")
    def _check_pairs(self) -> Codebook:
        kinds = {pair.question: pair for pair in self.pairs}
        if len(kinds) != len(self.pairs):
            raise ValueError("pairs: duplicate question")
        if not self.asked():
            raise ValueError("pairs: none of kind 'pair', so nothing is asked")
        for pair in self.pairs:
            if pair.repeats is not None:
                first = kinds.get(pair.repeats)
                if first is None or first.kind != "pair" or first.roles != pair.roles:
                    raise ValueError(f"pairs: {pair.question} does not repeat a pair of this codebook")
        return self

    def asked(self) -> list[Pair]:
        """The pairs whose answers count, in the order of the file."""
        return [pair for pair in self.pairs if pair.kind == "pair"]


class Answer(Strict):
    """The answer to one question; A is the profile on the left."""

    question: Id
    left: Id
    right: Id
    preference: Literal["a-much", "a-bit", "equal", "b-bit", "b-much"]
    easier: Literal["a", "equal", "b"]
    unsupported_left: Literal["yes", "no", "unsure"]
    unsupported_right: Literal["yes", "no", "unsure"]


def _given(consent: bool) -> bool:
    """Require ``True``; a ``Literal[True]`` would accept 1, which is equal to it."""
    if not consent:
        raise ValueError("must be true")
    return consent


class Response(Strict):
    """One respondent's file."""

    schema_: Literal["langptune-survey-response/1"] = Field(RESPONSE_SCHEMA, alias="schema")
    survey: Survey
    response: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(description="random; stands for no person")
    consent: Annotated[bool, AfterValidator(_given)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="decides order and sides (assignment.py)")
    seconds: Annotated[int, Field(ge=0, lt=10**7)] = Field(description="spent on the questions, all together")
    answers: list[Answer] = Field(description="in the order in which they were asked")
    comment: str = Field("", max_length=5000)


def load_codebook(path: Path | str) -> Codebook:
    """Read and check a codebook.

    Raises:
        UserError: the file is missing or invalid.
    """
    path = Path(path)
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `make survey` writes it beside its questionnaire") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); make the survey again") from None
    return validate(Codebook, data, str(path))


def digest(data: Any) -> str:
    """16 hexadecimal digits of SHA-256 over plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]
