"""Prompts: history and user fields through a template, and the template through a chat format, as token ids.

User text is data. A title that holds ``<|im_end|>`` or ``[CLS]`` is encoded as those characters, never as the
special token (PAPER, defect 10); only the chat template's own special tokens become special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langptune.data.templates import compile_template, render
from langptune.errors import UserError

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

MAX_FIELD = 300
"""Characters of one item field that a prompt shows; longer fields are cut and counted."""

_MARK = "\u27e6user text\u27e7"
"""Stands for the user message while the chat template is rendered; split off again before encoding."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, and what had to be left out to make it fit."""

    ids: list[int]
    dropped_items: int
    cut_fields: int


class PromptWriter:
    """Turns sessions into prompt token ids for one template and one tokenizer."""

    def __init__(self, template: str, name: str, tokenizer: PreTrainedTokenizerBase, limit: int):
        """``limit`` is the longest prompt in tokens, the chat format included."""
        self._where = f"prompts.yaml: {name}"
        self._template = compile_template(template, self._where)
        self._tokenizer = tokenizer
        self._limit = limit
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
        before, mark, after = rendered.partition(_MARK)
        if not mark:
            raise UserError("the model's chat template drops the user message; it cannot be prompted")
        self._before = tokenizer(before, add_special_tokens=False).input_ids
        self._after = tokenizer(after, add_special_tokens=False).input_ids

    def text(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> str:
        """The user message, oldest item first.

        Args:
            history: per item its fields (title, ...) and the user's ``rating`` and ``review``.
            user: the user's fields.
        """
        return render(self._template, self._where, history=list(history), user=dict(user)).strip()

    def encode(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> Encoded:
        """Token ids of the whole prompt; the oldest items are left out until it fits.

        Raises:
            UserError: even a single item does not fit.
        """
        cut = 0
        short: list[dict[str, Any]] = []
        for item in history:
            fields = dict(item)
            for key, value in fields.items():
                if isinstance(value, str) and len(value) > MAX_FIELD:
                    fields[key] = value[:MAX_FIELD] + "..."
                    cut += 1
            short.append(fields)
        for dropped in range(len(short)):
            body = self._tokenizer(
                self.text(short[dropped:], user), add_special_tokens=False, split_special_tokens=True
            ).input_ids
            ids = [*self._before, *body, *self._after]
            if len(ids) <= self._limit:
                return Encoded(ids, dropped, cut)
        raise UserError(
            f"{self._where}: a prompt with one item does not fit into {self._limit} tokens; shorten the template or "
            "raise max_prompt_tokens in models.yaml"
        )


def encode_sessions(
    writer: PromptWriter, sessions: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame, history_items: int
) -> list[Encoded]:
    """The prompts of sessions, in their order.

    Args:
        sessions: contract ``sessions``.
        items: contract ``items`` with its fields.
        users: contract ``users``.
        history_items: the most recent items that are shown.
    """
    fields = items.drop("text", "first_seen").to_dicts()
    known = {user["user_id"]: user for user in users.to_dicts()}
    out = []
    for row in sessions.select("user_id", "history", "ratings", "reviews").to_dicts():
        reviews = row["reviews"] or [""] * len(row["history"])
        shown = list(zip(row["history"], row["ratings"], reviews, strict=True))[-history_items:]
        history = [{**fields[item], "rating": f"{rating:g}", "review": review} for item, rating, review in shown]
        out.append(writer.encode(history, known.get(row["user_id"], {})))
    return out
