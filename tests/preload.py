"""One import of torch for a whole test run.

In most tests, a script takes longer to import torch, transformers and similar libraries than to compute. So a test run
has a folder with a separate ``python`` (preload_client.py), which Snakemake's jobs and the tests' subprocesses start
like any interpreter. It passes the scripts of the repository to a server (this file, as a program). The server has
imported the libraries but nothing of the repository, and has computed nothing. It forks a process for each script.

A script sees what it would see without the server: arguments, folder, environment, files, threads, signals and exit
status. The plain interpreter runs all other programs. It also runs scripts in an environment that is new to the run,
scripts of a cluster, and all scripts on machines with a GPU, because no forked process can use one.
``LANGPTUNE_TEST_PRELOAD=0`` turns the server off.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

LIBRARIES = (
    *("torch", "transformers", "sentence_transformers", "peft", "trl", "datasets", "accelerate", "safetensors.torch"),
    *("torch.distributed", "torch.utils.data", "trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "transformers.trainer"),
    *("transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert"),
    *("scipy.stats", "scipy.sparse", "sklearn.decomposition", "sklearn.feature_extraction.text"),
    *("statsmodels.stats.proportion", "krippendorff", "openai", "pydantic", "yaml"),
    *("jinja2.sandbox", "matplotlib.figure", "matplotlib.backends.backend_agg", "markdown_it", "psutil"),
    *("snakemake.cli", "snakemake_executor_plugin_slurm", "uvicorn", "fastapi", "transformers.cli.transformers"),
)
"""Libraries that the server imports. Scripts import polars, which starts threads, and RecBole, which patches others."""


def make(folder: Path) -> Path:
    """Make the folder of a test run, and return the path of its ``python``.

    Its ``python3.11`` is the interpreter of the tests' environment. The servers end when the calling process ends.
    """
    tools, home = folder / "bin", Path(sys.prefix)
    tools.mkdir(parents=True)
    (folder / "run").mkdir(mode=0o700)
    for name in ("pyvenv.cfg", "lib"):
        (folder / name).symlink_to(home / name)
    for tool in (home / "bin").iterdir():
        if not tool.name.startswith("python"):
            (tools / tool.name).symlink_to(tool)
    plain = tools / "python3.11"
    plain.symlink_to(Path(sys.executable).resolve())
    client = Path(__file__).with_name("preload_client.py").read_text(encoding="utf-8")
    for name in ("python", "python3"):
        (tools / name).write_text(f"#!{plain} -ISE\n{client.replace('@SERVER@', str(Path(__file__).resolve()))}")
        (tools / name).chmod(0o755)
    (folder / "run" / "owner").write_text(str(os.getpid()))
    return tools / "python"


def possible() -> bool:
    """Whether preloading is wanted, and works on this machine with this interpreter."""
    wanted = os.environ.get("LANGPTUNE_TEST_PRELOAD") != "0"
    environment = sys.prefix != sys.base_prefix and sys.version_info[:2] == (3, 11)
    return wanted and environment and not Path("/dev/nvidiactl").exists() and hasattr(os, "pidfd_open")


def remove(python: Path) -> None:
    """End the servers of a folder and remove it."""
    for file in (python.parents[1] / "run").glob("*/socket.pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGTERM)
    shutil.rmtree(python.parents[1], ignore_errors=True)


# The server


def serve(path: str, owner: int) -> tuple:
    """Listen until the owner of the test run ends. In each forked process, this function returns the request."""
    import array
    import marshal
    import selectors
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(128)
    Path(f"{path}.pid").write_text(str(os.getpid()))
    wait = selectors.DefaultSelector()
    wait.register(listener, selectors.EVENT_READ, "client")
    wait.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
    jobs: dict[socket.socket, tuple[int, int]] = {}

    def accept() -> tuple | None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        files = array.array("i")
        head, extra, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * files.itemsize))
        for _, _, data in extra:
            files.frombytes(data)
        size, body = int.from_bytes(head, "big"), bytearray()
        while len(body) < size:
            if not (part := connection.recv(size - len(body))):
                break
            body += part
        if len(files) != 3 or len(body) != size or not size:
            connection.close()
            return None
        request = marshal.loads(bytes(body))
        sys.stdout.flush()
        sys.stderr.flush()
        if (child := os.fork()) == 0:
            for other, (_, handle) in jobs.items():
                other.close()
                os.close(handle)
            wait.close()
            listener.close()
            connection.close()
            return (list(files), *request)
        for file in files:
            os.close(file)
        handle = os.pidfd_open(child)
        jobs[connection] = child, handle
        wait.register(connection, selectors.EVENT_READ, ("word", connection))
        wait.register(handle, selectors.EVENT_READ, ("end", connection))
        return None

    while True:
        for key, _ in wait.select():
            if key.data == "owner":
                os._exit(0)  # the kernel then ends the forked processes
            if key.data == "client":
                try:
                    request = accept()
                except OSError:  # the client was killed meanwhile
                    continue
                if request is not None:
                    return request
                continue
            what, connection = key.data
            if connection not in jobs:
                continue
            child, handle = jobs[connection]
            if what == "word":
                try:
                    words = connection.recv(64)
                except OSError:
                    words = b""
                for number in words or [signal.SIGKILL]:
                    os.kill(child, number)
                if not words:
                    wait.unregister(connection)  # the loop still waits for the client's forked process
                continue
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(OSError):
                connection.send(status.to_bytes(4, "big"))
            wait.unregister(handle)
            if connection in wait.get_map():
                wait.unregister(connection)
            os.close(handle)
            connection.close()
            del jobs[connection]


def become(controller, base_path, set_by_libraries, files, kind, arguments, folder, environment, umask, ignored):
    """Give this forked process the state of the client's process."""
    environment = set_by_libraries | environment
    import ctypes
    import importlib
    import random

    import datasets.config
    import huggingface_hub.constants
    import numpy
    import torch

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: this process ends with the server
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.umask(umask)
    os.chdir(folder)

    # The libraries read these variables only when they were imported, so later changes are applied here.
    def offline(value: str) -> None:
        truth = value.upper() in ("1", "ON", "YES", "TRUE")
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = truth

    def threads(_: str) -> None:
        values = [os.environ.get(f"{name}_NUM_THREADS", "") for name in ("OMP", "OPENBLAS", "GOTO")]
        known = [int(value) if value.isdigit() else 0 for value in values]
        every = len(os.sched_getaffinity(0))
        for library in controller.lib_controllers:
            openblas = library.internal_api == "openblas"
            library.set_num_threads((openblas and (known[1] or known[2])) or known[0] or every)
        torch.set_num_threads(known[0] or every)  # also sets the threads of torch's MKL

    applied = {"HF_HUB_OFFLINE": offline, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    putenv, unsetenv = os.putenv, os.unsetenv

    def put(name, value):
        putenv(name, value)
        if (key := os.fsdecode(name)) in applied:
            applied[key](os.fsdecode(value))

    def unset(name):
        unsetenv(name)
        if (key := os.fsdecode(name)) in applied:
            applied[key]("")

    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    for name, apply in applied.items():
        apply(environment.get(name, ""))
    os.putenv, os.unsetenv = put, unset

    random.seed()
    numpy.random.seed()
    importlib.invalidate_caches()
    sys.executable = str(Path(sys.executable).with_name("python"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=bool(environment.get("PYTHONUNBUFFERED")))
    sys.orig_argv = [sys.executable, *arguments]
    safe = environment.get("PYTHONSAFEPATH") or arguments[0] == "-P"
    arguments = arguments[1:] if arguments[0] == "-P" else arguments
    first = folder if kind == "module" else str(Path(arguments[0]).resolve().parent)
    own = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [*([] if safe else [first]), *own, *base_path]
    sys.argv = arguments[1:] if kind == "module" else arguments


def preloaded() -> tuple:
    """Import the libraries and serve. In a forked process, this returns the program to run and its globals."""
    import gc
    import importlib
    import types

    del sys.path[0]  # the folder of this file
    base_path = list(sys.path)
    path, owner = sys.argv[1:]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # otherwise OpenBLAS starts threads, which a fork loses
    before = dict(os.environ)
    for name in LIBRARIES:
        importlib.import_module(name)
    # Some libraries set variables when they are imported.
    set_by_libraries = {key: value for key, value in os.environ.items() if before.get(key) != value}
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController()
    gc.collect()
    gc.freeze()
    request = serve(path, int(Path(owner).read_text()))
    become(controller, base_path, set_by_libraries, *request)
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=sys.argv[0], __builtins__=__builtins__)
    sys.modules["__main__"] = main
    if request[1] == "module":
        code = f"import runpy; runpy.run_module({sys.argv[0]!r}, run_name='__main__', alter_sys=True)"
        return compile(code, "<module>", "exec"), main.__dict__
    return compile(Path(sys.argv[0]).read_bytes(), sys.argv[0], "exec"), main.__dict__


if __name__ == "__main__":
    exec(*preloaded())
