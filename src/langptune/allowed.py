"""The allowed pairs of server and API key: the user names them, a config cannot.

A config and its registries may come from somebody else. If they could name any environment variable, they could send
any secret to any server. So an endpoint and its key must be listed together in one of three places: here, in the user's
file ``~/.config/langptune/endpoints.yaml``, or in the variable ``LANGPTUNE_ENDPOINTS``.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from langptune.config.base import read_yaml
from langptune.errors import UserError

VARIABLE = "LANGPTUNE_ENDPOINTS"
"""Pairs ``URL=NAME``, separated by whitespace."""
KNOWN = {
    "https://api.openai.com": "OPENAI_API_KEY",
    "https://api.anthropic.com": "ANTHROPIC_API_KEY",
    "https://generativelanguage.googleapis.com": "GEMINI_API_KEY",
    "https://api.mistral.ai": "MISTRAL_API_KEY",
    "https://api.deepseek.com": "DEEPSEEK_API_KEY",
    "https://api.together.xyz": "TOGETHER_API_KEY",
    "https://api.groq.com": "GROQ_API_KEY",
    "https://openrouter.ai": "OPENROUTER_API_KEY",
}
"""Providers -> the variable of the key in their documentation."""
_HOST = re.compile(r"[a-z0-9.-]+|[0-9a-f:.]+")
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


class _Address(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


def _address(url: str) -> _Address | None:
    """The parsed address of a URL; None if it is ambiguous (unusual characters, a user, a query)."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (ValueError, KeyError):
        return None
    host = (parts.hostname or "").lower()
    odd = "@" in parts.netloc or "\\" in url or ".." in parts.path or "%" in parts.path or parts.query or parts.fragment
    return None if odd or not _HOST.fullmatch(host) else _Address(parts.scheme, host, port, parts.path.rstrip("/"))


def near(url: str) -> bool:
    """Whether a server is on this machine."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file() -> Path:
    """The user's file. Without a home folder there is none: the working directory must not be used instead."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not folder.is_absolute():
        try:
            folder = Path.home() / ".config"
        except RuntimeError:
            folder = Path("/~")
    return folder / "langptune" / "endpoints.yaml"


def pairs() -> list[tuple[str, str]]:
    """All (base URL, name of the variable) that this user allows.

    Raises:
        UserError: the user's file or variable is invalid, or others may write the file.
    """
    out, file = list(KNOWN.items()), _file()
    if file.exists():
        state = file.stat()
        if state.st_uid not in (os.geteuid(), 0) or state.st_mode & 0o022:
            raise UserError(f"{file}: others may write it and could redirect your keys; own it, and `chmod go-w` it")
        listed = [(str(url), name) for url, names in read_yaml(file).items() for name in _listed(names)]
        out += [_checked(url, name, str(file)) for url, name in listed]
    for word in os.environ.get(VARIABLE, "").split():
        url, _, name = word.rpartition("=")
        out.append(_checked(url, name, VARIABLE))
    return out


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _checked(url: str, name: object, where: str) -> tuple[str, str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _address(url) is None:
        raise UserError(
            f"{where}: give a base URL and the name of an environment variable, such as https://host/v1 and "
            f"HOST_API_KEY (found {url!r} and {name!r})"
        )
    return url, name


def names() -> set[str]:
    """The variables of allowed pairs; only the known ones if the user's file cannot be read."""
    try:
        return {name for _, name in pairs()}
    except (UserError, OSError):
        return set(KNOWN.values())


def check(endpoint: str | None, key: str | None, where: str = "models.yaml") -> None:
    """Refuse to send a key unencrypted, or to a server that the user has not allowed for it.

    Args:
        endpoint, key: base URL and the variable's name from an entry of models.yaml; None: there is none.
        where: the source in errors: a file, or a file and an entry.

    Raises:
        UserError: the pair is not allowed; the message says how to allow it.
    """
    if endpoint is None or key is None:
        return
    asked = _address(endpoint)
    if asked is None:
        raise UserError(f"{where}: endpoint {endpoint!r}: write it in plain letters, without '%', '..' and '\\'")
    if asked.scheme != "https" and not near(endpoint):
        raise UserError(
            f"{where}: endpoint {endpoint}: the key in {key} would be sent unencrypted; use https://, or "
            "a server on this machine (a tunnel: `ssh -L`), or leave out 'key'"
        )
    for url, name in pairs():
        known = _address(url)
        there = known is not None and known[:3] == asked[:3] and f"{asked.path}/".startswith(f"{known.path}/")
        if there and name == key:
            return
    origin = endpoint.rstrip("/")
    raise UserError(
        f"{where}: endpoint {origin} with key {key}: you have not allowed this pair, and a config cannot. If "
        f"that key is meant for that server, write `{origin}: {key}` into {_file()}, or `export "
        f"{VARIABLE}={origin}={key}`"
    )
