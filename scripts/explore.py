"""Open finished results as a local page: read profiles, edit them, and see the decoder's new recommendations."""

from __future__ import annotations

import argparse
import contextlib
import html
import logging
import os
import socket
import sys
import tempfile
import warnings
import webbrowser
from collections.abc import Iterator
from pathlib import Path

# Nothing is downloaded here, even if a model's files name something on the hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from langptune.cli import finish
from langptune.config.base import nearest, read_yaml
from langptune.config.load import load
from langptune.errors import UserError, printable
from langptune.explorer.finished import Finished
from langptune.provenance import ROOT

PORT = 8765


def bind(port: int | None) -> socket.socket:
    """A socket that listens only on this machine: on ``port``; for None on ``PORT`` or, if that is taken, a free one.

    Raises:
        UserError: ``port`` is taken or must not be used.
    """
    from langptune.explorer.server import HOST

    for wanted in (PORT, 0) if port is None else (port,):
        try:
            # Bound and listening in one step: if two explorers start at once, one of them gets the port.
            return socket.create_server((HOST, wanted))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"--port {port}: {reason}; choose another, or leave --port out")


def finished(config: Path, dataset: str | None) -> Finished:
    """The finished results of a config, or of one of its datasets.

    Raises:
        UserError: the config is not valid, the dataset is unknown, or nothing is finished.
    """
    keys = read_yaml(config)
    if dataset is not None:
        known = keys.get("datasets") or []
        if dataset not in known:
            raise UserError(f"--dataset {dataset}: not among the datasets of {config}{nearest(dataset, known)}")
        keys = {**keys, "datasets": [dataset]}
        if isinstance(keys.get("comparison"), dict) and "published_as" in keys["comparison"]:
            names = keys["comparison"]["published_as"]
            kept = {name: value for name, value in names.items() if name == dataset}
            keys["comparison"] = {**keys["comparison"], "published_as": kept}
    out = Finished(load(keys, ROOT, str(config)), ROOT)
    if not out.datasets():
        results = out.workflow.config.results
        raise UserError(f"{results}: nothing of {config} is finished there; run `make demo CONFIG={config}` first")
    return out


def main() -> int:
    """Serve until interrupted; exit status 2 after one line on an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "config.yaml", help="whose results")
    parser.add_argument("--dataset", help="only this dataset of the config")
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or a free one where that is taken; 0: a free one")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--no-token", action="store_true", help="let in every account of this machine, without a token")
    parser.add_argument("--memory", type=int, default=4096, help="MiB that loaded models may take together (4096)")
    args = parser.parse_args()
    results = finished(args.config, args.dataset)
    for name in results.workflow.config.datasets:
        if lacks := results.lacking(name):
            print(f"{name}: left out, {', '.join(lacks)} not there", file=sys.stderr)
    sock = bind(args.port)

    from langptune.explorer.access import new_token, server
    from langptune.explorer.live import Live
    from langptune.explorer.server import HOST, app
    from langptune.explorer.views import Explorer

    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    warnings.filterwarnings("ignore", module="peft|transformers")  # about their own next versions
    token = None if args.no_token else new_token()
    address = f"http://{HOST}:{sock.getsockname()[1]}/" + (f"?token={token}" if token else "")
    # Ctrl-C may come as soon as the address is printed; the server raises it again when it has ended.
    with contextlib.suppress(KeyboardInterrupt):
        print(f"the explorer is at {address} (Ctrl-C ends it)", flush=True)
        if token is None:
            print("--no-token: every account of this machine can read these results there", file=sys.stderr, flush=True)
        with opened(address) if args.open else contextlib.nullcontext():
            server(app(Explorer(results, Live(results, args.memory * 2**20)), token)).run(sockets=[sock])
    return 0


class Printable(logging.Formatter):
    """Removes control characters from log records, because errors quote their input."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, its stack trace included."""
        return printable(super().format(record), "\n\t")


@contextlib.contextmanager
def opened(address: str) -> Iterator[None]:
    """Open an address in the browser, through a file that only its owner can read.

    Every account of the machine can read the command line of a browser, and the address contains the token.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as page:  # its mode is 0600
        page.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">\n')
        page.flush()
        webbrowser.open(Path(page.name).as_uri())
        yield


if __name__ == "__main__":
    finish(main)
