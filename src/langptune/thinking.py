"""Reasoning that a model writes before its answer: removed from profiles, and counted.

A thinking model writes ``<think>...</think>`` and then its answer. Only the answer is a profile. Chat templates differ:
some put ``<think>`` into the prompt, so that the output has only ``</think>``; an output that is cut at its limit may
have only ``<think>``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langptune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMES = "think|thinking|thought|thoughts|reasoning|seed:think"
_OPEN = rf"<(?:{_NAMES})>|\[THINK\]"
_CLOSE = rf"</(?:{_NAMES})>|\[/THINK\]"
_MARK = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
_OPENED = re.compile(rf"(?:{_OPEN})\s*$", re.IGNORECASE)
CHECKED_AFTER = 64
"""Number of profiles after which a run is checked; a shorter run is checked at its end."""


@dataclass(frozen=True)
class Reply:
    """A model's output without its reasoning.

    finished: the model ended it, and wrote more than reasoning.
    thought: reasoning was removed.
    """

    text: str
    finished: bool
    thought: bool


def without_thoughts(text: str, opened: bool = False) -> tuple[str, bool]:
    """A text without reasoning and surrounding whitespace, and whether there was any reasoning.

    An end mark without a start removes everything before it, a start mark without an end everything after it.

    Args:
        opened: the prompt ends within reasoning (``opens_thought``): without an end mark, everything is reasoning.
    """
    kept, start, inside, found = [], 0, opened, opened
    for mark in _MARK.finditer(text):
        found = True
        if mark["close"]:
            if not inside:
                kept.clear()
        elif not inside:
            kept.append(text[start : mark.start()])
        inside, start = not mark["close"], mark.end()
    if not inside:
        kept.append(text[start:])
    return "".join(kept).strip(), found


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template begins the reasoning at the end of the prompt."""
    turn = [{"role": "user", "content": "?"}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return _OPENED.search(prompt) is not None


def read_reply(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Collection[int], opened: bool) -> Reply:
    """Decode generated token ids, without the end token, other special tokens and reasoning.

    Args:
        ids: token ids, padding after the end token allowed.
        ends: ids that end a turn (``end_tokens``).
        opened: see ``opens_thought``.
    """
    end = next((at for at, token in enumerate(ids) if token in ends), None)
    ids = list(ids[:end])
    # If the marks are special tokens, decoding would drop them and keep the reasoning.
    special = {at: str(token) for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = [at for at, token in enumerate(ids) if token in special and _MARK.fullmatch(special[token])]
    if marks:
        parts = []
        for begin, stop in zip([0, *(at + 1 for at in marks)], [*marks, len(ids)], strict=True):
            parts.append(tokenizer.decode(ids[begin:stop], skip_special_tokens=True))
            if stop < len(ids):
                parts.append(special[ids[stop]])
        written = "".join(parts)
    else:
        written = tokenizer.decode(ids, skip_special_tokens=True)
    text, thought = without_thoughts(written, opened)
    return Reply(text, end is not None and not (thought and not text), thought)


def refuse_only_thoughts(only: int, done: int, total: int, model: str, max_tokens: int) -> None:
    """Stop a run if most of its profiles are only reasoning.

    If fewer are, the run goes on; those profiles are empty and count as unfinished.

    Args:
        only: number of profiles so far that are only reasoning.
        done, total: number of profiles so far, and in total.

    Raises:
        UserError: more than half of the profiles are only reasoning, once there are enough of them.
    """
    if done < min(CHECKED_AFTER, total) or 2 * only <= done:
        return
    raise UserError(
        f"{model}: {only} of {done} profiles are only reasoning, cut at max_tokens {max_tokens} before the answer; set "
        "'chat_template_kwargs: {enable_thinking: false}' in the model's entry in models.yaml (or what its chat "
        "template calls it), or a larger max_tokens in methods.yaml"
    )
