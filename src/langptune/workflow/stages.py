"""The declarations of a stage's script for the workflow.

The workflow reads these names of ``scripts/X.py``, and runs only the lines that they need. So parsing a workflow does
not import the libraries that a script imports at its top for its job.

- ``spec(project, job)``: the settings of a job, as fields of its ``Spec``. Fields that end in ``_in`` and ``_out`` come
  from the inputs and outputs of its rule, which have the same names.
- ``needs(project, job)``: a ``langptune.workflow.needs.Needs``.
- ``amount(spec, sizes)`` (optional): a ``langptune.workflow.amounts.Work``, from a finished spec; without it, one job.
- ``unreached(project, job)``, ``loads(project, job)`` (optional): modules that a job does not use, or loads by name;
  equal to the result of the ``Spec`` method of the same name in the job.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType

from langptune.errors import UserError
from langptune.provenance import defining
from langptune.reading import read_plain

REQUIRED = ("spec", "needs")
# `unreached` and `loads` are in a script twice, because rule and job know different things. The rule needs them before
# it knows any file, and does not import the script's `Spec`. The job has its spec, but no project: the name of a figure
# is a wildcard of the rule, and only part of a file name in the spec. tests/workflow/test_specs.py compares the two for
# every job of the shipped configs.
OPTIONAL = ("unreached", "loads", "amount")


@cache
def declared(script: Path) -> ModuleType:
    """The declarations of a script, as a module.

    Raises:
        UserError: the script is missing or not Python, or something that its declarations import is missing.
    """
    module = ModuleType(f"{script.stem} (declarations)")
    module.__file__ = str(script)
    try:
        tree = defining(read_plain(script).decode("utf-8"), script, (*REQUIRED, *OPTIONAL))
        exec(compile(tree, str(script), "exec"), vars(module))
    except SyntaxError as error:
        raise UserError(f"{script}: line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError, ImportError) as error:
        raise UserError(f"{script}: {error}") from None
    return module


def stage(script: Path) -> ModuleType:
    """The declarations of a script of the workflow.

    Raises:
        UserError: one of ``REQUIRED`` is missing.
    """
    module = declared(script)
    for name in REQUIRED:
        if not hasattr(module, name):
            raise UserError(f"{script}: a stage defines {name}(project, job); docs/extend.md shows one")
    return module


def digest(folder: Path, name: str) -> str:
    """A digest of one declaration in all scripts of a folder, for a rule whose job reads it from all of them."""
    content = hashlib.sha256()
    for script in sorted(folder.glob("*.py")):
        source = read_plain(script).decode("utf-8")
        if f"def {name}(" in source:
            content.update(f"{script.stem} {ast.dump(defining(source, script, [name]))}\n".encode())
    return content.hexdigest()[:16]
