"""Registry entries of ``config/prompts.yaml``: how a history becomes what the encoder is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from langptune.config.base import Strict

MAX_FIELD = 300


class Prompt(Strict):
    """A prompt template (Jinja): data about the user and the history in, the user message out."""

    template: str
    starts: str = Field(
        "",
        description="how every profile begins: the encoder goes on from there; part of the profile's text, and of the "
        "prompt's tokens. It keeps a small model in form",
    )
    max_field: Annotated[int, Field(ge=1)] | None = Field(
        MAX_FIELD,
        description="characters of one field (title, description, review...) that are shown, counted in the manifest; "
        "null: all of them",
    )
    over: Literal["drop-oldest", "error"] = Field(
        "drop-oldest",
        description="a prompt longer than the encoder's max_prompt_tokens: leave out the oldest items until it fits "
        "and, where the newest alone does not, cut its fields (both counted in the manifest), or stop",
    )
    special_tokens: Literal["text", "parse"] = Field(
        "text",
        description="strings like `<|eot_id|>` in a title or review: text, or the special tokens they look like, as "
        "published (PAPER: defect 10)",
    )

    @field_validator("starts")
    @classmethod
    def _words(cls, value: str) -> str:
        if value != " ".join(value.split()):
            raise ValueError("write words with single spaces, none at either end: the encoder writes the next space")
        return value

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A prompt without a beginning does not name the key: its specs and manifests stay the same."""
        told = handler(self)
        if not self.starts:
            told.pop("starts")
        return told
