"""Prompts: a template renders history and user fields, and a chat format turns the text into token ids.

User text is data. A title that contains ``<|im_end|>`` or ``[CLS]`` is encoded as those characters, never as the
special token, unless a prompt reproduces what was published (PAPER, defect 10). Only the special tokens of the chat
template become special tokens.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langptune.config.prompts import Prompt
from langptune.data.templates import compile_template, render
from langptune.errors import UserError
from langptune.thinking import opens_thought

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

_MARK = "\u27e6user text\u27e7"
"""Placeholder for the user message while the chat template is rendered; removed before encoding."""


_CLOSING = ".,;:!?)'\u2019"
_LOOKS_SPECIAL = re.compile(r"\[(/?[A-Z_]+)\]")


def without_special(text: str) -> str:
    """A text without anything that looks like a special token of a chat format, for servers that would parse it.

    ``<|im_end|>``, ``<end_of_turn>``, ``</s>`` get other angle brackets, ``[INST]`` gets round brackets.
    """
    return _LOOKS_SPECIAL.sub(r"(\1)", text.replace("<", "\u2039").replace(">", "\u203a"))


def begun(starts: str, answer: str) -> str:
    """The complete reply from a server that was given its beginning.

    Servers return the continuation, with or without the space before it; some return the beginning too.
    """
    if not starts or answer.startswith(starts):
        return answer
    return starts + ("" if not answer or answer[0].isspace() or answer[0] in _CLOSING else " ") + answer


def require_chat_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Check that a model can be prompted.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{where}: the tokenizer has no chat template; profile encoders are instruction-tuned models")


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, and what was left out to fit the limit: whole items, and ends of fields."""

    ids: list[int]
    dropped_items: int
    cut_fields: int


@dataclass(frozen=True)
class Message:
    """A prompt as a user message, for a server with the tokenizer; ``tokens`` is estimated from characters."""

    text: str
    tokens: int
    dropped_items: int
    cut_fields: int


class _Writer:
    """Fits sessions into a template and a limit; subclasses define the prompt and its length."""

    def __init__(self, prompt: Prompt, name: str, limit: int):
        self._where = f"prompts.yaml: {name}"
        self._prompt = prompt
        self._template = compile_template(prompt.template, self._where)
        self._limit = limit

    def text(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> str:
        """The user message, oldest item first.

        Args:
            history: for each item its fields (title, ...) and the user's ``rating`` and ``review``.
            user: the user's fields.
        """
        return render(self._template, self._where, history=list(history), user=dict(user)).strip()

    def _fit(
        self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any], build: Callable[..., Sequence[int] | str]
    ) -> tuple[Any, int, int]:
        """The prompt that ``build`` returns, fitted as ``over`` specifies; number of items left out; of fields cut."""
        items, cut = _shortened(history, self._prompt.max_field)
        tries = len(items) if self._prompt.over == "drop-oldest" else 1
        for dropped in range(tries):
            prompt = build(items[dropped:], user)
            if self._length(prompt) <= self._limit:
                return prompt, dropped, cut
        if self._prompt.over == "error":
            raise UserError(
                f"{self._where}: a prompt of {self._length(prompt)} tokens is longer than the {self._limit} that are "
                "allowed; set 'over: drop-oldest', a smaller 'max_field', or a larger max_prompt_tokens in models.yaml"
            )
        # Even the newest item alone is too long, so its fields are cut until it fits.
        longest = max(len(value) for value in items[-1].values() if isinstance(value, str))
        while longest > 1:
            longest //= 2
            newest, cut = _shortened(history[-1:], longest)
            prompt = build(newest, user)
            if self._length(prompt) <= self._limit:
                return prompt, len(items) - 1, cut
        raise UserError(
            f"{self._where}: a prompt with one item does not fit into {self._limit} tokens; shorten the template or "
            "raise max_prompt_tokens in models.yaml"
        )

    def _length(self, prompt: Any) -> int:
        return len(prompt)


class MessageWriter(_Writer):
    """Turns sessions into user messages for one template, for a server with its own tokenizer.

    A server may parse ``<|im_end|>`` in a title as the token. Unless the prompt requires that, fields are rewritten
    (``without_special``); ``changed`` counts the changed fields.
    """

    def __init__(self, prompt: Prompt, name: str, limit: int, tokens_of: Callable[[str], int]):
        """``limit`` is the limit in tokens; ``tokens_of`` estimates the tokens of a text."""
        super().__init__(prompt, name, limit)
        self._tokens_of = tokens_of
        self.changed = 0

    def encode(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> Message:
        """The message, fitted as the prompt's ``over`` specifies.

        Raises:
            UserError: it does not fit.
        """
        if self._prompt.special_tokens == "text":
            history, user = [self._plain(item) for item in history], self._plain(user)
        text, dropped, cut = self._fit(history, user, self.text)
        return Message(text, self._length(text), dropped, cut)

    def _plain(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        out = {key: without_special(value) if isinstance(value, str) else value for key, value in fields.items()}
        self.changed += sum(out[key] != value for key, value in fields.items())
        return out

    def _length(self, prompt: str) -> int:
        return self._tokens_of(f"{prompt} {self._prompt.starts}".strip())


class PromptWriter(_Writer):
    """Turns sessions into prompt token ids for one template and one tokenizer.

    If the prompt defines how a profile ``starts``, these tokens follow those of the chat format: the encoder continues
    from there, and the limit includes them.
    """

    def __init__(self, prompt: Prompt, name: str, tokenizer: PreTrainedTokenizerBase, limit: int):
        """``limit`` is the limit in tokens, including the chat format."""
        super().__init__(prompt, name, limit)
        self._tokenizer = tokenizer
        require_chat_template(tokenizer, str(tokenizer.name_or_path))
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
        before, mark, after = rendered.partition(_MARK)
        if not mark:
            raise UserError("the model's chat template drops the user message; it cannot be prompted")
        self.starts = prompt.starts
        if prompt.starts:
            after += self._gap(after) + prompt.starts
        # The template writes all special tokens itself, including the first one of a text.
        form = {"add_special_tokens": False, "split_special_tokens": False}
        self._before, self._after = (tokenizer(part, **form).input_ids for part in (before, after))
        added = [tokenizer.added_tokens_decoder.get(token) for token in (*self._before, *self._after)]
        loose = {str(token) for token in added if token and not token.special and len(str(token).strip()) > 1}
        self._loose = re.compile("|".join(map(re.escape, sorted(loose)))) if loose else None

    def _gap(self, after: str) -> str:
        """The whitespace that the chat template puts between its generation prompt and the reply.

        Raises:
            UserError: the template begins the reply with reasoning, so that the reply cannot have a given beginning.
        """
        if opens_thought(self._tokenizer):
            raise UserError(
                f"{self._where}: 'starts' is how the answer begins, but the chat template of "
                f"{self._tokenizer.name_or_path} begins it with reasoning; turn that off in the model's "
                "'chat_template_kwargs' in models.yaml, or use a prompt without 'starts'"
            )
        turns = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": self._prompt.starts}]
        reply = self._tokenizer.apply_chat_template(turns, tokenize=False).partition(_MARK)[2]
        gap = reply.removeprefix(after).partition(self._prompt.starts)[0] if reply.startswith(after) else ""
        return gap if gap.isspace() else ""

    def whole(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> str:
        """The user message with every item of the history, without fitting it to the limit."""
        return self.text(_shortened(history, self._prompt.max_field)[0], user)

    @property
    def frame(self) -> int:
        """Number of tokens of the chat format around a user message, and of the beginning of the reply."""
        return len(self._before) + len(self._after)

    def lengths(self, messages: list[str]) -> list[int]:
        """Number of tokens of the prompts of user messages, including the chat format."""
        return [len(ids) + self.frame for ids in self._encoded(messages)]

    def encode(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> Encoded:
        """Token ids of the whole prompt, fitted as the prompt's ``over`` specifies.

        Raises:
            UserError: it does not fit.
        """
        return Encoded(*self._fit(history, user, self._ids))

    def _ids(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> list[int]:
        return [*self._before, *self._encoded([self.text(history, user)])[0], *self._after]

    def _encoded(self, messages: list[str]) -> list[list[int]]:
        if self._prompt.special_tokens == "parse":
            return self._tokenizer(messages, add_special_tokens=False, split_special_tokens=False).input_ids
        ids = self._tokenizer(messages, add_special_tokens=False, split_special_tokens=True).input_ids
        for row, message in enumerate(messages):
            # A tokenizer would also parse tokens of the chat format that it does not mark as special, so the text is
            # split within their names.
            if self._loose and (found := list(self._loose.finditer(message))):
                cuts = [0, *(match.start() + 1 for match in found), len(message)]
                parts = [message[start:end] for start, end in itertools.pairwise(cuts)]
                plain = self._tokenizer(parts, add_special_tokens=False, split_special_tokens=True).input_ids
                ids[row] = list(itertools.chain.from_iterable(plain))
        return ids


def _shortened(history: Sequence[Mapping[str, Any]], limit: int | None) -> tuple[list[dict[str, Any]], int]:
    """Items with text fields of at most ``limit`` characters, and the number of fields that were cut."""
    cut = 0
    out: list[dict[str, Any]] = []
    for item in history:
        fields = dict(item)
        for key, value in fields.items():
            if limit is not None and isinstance(value, str) and len(value) > limit:
                fields[key] = value[:limit] + "..."
                cut += 1
        out.append(fields)
    return out, cut


def encode_sessions(
    writer: PromptWriter | MessageWriter,
    sessions: pl.DataFrame,
    items: pl.DataFrame,
    users: pl.DataFrame,
    history_items: int,
) -> list[Any]:
    """The prompts of sessions, in their order: ``Encoded``, or ``Message`` from a ``MessageWriter``.

    Args:
        sessions: contract ``sessions``.
        items: contract ``items`` with its fields.
        users: contract ``users``.
        history_items: number of most recent items to show.
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
