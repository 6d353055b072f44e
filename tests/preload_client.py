"""The ``python`` of a test run: passes scripts that compute to a process with imported libraries (preload.py).

It is written into the run's folder with a first line that starts Python without its site packages, which takes
milliseconds. For the same reason it imports nothing slow. It runs all other programs with the plain interpreter.
"""

import _signal
import _socket
import marshal
import os
import resource
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PLAIN = f"{HERE}/python3.11"
SERVER = "@SERVER@"
RUN = f"{os.path.dirname(HERE)}/run"

# Scripts that only start other programs and need none of the libraries.
LIGHT = {"launch.py", "plan.py"}
# A server takes longer to start than one script that loads all libraries, so the first scripts run without a server.
AFTER = 1
# Variables that no library reads at import, and variables that the server applies to each script.
FREE = {"_", "COLUMNS", "LINES", "OLDPWD", "PATH", "PWD", "SHLVL", "TMPDIR", "PYTHONPATH", "MPLBACKEND"}
FREE |= {"PYTHONSAFEPATH"}
FREE |= {"HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS"}
FREE |= {"NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "PYTHONUNBUFFERED"}
FREE_PREFIXES = ("LANGPTUNE", "PYTEST_", "SNAKEMAKE")
# Jobs of a cluster or of `torchrun`: their launchers start, count and stop these processes, so none may be forked.
FOREIGN = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2)


def plain():
    """Replace this process by the plain interpreter."""
    os.execv(PLAIN, [PLAIN, *sys.argv[1:]])


def kind_of(arguments):
    """The kind of program: "script" of the repository, "module" (our local server or a dry run), or None."""
    arguments = arguments[1:] if arguments[:1] == ["-P"] else arguments
    dry_run = arguments[:2] == ["-m", "snakemake"] and "-n" in arguments
    if dry_run or arguments[:2] == ["-m", "langptune.endpoint.serve"]:
        return "module"
    script = arguments[0] if arguments else ""
    folder, _, name = script.rpartition("/")
    if folder.rpartition("/")[2] == "scripts" and name.endswith(".py") and name not in LIGHT:
        return "script"
    return None


def computes(script):
    """Whether a script needs the libraries that take seconds to import; no server is started for other scripts."""
    try:
        with open(script, encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return False
    return any(word in text for word in ("torch", "langptune.models.", "langptune.training.", "transformers"))


def signature():
    """A hash of the environment that a process keeps from its start; a server and the scripts that it runs share it."""
    kept = {key: value for key, value in os.environ.items() if key not in FREE and not key.startswith(FREE_PREFIXES)}
    limits = [
        resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name.startswith("RLIMIT")
    ]
    from _sha256 import sha256

    place = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "net")]
    text = repr(
        (sorted(kept.items()), limits, sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0), place)
    )
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def reached(path):
    """A connection to the server that listens on this socket, or None."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        return None
    return connection


def server(arguments, kind):
    """A connection to the server for this environment, or None if there is none.

    A server is started when enough scripts need it. The caller does not wait for it, because tests have time limits.
    """
    import fcntl

    folder = f"{RUN}/{signature()}"
    if connection := reached(f"{folder}/socket"):
        return connection
    if kind == "script" and not computes(next(part for part in arguments if part != "-P")):
        return None
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection := reached(f"{folder}/socket"):
            return connection
        lock.write(".")
        lock.flush()
        if os.fstat(lock.fileno()).st_size != AFTER + 1:
            return None
        if (child := os.fork()) == 0:
            os.setsid()
            if os.fork() == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
                os.dup2(1, 2)
                os.closerange(3, 1024)
                own = ("PYTHONPATH", "PYTHONSAFEPATH")
                environment = {key: value for key, value in os.environ.items() if key not in own}
                os.execve(PLAIN, [PLAIN, SERVER, f"{folder}/socket", f"{RUN}/owner"], environment)
            os._exit(0)
        os.waitpid(child, 0)
    return None


def main():
    arguments = sys.argv[1:]
    kind = kind_of(arguments)
    if kind is None or any(key.startswith(FOREIGN) for key in os.environ):
        plain()
    try:
        connection = server(arguments, kind)
    except OSError:
        connection = None
    if connection is None:
        plain()
    ignored = [number for number in SIGNALS if _signal.getsignal(number) == _signal.SIG_IGN]
    umask = os.umask(0)
    os.umask(umask)
    request = marshal.dumps((kind, arguments, os.getcwd(), dict(os.environ), umask, ignored))
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    message = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)
    connection.sendmsg([len(request).to_bytes(8, "big")], [message])
    connection.sendall(request)
    for number in SIGNALS:
        if number not in ignored:
            _signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    status = connection.recv(4)
    if len(status) < 4:
        sys.stderr.write("the preloaded interpreter was lost\n")
        os._exit(1)
    status = int.from_bytes(status, "big")
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _signal.signal(os.WTERMSIG(status), _signal.SIG_DFL) if os.WTERMSIG(status) != _signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


main()
