"""Registry entries of ``config/judges.yaml``: models that compare two profiles of one user, and their prompts."""

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
"""Variables of a template: complete blocks of text."""


class Instruction(Strict):
    """The judge's messages: Jinja templates with ``history``, ``first``, ``second`` (blocks) and ``answers``."""

    system: str | None = Field(None, description="template of the system message; null: no system message")
    user: str = Field(description="template of the user message; must show each of the three blocks")

    @model_validator(mode="after")
    def _known(self) -> Instruction:
        for key, source in (("system", self.system or ""), ("user", self.user)):
            try:
                names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source))
            except jinja2.TemplateError as error:
                raise ValueError(f"{key}: template error: {error}") from None
            if foreign := sorted(names - {*BLOCKS, "answers"}):
                raise ValueError(f"{key}: unknown name '{foreign[0]}'; valid: {', '.join(BLOCKS)}, answers")
            shown = [name for name in BLOCKS if name in names]
            if key == "system" and shown:
                raise ValueError(f"system: '{shown[0]}' is data of a user; show it in the user message")
            if key == "user" and len(shown) < len(BLOCKS):
                raise ValueError(f"user: must show {', '.join(set(BLOCKS) - set(shown))}")
        return self


class Answers(Strict):
    """Labels of the verdicts; a judge without ``tie`` must choose one profile."""

    first: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] = Field("A", description="the first profile is better")
    second: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] = Field("B", description="the second profile is better")
    tie: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] | None = Field(
        "TIE", description="neither profile is better; null: ties are not allowed"
    )

    @model_validator(mode="after")
    def _apart(self) -> Answers:
        if len({self.first, self.second, self.tie}) < 3:
            raise ValueError("the answers must differ")
        return self

    @property
    def labels(self) -> dict[str, str]:
        """Label -> meaning: ``first``, ``second`` or ``tie``."""
        meanings = {self.first: "first", self.second: "second", self.tie: "tie"}
        return {label: meaning for label, meaning in meanings.items() if label is not None}


class Judge(Strict):
    """One judge: a model and its instruction. It judges each pair in both orders."""

    title: str = Field(description="name in tables and on pages")
    model: str = Field(description="an encoder of models.yaml; a local model is served while the job runs")
    instruction: Instruction = Field(description="templates of the messages")
    answer: Literal["word", "line", "json"] = Field(
        "line",
        description="form of the verdict. word: the answer is the verdict alone; line: its last line is `VERDICT: A`; "
        'json: it ends with {"verdict": "A"}, with or without other keys. Markdown and brackets around it are '
        "allowed. Any other answer, and one with two different verdicts, is unparsed, never guessed",
    )
    answers: Answers = Field(Answers(), description="labels of the verdicts")
    max_tokens: Annotated[int, Field(ge=1)] = Field(256, description="longest answer, in tokens")
    temperature: Annotated[float, Field(ge=0, strict=False)] = Field(
        0.0, description="temperature of decoding; 0: greedy"
    )
    history_items: Annotated[int, Field(ge=1)] = Field(10, description="number of most recent items that are shown")
    max_profile: Annotated[int, Field(ge=1)] = Field(
        4000,
        description="longest profile that is shown, in characters; longer profiles are cut, and counted in the "
        "manifest",
    )


class _Registry(RootModel[dict[str, dict[str, Any]]]):
    pass


def read_judges(folder: Path | str, models: Mapping[str, Any]) -> dict[str, Judge]:
    """The judges of a folder of registries, checked; empty if the folder has no judges.yaml.

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
                f"{at}: model: '{judge.model}' is not an encoder of models.yaml{nearest(judge.model, encoders)}"
            )
        if judge.max_tokens >= models[judge.model].context:
            raise UserError(
                f"{at}: max_tokens {judge.max_tokens} leaves no room for a question in the "
                f"{models[judge.model].context} tokens of '{judge.model}'"
            )
        out[name] = judge
    return out
