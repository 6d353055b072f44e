"""Provenance of results: content hashes, the code that a script runs, and the manifest beside each output."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import platform
import resource
import socket
import subprocess
import symtable
import sys
import time
from collections.abc import Collection, Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from langptune import processes
from langptune.errors import UserError
from langptune.files import whole
from langptune.reading import read_json

ROOT = Path(__file__).resolve().parents[2]
"""The repository (the package is installed in place)."""
LOCK = ROOT / "envs" / "lock.txt"


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file, or of a folder's file names and contents without dot files and manifests."""
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if not file.name.startswith(".") and not file.name.endswith("manifest.json"):
                digest.update(f"{name}\0{file_hash(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def code_files(script: Path | str, without: tuple[str, ...] = (), loads: tuple[str, ...] = ()) -> list[Path]:
    """A script and every ``langptune`` module that it imports, directly or indirectly, also inside functions.

    Args:
        without: modules (``langptune.prompts``) that this use of the script never runs. They, and modules that only
            they import, are not listed.
        loads: modules that this use of the script imports by name (entries of a ``Registry``).
    """
    skipped, loaded = (
        {ROOT / "src" / Path(*n.split(".")).with_suffix(".py") for n in names} for names in (without, loads)
    )
    script = Path(script).resolve()
    todo, seen = [script, *loaded], {}
    while todo:
        path = todo.pop()
        if path in seen or path in skipped:
            continue
        seen[path] = True
        todo += _module(path, path == script)[0]
    return sorted(seen)


# grimp finds the same imports (tests/unit/test_provenance.py compares them) but is not used here: scripts are no
# packages, the `__init__` of a package counts, and the hash needs the syntax tree anyway.
@cache
def _module(path: Path, script: bool = False) -> tuple[tuple[Path, ...], str]:
    """The files that a module imports, and the SHA-256 of its syntax tree without docstrings.

    A script's tree is that of the code that it runs as a job (``run_as_job``).
    """
    package = ROOT / "src"
    source = path.read_text(encoding="utf-8")
    tree = run_as_job(source, path) if script else ast.parse(source, str(path))
    imported: list[Path] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] != "langptune":
                continue
            base = package / Path(*name.split("."))
            imported += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()]
        for block in ("body", "orelse", "finalbody"):
            if isinstance(lines := getattr(node, block, None), list):
                setattr(node, block, [line for line in lines if not _is_text(line)])
    return tuple(imported), hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def run_as_job(source: str, path: Path) -> ast.Module:
    """The part of a script that runs in a job.

    It consists of the statements that act when they run (the last one calls ``stage.run``) and of all definitions that
    these refer to. The script's declarations for the workflow (``spec``, ``needs``) are no part of it, because a job
    gets its spec as text.
    """
    tree = ast.parse(source, str(path))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    steps = [line for line in tree.body if _acts(line, used) and not _is_text(line) and not _is_for_types(line)]
    return defining(source, path, [name for line in steps for name in _named(line)], {line.lineno for line in steps})


def defining(source: str, path: Path, names: Iterable[str], steps: Collection[int] = ()) -> ast.Module:
    """The part of a module that defines some names, with the definitions and imports that these refer to.

    Args:
        steps: first lines of statements that are always kept.
    """
    tree, lines = ast.parse(source, str(path)), {}
    for line in tree.body:
        for name in _defined(line):
            lines.setdefault(name, []).append(line)
    bodies: dict[str, list[str]] = {}
    for table in symtable.symtable(source, str(path), "exec").get_children():
        bodies.setdefault(table.get_name(), []).extend(_globals(table))
    todo, used = list(names), {"annotations"}  # of `from __future__`
    while todo:
        name = todo.pop()
        if name not in used:
            used.add(name)
            todo += bodies.get(name, []) + [other for line in lines.get(name, []) for other in _named(line)]
    kept = [line for line in tree.body if line.lineno in steps or not used.isdisjoint(_defined(line))]
    for line in kept:
        if isinstance(line, ast.Import | ast.ImportFrom):
            line.names = [alias for alias in line.names if line.lineno in steps or _imported(alias) in used]
    tree.body = kept
    return tree


def _acts(line: ast.stmt, used: Collection[str]) -> bool:
    """Whether a statement may do more than define names that other parts of a module use.

    These are statements that define no name; those that change an object, such as ``os.environ["X"] = "1"``; and
    imports, classes, calls and decorated functions whose name nothing uses, which exist for their effect, such as
    entering a registry.

    Args:
        used: all names that the module reads.
    """
    if isinstance(line, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = line.targets if isinstance(line, ast.Assign) else [line.target]
        if any(isinstance(node, ast.Attribute | ast.Subscript) for part in targets for node in ast.walk(part)):
            return True
        inert = not any(isinstance(node, ast.Call) for node in ast.walk(line))
    else:
        inert = isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef) and not line.decorator_list
    if isinstance(line, ast.Import | ast.ImportFrom):
        return any(_imported(alias) not in used for alias in line.names)
    return not (names := _defined(line)) or not (inert or any(name in used for name in names))


def _defined(line: ast.stmt) -> list[str]:
    """The names that a statement defines in its module."""
    if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [line.name]
    if isinstance(line, ast.Import | ast.ImportFrom):
        return [_imported(alias) for alias in line.names]
    if isinstance(line, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = line.targets if isinstance(line, ast.Assign) else [line.target]
        walrus = [node.target for node in ast.walk(line) if isinstance(node, ast.NamedExpr)]
        return [node.id for part in (*targets, *walrus) for node in ast.walk(part) if isinstance(node, ast.Name)]
    return []


def _imported(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _named(line: ast.stmt) -> list[str]:
    """The names that a statement refers to; for a function or class, those outside its body and in annotations."""
    if not isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return _names(line)
    parts: list[ast.AST] = list(line.decorator_list)
    if isinstance(line, ast.ClassDef):
        parts += [*line.bases, *line.keywords]
    for node in ast.walk(line):
        if isinstance(node, ast.arguments):
            parts += [default for default in (*node.defaults, *node.kw_defaults) if default]
        parts += [part for key in ("annotation", "returns") if (part := getattr(node, key, None))]
    return [name for part in parts for name in _names(part)]


def _names(part: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(part) if isinstance(node, ast.Name)]


def _globals(table: symtable.SymbolTable) -> list[str]:
    """The names of the module that the body of a function or class refers to, nested functions included."""
    # In the body of a class, `x = x` reads the module's x.
    of_class = table.get_type() == "class"
    own = [name.get_name() for name in table.get_symbols() if name.is_referenced() and (of_class or name.is_global())]
    return own + [name for child in table.get_children() for name in _globals(child)]


def _is_for_types(line: ast.stmt) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:`` without ``else``, which never runs."""
    if not isinstance(line, ast.If) or line.orelse:
        return False
    return isinstance(line.test, ast.Name) and line.test.id == "TYPE_CHECKING"


def _is_text(line: ast.AST) -> bool:
    """Whether a statement is a bare string: a docstring, of a module, a function or an attribute."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def code_hash(script: Path | str, without: tuple[str, ...] = (), loads: tuple[str, ...] = ()) -> str:
    """SHA-256 over the code in ``code_files`` that runs.

    It is a param of every rule, so that a change of the code reruns the rule. Syntax trees are hashed: comments,
    docstrings and layout do not count. A script's declarations for the workflow do not count either.
    """
    digest, script = hashlib.sha256(), Path(script).resolve()
    for path in code_files(script, without, loads):
        name, content = path.relative_to(ROOT).as_posix(), _module(path, path == script)[1]
        digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the repository; None outside git.

    Changed files under results/ do not count as dirty: the manifest of a job that reads one has its hash.
    """

    def git(*args: str) -> str | None:
        try:
            done = processes.run(["git", "-C", str(ROOT), *args], capture_output=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--", ".", ":(exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def device() -> str:
    """The name of the GPU where this process has loaded torch and sees a GPU; the CPU's name otherwise."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return cpu()["name"]


CPU_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16", "i8mm",
)  # fmt: skip
"""Instruction sets, as named in ``/proc/cpuinfo``, on which the dtype of models or the kernels of torch depend."""


@lru_cache(maxsize=1)
def cpu() -> dict[str, Any]:
    """The CPU's name, and which of ``CPU_FLAGS`` it has: the name in a virtual machine may hide the kind of CPU.

    ``flags`` is None where the system does not list them (not Linux).
    """
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = fields.get("flags", fields.get("Features"))
    known = None if flags is None else [flag for flag in CPU_FLAGS if flag in flags.split()]
    return {"name": fields.get("model name") or platform.processor() or platform.machine(), "flags": known}


def versions(*names: str) -> dict[str, str | None]:
    """Installed versions of distributions, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    out: dict[str, str | None] = {}
    for name in names:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = None
    return out


class Record:
    """Collects the content of the manifests of one execution of a script.

    packages: distributions whose versions are recorded; a script may add others.
    """

    def __init__(self, script: Path, spec: dict[str, Any], without: tuple[str, ...] = (), loads: tuple[str, ...] = ()):
        self.script, self.spec = script, spec
        self.started = time.time()
        # Hashed at the start: code that is edited while the job runs did not make its output.
        self.code, self.git = code_hash(script, without, loads), git_state()
        self.packages = ["torch", "transformers", "sentence-transformers", "recbole", "polars", "numpy"]
        self.notes: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Add facts that matter to a reader of the numbers (drops, truncations, dtype...)."""
        self.notes.update(facts)

    def write(self, inputs: list[Path], outputs: list[Path]) -> None:
        """Write ``<output>.manifest.json`` beside each output (inside it, for a folder)."""
        usage = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        common = {
            "script": self.script.relative_to(ROOT).as_posix(),
            "code": self.code,
            "git": self.git,
            "spec": self.spec,
            "seed": self.spec.get("seed"),
            "inputs": {str(path): input_hash(path) for path in inputs},
            "models": model_revisions(inputs),
            "lock": file_hash(LOCK) if LOCK.is_file() else None,
            "versions": versions(*self.packages),
            "host": socket.gethostname(),
            "device": device(),
            "cpu": cpu(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "wall_seconds": round(time.time() - self.started, 3),
            "peak_memory_mb": round(max(u.ru_maxrss for u in usage) / 1024, 1),
            "notes": self.notes,
        }
        for output in outputs:
            manifest = {"output": output.name, "sha256": file_hash(output), **common}
            write_json(manifest_of(output), manifest)


def input_hash(path: Path) -> str:
    """The hash of an input. A materialised model's comes from its manifest, so that gigabytes are not read again."""
    manifest = path / "manifest.json"
    if path.is_dir() and manifest.is_file():
        return str(_manifest(manifest)["sha256"])
    return file_hash(path)


def manifest_of(output: Path | str) -> Path:
    """The path of an output's manifest."""
    output = Path(output)
    return output / "manifest.json" if output.is_dir() else output.with_name(output.name + ".manifest.json")


def output_of(manifest: Path) -> Path:
    """The output that a manifest describes; the inverse of ``manifest_of``."""
    of_folder = manifest.name == "manifest.json"
    return manifest.parent if of_folder else manifest.with_name(manifest.name.removesuffix(".manifest.json"))


def model_revisions(inputs: list[Path]) -> dict[str, Any]:
    """Source, revision and hash of every materialised model among the inputs, from the models' own manifests."""
    out = {}
    for path in inputs:
        manifest = Path(path) / "manifest.json"
        if Path(path).is_dir() and manifest.is_file():
            content = _manifest(manifest)
            out[path.name] = {"sha256": content["sha256"], **content["notes"]}
    return out


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest in a model's folder.

    Raises:
        UserError: there is none, or it has no hash and notes.
    """
    try:
        content = read_json(path)
        if isinstance(content["sha256"], str) and isinstance(content["notes"], dict):
            return content
        problem = "no hash and notes in it"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise UserError(f"{path}: no manifest ({problem}); delete the folder and rerun the rule that makes it")


def write_json(path: Path | str, data: Any) -> None:
    """Write JSON atomically: the whole file or nothing."""
    with whole(path) as part:
        part.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def installed(module: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
