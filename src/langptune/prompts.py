"""Prompts: history and user fields through a template, and the template through a chat format, as token ids.

User text is data. A title that holds ``<|im_end|>`` or ``[CLS]`` is encoded as those characters, never as the
special token, unless a prompt asks for what was published (PAPER, defect 10); only the chat template's own special
tokens become special tokens.
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
"""Stands for the user message while the chat template is rendered; split off again before encoding."""


_CLOSING = ".,;:!?)'\u2019"
_LOOKS_SPECIAL = re.compile(r"\[(/?[A-Z_]+)\]")


def without_special(text: str) -> str:
    """A text in which nothing looks like a special token of a chat format, for servers that would take it for one.

    ``<|im_end|>``, ``<end_of_turn>``, ``</s>`` get other angle brackets, ``[INST]`` round ones.
    """
    return _LOOKS_SPECIAL.sub(r"(\1)", text.replace("<", "\u2039").replace(">", "\u203a"))


def begun(starts: str, answer: str) -> str:
    """A server's answer to a message that ends with the beginning of the reply, as one text.

    Servers give back what follows, with or without the space before it; some give back the beginning, too.
    """
    if not starts or answer.startswith(starts):
        return answer
    return starts + ("" if not answer or answer[0].isspace() or answer[0] in _CLOSING else " ") + answer


def require_chat_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Stop where a model cannot be prompted.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{where}: the tokenizer has no chat template; profile encoders are instruction-tuned models")


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, and what had to be left out to make it fit: whole items, and ends of fields."""

    ids: list[int]
    dropped_items: int
    cut_fields: int


@dataclass(frozen=True)
class Message:
    """A prompt as the text of a user message, for a server that has the tokenizer; ``tokens`` is by its characters."""

    text: str
    tokens: int
    dropped_items: int
    cut_fields: int


class _Writer:
    """Fits sessions into one template and a limit; what a prompt is, and how long, the heirs say."""

    def __init__(self, prompt: Prompt, name: str, limit: int):
        self._where = f"prompts.yaml: {name}"
        self._prompt = prompt
        self._template = compile_template(prompt.template, self._where)
        self._limit = limit

    def text(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> str:
        """The user message, oldest item first.

        Args:
            history: per item its fields (title, ...) and the user's ``rating`` and ``review``.
            user: the user's fields.
        """
        return render(self._template, self._where, history=list(history), user=dict(user)).strip()

    def _fit(
        self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any], made: Callable[..., Sequence[int] | str]
    ) -> tuple[Any, int, int]:
        """What ``made`` makes of items and user, made to fit as ``over`` says; items left out; fields cut."""
        items, cut = _shortened(history, self._prompt.max_field)
        tries = len(items) if self._prompt.over == "drop-oldest" else 1
        for dropped in range(tries):
            prompt = made(items[dropped:], user)
            if self._length(prompt) <= self._limit:
                return prompt, dropped, cut
        if self._prompt.over == "error":
            raise UserError(
                f"{self._where}: a prompt of {self._length(prompt)} tokens is longer than the {self._limit} that are "
                "allowed; set 'over: drop-oldest', a smaller 'max_field', or a larger max_prompt_tokens in models.yaml"
            )
        # The newest item alone is too long: less and less of its fields is shown.
        longest = max(len(value) for value in items[-1].values() if isinstance(value, str))
        while longest > 1:
            longest //= 2
            newest, cut = _shortened(history[-1:], longest)
            prompt = made(newest, user)
            if self._length(prompt) <= self._limit:
                return prompt, len(items) - 1, cut
        raise UserError(
            f"{self._where}: a prompt with one item does not fit into {self._limit} tokens; shorten the template or "
            "raise max_prompt_tokens in models.yaml"
        )

    def _length(self, prompt: Any) -> int:
        return len(prompt)


class MessageWriter(_Writer):
    """Turns sessions into user messages for one template, where the tokenizer is a server's.

    A server may take ``<|im_end|>`` in a title for the token. Unless the prompt asks for that, fields are written so
    that it cannot (``without_special``); ``changed`` counts those it happened to.
    """

    def __init__(self, prompt: Prompt, name: str, limit: int, tokens_of: Callable[[str], int]):
        """``limit`` is the longest prompt in tokens, ``tokens_of`` counts them, roughly."""
        super().__init__(prompt, name, limit)
        self._tokens_of = tokens_of
        self.changed = 0

    def encode(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> Message:
        """The message, made to fit as the prompt's ``over`` says.

        Raises:
            UserError: it does not fit, and must not be made to, or cannot.
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

    Where the prompt says how a profile ``starts``, its tokens stand behind the chat format's: the encoder goes on from
    there, and the limit counts them.
    """

    def __init__(self, prompt: Prompt, name: str, tokenizer: PreTrainedTokenizerBase, limit: int):
        """``limit`` is the longest prompt in tokens, the chat format included."""
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
        # The template writes its special tokens itself, the first one of a text included.
        form = {"add_special_tokens": False, "split_special_tokens": False}
        self._before, self._after = (tokenizer(part, **form).input_ids for part in (before, after))
        added = [tokenizer.added_tokens_decoder.get(token) for token in (*self._before, *self._after)]
        loose = {str(token) for token in added if token and not token.special and len(str(token).strip()) > 1}
        self._loose = re.compile("|".join(map(re.escape, sorted(loose)))) if loose else None

    def _gap(self, after: str) -> str:
        """White space that the chat template puts between its generation prompt and what the encoder says.

        Raises:
            UserError: the template begins the reply with reasoning, which a given beginning cannot stand in.
        """
        if opens_thought(self._tokenizer):
            raise UserError(
                f"{self._where}: 'starts' is how the answer begins, but the chat template of "
                f"{self._tokenizer.name_or_path} begins it with reasoning; turn that off in the model's "
                "'chat_template_kwargs' in models.yaml, or use a prompt without 'starts'"
            )
        turns = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": self._prompt.starts}]
        said = self._tokenizer.apply_chat_template(turns, tokenize=False).partition(_MARK)[2]
        gap = said.removeprefix(after).partition(self._prompt.starts)[0] if said.startswith(after) else ""
        return gap if gap.isspace() else ""

    def whole(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> str:
        """The user message with every item of the history, before anything is left out to make it fit."""
        return self.text(_shortened(history, self._prompt.max_field)[0], user)

    @property
    def frame(self) -> int:
        """Tokens of the chat format around a user message, and of what the reply begins with."""
        return len(self._before) + len(self._after)

    def lengths(self, messages: list[str]) -> list[int]:
        """Tokens of the prompts of user messages, the chat format included."""
        return [len(ids) + self.frame for ids in self._encoded(messages)]

    def encode(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> Encoded:
        """Token ids of the whole prompt, made to fit as the prompt's ``over`` says.

        Raises:
            UserError: it does not fit, and must not be made to, or cannot.
        """
        return Encoded(*self._fit(history, user, self._ids))

    def _ids(self, history: Sequence[Mapping[str, Any]], user: Mapping[str, Any]) -> list[int]:
        return [*self._before, *self._encoded([self.text(history, user)])[0], *self._after]

    def _encoded(self, messages: list[str]) -> list[list[int]]:
        if self._prompt.special_tokens == "parse":
            return self._tokenizer(messages, add_special_tokens=False, split_special_tokens=False).input_ids
        ids = self._tokenizer(messages, add_special_tokens=False, split_special_tokens=True).input_ids
        for row, message in enumerate(messages):
            # Tokens of the chat format that a tokenizer does not mark as special are taken all the same: the text is
            # cut within their names.
            if self._loose and (found := list(self._loose.finditer(message))):
                cuts = [0, *(match.start() + 1 for match in found), len(message)]
                parts = [message[start:end] for start, end in itertools.pairwise(cuts)]
                plain = self._tokenizer(parts, add_special_tokens=False, split_special_tokens=True).input_ids
                ids[row] = list(itertools.chain.from_iterable(plain))
        return ids


def _shortened(history: Sequence[Mapping[str, Any]], limit: int | None) -> tuple[list[dict[str, Any]], int]:
    """Items whose text fields have at most ``limit`` characters, and how many fields were cut."""
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
