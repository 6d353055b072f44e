"""Serves a local model by the chat API of remote ones: ``transformers serve``, while a block runs.

Sources: ``transformers/cli/serve.py`` and ``serving/server.py`` of transformers 5. The server loads the model before it
listens. It needs no key, and would load any folder or drop the model for any client that reaches it. So it listens not
on a port but on a Unix socket in a folder that no other account can enter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from langptune import processes
from langptune.errors import UserError
from langptune.files import fresh
from langptune.models.check import check_reach

PATIENCE = 600.0
"""Time limit for loading a model, in seconds."""
NEEDED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|LD_\w+|VIRTUAL_ENV|(CONDA|XDG|OMP|MKL|KMP|OPENBLAS|GOTO|MALLOC)_\w+"
    r"|(CUDA|NVIDIA|NCCL|ROCR|ROCM|HIP|HSA|PYTORCH|TORCH|TRITON|HF|TRANSFORMERS|LANGPTUNE)_\w+|PYTHON\w+"
)
"""Environment variables that a server may need."""
_LONGEST = 90
"""Limit on the path of a Unix socket in characters, less those of our own names."""


@contextmanager
def served(folder: Path | str, log: Path | str, threads: int, dtype: str = "auto") -> Iterator[str]:
    """Serve a model folder on a Unix socket of this account while the block runs.

    The server ends with the block: at its normal end, at an exception, at SIGTERM (which scripts turn into an
    exception), and when this process is killed, because the server watches a pipe from it.

    Args:
        folder: a materialised causal language model with a chat template.
        log: file for what the server prints.
        threads: CPU threads of torch.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: that of the weights.

    Yields:
        The socket, for ``Client``; the model is called by the folder's name.

    Raises:
        UserError: the server ended, or did not listen in time; the message names the log.
    """
    folder, log = Path(folder).resolve(), Path(log)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no model to serve; run the prefetch rule")
    check_reach(folder, folder.name)
    changes = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    changes |= {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    short = len(tempfile.gettempdir()) < _LONGEST - len("/langptune-12345678")
    with tempfile.TemporaryDirectory(prefix="langptune-", dir=None if short else "/tmp") as private:  # mode 0700
        # Relative to this folder, the model's name is both a path for transformers and the name in requests. The folder
        # of all models cannot be the working directory: other accounts may write there.
        here, socket = Path(private, "models"), str(Path(private, "socket"))
        here.mkdir()
        (here / folder.name).symlink_to(folder)
        with fresh(log) as out:
            server = processes.start(
                processes.python("-m", "langptune.endpoint.serve", folder.name, dtype, socket),
                processes.environment(only=NEEDED, **changes),
                cwd=here,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_for(server, log, folder, socket)
            yield socket
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


def _wait_for(server: subprocess.Popen, log: Path, folder: Path, socket: str) -> None:
    """Return once the server answers."""
    import httpx2

    end = time.monotonic() + PATIENCE
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=socket), timeout=5) as client:
        while time.monotonic() < end:
            if server.poll() is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no output")
                raise UserError(f"the server of {folder.name} ended at once ({last}); its whole output is in {log}")
            if Path(socket).exists():
                with suppress(httpx2.HTTPError):
                    if client.get("http://127.0.0.1/health").status_code == 200:
                        return
            time.sleep(0.1)
    raise UserError(f"the server of {folder.name} did not answer within {PATIENCE:.0f} s; its output is in {log}")


def _end_with_parent(socket: str) -> None:
    """Exit as soon as standard input ends: the process that started this one is gone and cannot clean up."""
    sys.stdin.buffer.read()
    shutil.rmtree(Path(socket).parent, ignore_errors=True)
    os._exit(0)


def _serve(model: str, dtype: str, socket: str) -> None:
    """Run the server of ``transformers serve`` on a socket; its own command line supports ports only."""
    from transformers.cli.serve import Serve

    class OnSocket(Serve):
        def start_server(self) -> None:
            self.server.config.uds = socket
            self.server.run()

    # ``non_blocking`` makes it call ``start_server``.
    OnSocket(force_model=model, device="auto", dtype=dtype, trust_remote_code=False, non_blocking=True)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, args=sys.argv[-1:], daemon=True).start()
    _serve(*sys.argv[1:])
