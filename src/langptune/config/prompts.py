"""Registry entries of ``config/prompts.yaml``: how a history becomes what the encoder is asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from langptune.config.base import Strict

MAX_FIELD = 300


class Prompt(Strict):
    """A prompt template (Jinja): data about the user and the history in, the user message out."""

    template: str
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
