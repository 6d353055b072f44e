"""Jinja templates as data: item texts and prompts. Sandboxed, and strict about names that do not exist."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from langptune.errors import UserError

_NOTHING = "\ufdd0"
"""Stands for an empty value until the text is whole; a code point that no text holds."""
# Blanks are tried from the first of a run alone: from each, a long run would take the square of its length.
_NOTHING_IN_BRACKETS = re.compile(rf"(?<![ \t])[ \t]*(?:\({_NOTHING}\)|\[{_NOTHING}\])")


def _shown(value: Any) -> Any:
    """How a template writes a value; conditions and filters see the value itself."""
    return _NOTHING if value is None or value == "" else value


# Nothing is escaped here: a text goes to a tokenizer, which takes it as plain text (langptune.prompts), and
# pages escape what they show.
_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False, finalize=_shown
)


def compile_template(source: str, where: str) -> Template:
    """A template.

    Raises:
        UserError: a syntax error; the line names ``where``.
    """
    try:
        return _ENVIRONMENT.from_string(source)
    except TemplateError as error:
        raise UserError(f"{where}: template error: {error}") from None


def render(template: Template, where: str, **values: Any) -> str:
    """The filled template. Brackets with nothing but an empty value in them are left out: no year, no ``()``.

    Raises:
        UserError: a name that the data does not have, naming ``where`` and what is there.
    """
    try:
        text = template.render(**values)
    except TemplateError as error:
        raise UserError(f"{where}: {error}; available: {', '.join(sorted(values))}") from None
    return _NOTHING_IN_BRACKETS.sub("", text).replace(_NOTHING, "")
