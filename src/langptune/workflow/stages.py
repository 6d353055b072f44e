"""What a stage's script declares to the workflow.

Of ``scripts/X.py`` the workflow takes these names, and runs only the lines that they need: so a script imports at its
top what its job needs, and parsing a workflow needs none of it.

- ``spec(project, job)``: the settings of a job, as fields of its ``Spec``. Fields that end in ``_in`` and ``_out`` come
  from the inputs and outputs of its rule, which have the same names.
- ``needs(project, job)``: a ``langptune.workflow.needs.Needs``.
- ``unreached(project, job)``, ``loads(project, job)`` (optional): modules that a job does not reach, or loads by name,
  as its ``Spec`` says in the job itself.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

from langptune.errors import UserError
from langptune.files import read_plain
from langptune.provenance import defining

REQUIRED = ("spec", "needs")
OPTIONAL = ("unreached", "loads")


@cache
def declared(script: Path) -> ModuleType:
    """The declarations of a script, as a module.

    Raises:
        UserError: a declaration is missing.
    """
    tree = defining(read_plain(script).decode("utf-8"), script, (*REQUIRED, *OPTIONAL))
    module = ModuleType(f"{script.stem} (declarations)")
    module.__file__ = str(script)
    exec(compile(tree, str(script), "exec"), vars(module))
    for name in REQUIRED:
        if not hasattr(module, name):
            raise UserError(f"{script}: a stage defines {name}(project, job); docs/extend.md shows one")
    return module
