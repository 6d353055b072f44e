"""Makes an encoder's chat template independent of the date, accept a system message, and follow its registry entry.

This happens once, when the model is fetched: statements are prepended to the template in the materialised folder, so
that everything that reads the folder (profiles, training, the explorer, a server) has the same chat format. A template
that needs no change stays as it is.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from langptune.config.models import EncoderEntry
from langptune.errors import UserError
from langptune.files import whole
from langptune.prompts import require_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "chat_template.jinja"
_DIRECTIVES = [f"%-{letter}" for letter in "dejmyIHlkMS"] + [
    f"%{letter}" for letter in "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%"
]
_DAYS = (datetime.datetime(1999, 12, 31, 23, 59, 58), datetime.datetime(2026, 2, 3, 4, 5, 6))
"""Two points in time that differ in every directive of ``strftime``."""
_SYSTEM, _USER, _REPLY = "\u27e6system\u27e7", "\u27e6user\u27e7", "\u27e6reply\u27e7"
_FOLD = (
    "{%+ if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' "
    "and messages[0]['content'] is string and messages[1]['content'] is string +%}"
    "{%+ set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] "
    "+ messages[2:] +%}{%+ endif +%}"
)


def settle_chat_template(entry: EncoderEntry, folder: Path, name: str) -> dict[str, object]:
    """Write the chat template that the registry entry requires into a materialised folder.

    * ``chat_template_kwargs`` are set inside the template, so that every renderer uses them.
    * ``date`` is what ``strftime_now`` prints.
    * A system message is put before the user's message if the template has no system role (Gemma).

    Returns:
        Facts for the manifest: the changes; empty if the template is unchanged.

    Raises:
        UserError: there is no chat template, it drops the user message, it prints today's date and the entry has no
            ``date``, or it does not use one of the arguments.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    require_chat_template(tokenizer, f"model '{name}'")
    own = tokenizer.get_chat_template()
    before, facts = "", {}
    for key, value in entry.chat_template_kwargs.items():
        if key not in own:
            raise UserError(
                f"models.yaml: {name}: chat_template_kwargs: the model's chat template reads no '{key}'; leave it "
                "out, or write it as the template does"
            )
        before += f"{{%+ set {key} = {value!r} +%}}"
        facts[key] = value
    if len({_render(tokenizer, _clock(day) + before + own, name) for day in _DAYS}) > 1:
        if entry.date is None:
            raise UserError(
                f"models.yaml: {name}: the model's chat template prints today's date, so profiles would change at "
                "midnight; add a day to the entry that it prints instead, such as 'date: 2026-01-01'"
            )
        before = _clock(datetime.datetime.combine(entry.date, datetime.time())) + before
        facts["date"] = entry.date.isoformat()
    if not _takes_system(tokenizer, before + own):
        before = _FOLD + before
        facts["system_message"] = "put before the user's"
    if not before:
        return {}
    with whole(folder / FILE) as part:  # in place of what may be a link into the hub's cache
        part.write_text(before + own, encoding="utf-8", newline="")
    return {"chat_template": facts}


def _clock(day: datetime.datetime) -> str:
    """``strftime_now`` as a Jinja macro that prints one point in time."""
    chain = "".join(f" | replace({code!r}, {day.strftime(code)!r})" for code in _DIRECTIVES)
    return f"{{%+ macro strftime_now(format) +%}}{{{{ format{chain} }}}}{{%+ endmacro +%}}"


def _render(tokenizer: PreTrainedTokenizerBase, template: str, name: str) -> str:
    """The output of the template for the conversations of this benchmark."""
    user = [{"role": "user", "content": _USER}]
    talks = [(user, True), ([*user, {"role": "assistant", "content": _REPLY}], False)]
    try:
        rendered = [
            tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=prompt)
            for talk, prompt in talks
        ]
    except jinja2.TemplateError as error:
        raise UserError(f"model '{name}': its chat template cannot be rendered: {error}") from None
    if _USER not in rendered[0]:
        raise UserError(f"model '{name}': its chat template drops the user message; it cannot be prompted")
    return "\n".join([*rendered, _system(tokenizer, template) or ""])


def _system(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """The output of the template for a system and a user message; None if it refuses them."""
    talk: list[dict[str, Any]] = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
    try:
        return tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:
        return None


def _takes_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    rendered = _system(tokenizer, template)
    return rendered is not None and _SYSTEM in rendered and _USER in rendered
