"""A local model behind the same chat API as a remote one: ``transformers serve``, for as long as a block runs.

Sources: ``transformers/cli/serve.py`` and ``serving/server.py`` of transformers 5. The server loads the model before it
listens, and takes a port that the system gives it, so that several may run beside each other.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from langptune.errors import UserError
from langptune.files import fresh

PATIENCE = 600.0
"""Seconds that a server may take to load its model."""
_LISTENS = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")


@contextmanager
def served(folder: Path | str, log: Path | str, threads: int, dtype: str = "auto") -> Iterator[str]:
    """Serve a model folder on 127.0.0.1 while the block runs.

    The server is ended however the block is left: at its end, by an exception, by SIGTERM (which scripts turn into
    one), and, because it watches a pipe to us, also when this process is killed.

    Args:
        folder: a materialised causal language model with a chat template.
        log: file for what the server prints.
        threads: CPU threads of torch.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: that of the weights.

    Yields:
        The base URL, ``http://127.0.0.1:PORT/v1``; the model is called by the folder's name.

    Raises:
        UserError: the server ended, or did not listen in time; the line names the log.
    """
    folder, log = Path(folder).resolve(), Path(log)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no model to serve; run the prefetch rule")
    command = [sys.executable, "-m", "langptune.endpoint.serve", "serve", folder.name]
    command += ["--host", "127.0.0.1", "--port", "0", "--device", "auto", "--dtype", dtype]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    environment |= {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    source = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    with fresh(log) as out:
        # In the folder's parent, the folder's name is a path to transformers, and what requests call the model.
        server = subprocess.Popen(
            command, cwd=folder.parent, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield f"{_listening(server, log, folder)}/v1"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        finally:
            if server.stdin:
                with suppress(OSError):
                    server.stdin.close()


def _listening(server: subprocess.Popen, log: Path, folder: Path) -> str:
    """The server's address, once it answers."""
    end = time.monotonic() + PATIENCE
    # A proxy of the environment is none for this machine itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end:
        if server.poll() is not None:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            last = lines[-1].strip()[:200] if lines else "it said nothing"
            raise UserError(f"the server of {folder.name} ended at once ({last}); all it said is in {log}")
        if found := _LISTENS.search(log.read_text(encoding="utf-8", errors="replace")):
            with suppress(OSError), opener.open(f"{found[1]}/health", timeout=5) as answer:
                if answer.status == 200:
                    return found[1]
        time.sleep(0.1)
    raise UserError(f"the server of {folder.name} did not answer within {PATIENCE:.0f} s; all it said is in {log}")


def _end_with_parent() -> None:
    """Leave as soon as standard input ends: the process that started this one is gone."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The command itself, without its look for a newer version on the network.
    from transformers.cli.transformers import app

    app()
