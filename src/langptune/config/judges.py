"""Registry entries of ``config/judges.yaml``: models that compare two profiles of one user, and how they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import jinja2.meta
from pydantic import Field, RootModel, model_validator

from langptune.config.base import NAME_RULE, Strict, nearest, read_yaml, sound_name, validate
from langptune.errors import UserError

FILE = "judges.yaml"
BLOCKS = ("history", "first", "second")
"""What a template shows: blocks of text, whole."""


class Instruction(Strict):
    """What a judge is told: Jinja templates with ``history``, ``first``, ``second`` (blocks) and ``answers``."""

    system: str | None = Field(None, description="text of the system message; null: none")
    user: str = Field(description="template of the user message; shows each of the three blocks once")

    @model_validator(mode="after")
    def _known(self) -> Instruction:
        for key, source in (("system", self.system or ""), ("user", self.user)):
            try:
                names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source))
            except jinja2.TemplateError as error:
                raise ValueError(f"{key}: template error: {error}") from None
            if foreign := sorted(names - {*BLOCKS, "answers"}):
                raise ValueError(f"{key}: unknown name '{foreign[0]}'; there are {', '.join(BLOCKS)} and answers")
            shown = [name for name in BLOCKS if name in names]
            if key == "system" and shown:
                raise ValueError(f"system: '{shown[0]}' is data of a user; show it in the user message")
            if key == "user" and len(shown) < len(BLOCKS):
                raise ValueError(f"user: must show {', '.join(set(BLOCKS) - set(shown))}")
        return self


class Answers(Strict):
    """How the verdicts are called; a judge without ``tie`` must choose."""

    first: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] = "A"
    second: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] = "B"
    tie: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] | None = "TIE"

    @model_validator(mode="after")
    def _apart(self) -> Answers:
        if len({self.first, self.second, self.tie}) < 3:
            raise ValueError("the answers must differ")
        return self

    @property
    def labels(self) -> dict[str, str]:
        """What is answered -> what it means: ``first``, ``second`` or ``tie``."""
        told = {self.first: "first", self.second: "second", self.tie: "tie"}
        return {label: meaning for label, meaning in told.items() if label is not None}


class Judge(Strict):
    """One judge: a model and its instruction. Both orders of each pair are asked."""

    title: str = Field(description="how tables and pages call it")
    model: str = Field(description="an encoder of models.yaml; a local one is served while it is asked")
    instruction: Instruction
    answer: Literal["word", "line", "json"] = Field(
        "line",
        description="form of the verdict: word, the answer is the verdict and nothing else; line, its last line is "
        '`VERDICT: A`; json, it ends with {"verdict": "A"}, with or without other keys. Markdown and brackets around '
        "it are allowed. All else, and two different verdicts, is unparsed, never guessed",
    )
    answers: Answers = Answers()
    max_tokens: Annotated[int, Field(ge=1)] = Field(256, description="longest answer")
    temperature: Annotated[float, Field(ge=0, strict=False)] = Field(0.0, description="0 is greedy")
    history_items: Annotated[int, Field(ge=1)] = Field(10, description="most recent items shown")
    max_profile: Annotated[int, Field(ge=1)] = Field(
        4000, description="characters of a profile that are shown; longer ones are cut, counted in the manifest"
    )


class _Registry(RootModel[dict[str, dict[str, Any]]]):
    pass


def read_judges(folder: Path | str, models: Mapping[str, Any]) -> dict[str, Judge]:
    """The judges of a folder of registries, checked; none where it has no judges.yaml.

    Args:
        models: the entries of models.yaml, by name.

    Raises:
        UserError: naming file, entry, key, value and what to do.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    out = {}
    encoders = [name for name, entry in models.items() if entry.role == "encoder"]
    for name, entry in validate(_Registry, read_yaml(path), str(path)).root.items():
        at = f"{path}: {name}"
        if not sound_name(name):
            raise UserError(f"{path}: entry {name[:80]!r}: {NAME_RULE}")
        judge = validate(Judge, entry, at)
        if judge.model not in encoders:
            raise UserError(
                f"{at}: model: '{judge.model}' is no encoder of models.yaml{nearest(judge.model, encoders)}"
            )
        if judge.max_tokens >= models[judge.model].context:
            raise UserError(
                f"{at}: max_tokens {judge.max_tokens} leaves no room for a question in the "
                f"{models[judge.model].context} tokens of '{judge.model}'"
            )
        out[name] = judge
    return out
