"""Every write of the program goes through ``langptune.files``: the source is searched for other writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

OPENS = {"whole", "new_folder", "own_folder", "TemporaryDirectory"}
"""Functions that give a path that may be written to, or below."""
RECEIVER = {"write_text", "write_bytes", "symlink_to", "hardlink_to", "touch", "mkdir"}
"""Methods that write to their object, a path."""
FIRST = {
    *("write_parquet", "write_csv", "write_ndjson", "write_ipc", "sink_parquet", "sink_csv", "savefig"),
    *("save_pretrained", "to_csv", "to_parquet"),
}
"""Methods that write to their first argument."""
SECOND = {
    "copy",
    "copy2",
    "copyfile",
    "copytree",
    "copyfileobj",
    "move",
    "symlink",
    "link",
    "save_file",
    "dump",
    "save",
}
"""Functions that write to their second argument."""
FIRST_OF_MODULES = {"mkfifo", "makedirs", "mkdir", "mknod"}
OURS = {"contracts", "style"}
"""Modules of the program that have functions with such names, and are searched themselves."""
MODULES = {"os", "shutil", "json", "yaml", "pickle", "torch", "np", "numpy"}

EXCEPTIONS = {
    "src/langptune/files.py": "the helper itself",
    "src/langptune/reading.py:read_plain": "opens for reading",
    "src/langptune/reading.py:read_inside": "opens for reading",
    "src/langptune/models/tiny.py": "makes models of random weights for tests, in a folder that its caller has made",
    "src/langptune/data/fetch.py:_from_hub": "below the folder of its own that fetch makes",
    "src/langptune/data/fetch.py:_receive": "below the folder of its own that fetch makes",
    "src/langptune/data/bounded.py:member": "reads a member of an archive",
    "src/langptune/endpoint/serve.py:served": "in a temporary folder",
    "src/langptune/models/materialise.py:_convert_gguf": "in the new folder of materialise",
    "src/langptune/models/materialise.py:_mirror": "in the new folder of materialise",
    "src/langptune/data/readers/amazon.py:_read_metadata": "in the scratch folder of its own of prepare_data.py",
    "src/langptune/data/readers/amazon.py:_read_reviews": "in the scratch folder of its own of prepare_data.py",
    "src/langptune/baselines/engine/recbole_job.py:_write": "in a temporary folder",
    "src/langptune/training/policy.py:save_adapter": "below the checkpoints, a folder of its own",
    "src/langptune/training/contrastive.py:_save_best": "below the checkpoints, a folder of its own",
    "src/langptune/training/batch.py:save": "below the checkpoints, a folder of its own",
}


def _root(node: ast.expr | None) -> str | None:
    """The name that a path is built from, such as ``part`` in ``Path(part) / "a"``."""
    while True:
        match node:
            case ast.Name(id=name):
                return name
            case ast.BinOp(left=inner) | ast.Attribute(value=inner):
                node = inner
            case ast.Call(func=ast.Name(id="Path" | "str"), args=[inner, *_]):
                node = inner
            case _:
                return None


def _called(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", "")) if isinstance(node, ast.Name | ast.Attribute) else ""


def _written(call: ast.Call) -> ast.expr | bool:
    """The path that a call writes to; False if it does not write."""
    name, args = _called(call.func), call.args
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    module = receiver.id if isinstance(receiver, ast.Name) else ""
    library = module in MODULES
    if name == "open":
        if library:  # os.open
            return args[0]
        own = receiver is None or module in {"gzip", "bz2", "lzma", "io"}
        place = 1 if own else 0
        modes = [*args[place : place + 1], *(word.value for word in call.keywords if word.arg == "mode")]
        if module == "webbrowser" or not modes or isinstance(modes[0], ast.JoinedStr):
            return False  # the argument is an address
        if isinstance(modes[0], ast.Constant) and not set("wax+") & set(str(modes[0].value)):
            return False
        return args[0] if own else receiver or True
    if name == "ParquetWriter":
        return args[0]
    if name == "ZipFile":
        return args[0] if len(args) > 1 and ast.literal_eval(args[1]) != "r" else False
    if name in RECEIVER and receiver is not None and not library:
        return receiver
    if args and ((name in FIRST and receiver and module not in OURS) or (name in FIRST_OF_MODULES and library)):
        return args[0]
    if name in SECOND and len(args) > 1 and (library or receiver is None):
        return args[1]
    return False


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every function, and the module without its functions; nested functions are part of the outer one."""
    outer = [
        (node, where)
        for where in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
        for node in where.body
        if isinstance(node, ast.FunctionDef)
    ]
    for node, where in outer:
        where.body.remove(node)
        yield node.name, node
    yield "", tree


def _bypasses(text: str) -> list[tuple[str, int, str]]:
    """(function, line, source) of every write in Python source whose path comes from no such function."""
    out = []
    for name, function in _functions(ast.parse(text)):
        given = set()
        for node in ast.walk(function):
            if isinstance(node, ast.With):
                for item in node.items:
                    if isinstance(item.context_expr, ast.Call) and _called(item.context_expr.func) in OPENS:
                        given |= {_root(item.optional_vars)} - {None}
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _called(node.value.func) in OPENS:
                given |= {_root(target) for target in node.targets} - {None}
        # A path below one of these paths.
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and _root(node.value) in given:
                given |= {_root(target) for target in node.targets} - {None}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (to := _written(node)) and (to is True or _root(to) not in given):
                out.append((name, node.lineno, ast.unparse(node)))
    return out


SOURCES = sorted(path for folder in ("src", "scripts", "slurm") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_write_goes_through_the_helper(path):
    file = path.relative_to(ROOT).as_posix()
    if file in EXCEPTIONS:
        return
    found = [
        f"{file}:{line}: in {name}: {source}"
        for name, line, source in _bypasses(path.read_text())
        if f"{file}:{name}" not in EXCEPTIONS
    ]
    assert not found, "open it with langptune.files, or say in EXCEPTIONS why not:\n" + "\n".join(found)


def test_the_rules_write_by_the_helper_too():
    """Snakemake's language is not Python, so a line with a write must name the path that ``whole`` gave."""
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in [ROOT / "workflow" / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\.write_(text|bytes|csv|parquet)\(|\bopen\(|shutil\.|symlink|[^2]> ?\{", line)
        and not line.strip().startswith("part.write_")
    ]
    assert not found


def test_every_exception_is_needed():
    known = {}
    for path in SOURCES:
        file = path.relative_to(ROOT).as_posix()
        known |= {f"{file}:{name}": None for name, _, _ in _bypasses(path.read_text())} | {file: None}
    assert set(EXCEPTIONS) <= set(known)


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='r+')",
        "path.open(mode)",
        "gzip.open(path, 'wt')",
        "path.write_text('')",
        "(folder / 'a').write_bytes(b'')",
        "frame.write_parquet(path)",
        "ParquetWriter(path, schema)",
        "figure.savefig(path)",
        "model.save_pretrained(str(folder))",
        "save_file(tensors, path)",
        "shutil.copy(part, path)",
        "shutil.copytree(part, path)",
        "os.symlink(part, path)",
        "os.makedirs(path)",
        "os.open(path, os.O_CREAT)",
        "path.mkdir()",
        "json.dump(data, path.open('w'))",
        "torch.save(data, path)",
        "zipfile.ZipFile(path, 'w')",
    ],
)
def test_the_search_finds(line):
    assert _bypasses(f"def f(path):\n    with whole(path) as part:\n        {line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "part.write_text('')",
        "(part / 'a').open('w')",
        "frame.write_csv(part)",
        "ParquetWriter(part, schema)",
        "model.save_pretrained(str(part))",
        "shutil.copy(path, part / 'a')",
        "path.open()",
        "gzip.open(path, 'rb')",
        "text.replace('a', 'b')",
        "zipfile.ZipFile(path)",
    ],
)
def test_the_search_passes(line):
    assert not _bypasses(f"def f(path):\n    with whole(path) as part:\n        {line}\n")
