"""Registry entries of ``config/prompts.yaml``: templates that turn a history into a prompt for the encoder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from langptune.config.base import Strict

MAX_FIELD = 300


class Prompt(Strict):
    """A prompt template (Jinja): it renders data about the user and the history as the user message."""

    template: str = Field(description="Jinja template of the user message")
    starts: str = Field(
        "",
        description="beginning of every profile: the encoder continues it. It is part of the profile's text, and its "
        "tokens count as prompt. It keeps a small model to the form",
    )
    max_field: Annotated[int, Field(ge=1)] | None = Field(
        MAX_FIELD,
        description="longest field (title, description, review...), in characters; longer fields are cut, counted in "
        "the manifest; null: unlimited",
    )
    over: Literal["drop-oldest", "error"] = Field(
        "drop-oldest",
        description="for a prompt longer than the encoder's max_prompt_tokens. drop-oldest: leave out the oldest "
        "items until it fits and, if the newest item alone does not fit, cut its fields (both counted in the "
        "manifest); error: stop",
    )
    special_tokens: Literal["text", "parse"] = Field(
        "text",
        description="meaning of strings like `<|eot_id|>` in a title or review. text: plain text; parse: special "
        "tokens, as published (PAPER: defect 10)",
    )

    @field_validator("starts")
    @classmethod
    def _words(cls, value: str) -> str:
        if value != " ".join(value.split()):
            raise ValueError("write words with single spaces, none at either end: the encoder writes the next space")
        return value

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty ``starts``, so that specs and manifests of such prompts stay the same."""
        data = handler(self)
        if not self.starts:
            data.pop("starts")
        return data
