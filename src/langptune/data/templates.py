"""Jinja templates for item texts and prompts: sandboxed, with errors for undefined names."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from langptune.errors import UserError

_NOTHING = "\ufdd0"
"""Placeholder for an empty value until the text is complete: a code point that occurs in no text."""
# Blanks are matched from the first of a run only: from each, a long run would take quadratic time.
_NOTHING_IN_BRACKETS = re.compile(rf"(?<![ \t])[ \t]*(?:\({_NOTHING}\)|\[{_NOTHING}\])")


def _shown(value: Any) -> Any:
    """The output for a value; conditions and filters get the value itself."""
    return _NOTHING if value is None or value == "" else value


# Nothing is escaped here: a tokenizer treats texts as plain text (langptune.prompts), and pages escape what they show.
_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False, finalize=_shown
)


def compile_template(source: str, where: str) -> Template:
    """Compile a template.

    Raises:
        UserError: a syntax error; the message names ``where``.
    """
    try:
        return _ENVIRONMENT.from_string(source)
    except TemplateError as error:
        raise UserError(f"{where}: template error: {error}") from None


def render(template: Template, where: str, **values: Any) -> str:
    """Render a template. Brackets that contain only an empty value are removed: without a year, no ``()``.

    Raises:
        UserError: an undefined name; the message names ``where`` and the available names.
    """
    try:
        text = template.render(**values)
    except TemplateError as error:
        raise UserError(f"{where}: {error}; available: {', '.join(sorted(values))}") from None
    return _NOTHING_IN_BRACKETS.sub("", text).replace(_NOTHING, "")
