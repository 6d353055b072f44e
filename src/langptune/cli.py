"""The command ``langptune``, which runs the scripts of a checkout by name, and the exit of scripts for users."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from langptune.errors import UserError

TOOLS = {
    "plan": "what a config still has to compute: jobs, hours and disk",
    "doctor": "what this machine offers, and what is missing for a config",
    "show": "the tables of a config's run, or its HTML report",
    "explore": "finished results as a local page",
    "keep": "the small files of a finished comparison, for git",
    "crate": "an RO-Crate of a finished results folder",
}
"""Scripts for users -> their output. All others except `launch` are stages."""
STAGE = "a single script, as a rule runs it: --spec, --log"
VARIABLE = "LANGPTUNE"


def finish(main: Callable[[], int]) -> NoReturn:
    """Run the ``main`` of a script for users, and exit with its status.

    A ``UserError`` becomes one line on standard error and exit status 2, Ctrl-C one line and 130.
    """
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def checkout() -> Path:
    """The checkout whose scripts are run: the one that ``LANGPTUNE`` names, else the current folder.

    Raises:
        UserError: it is not a checkout.
    """
    named = os.environ.get(VARIABLE)
    folder = Path(named) if named else Path.cwd()
    if all((folder / part).is_file() for part in ("workflow/Snakefile", "scripts/plan.py", "src/langptune/cli.py")):
        return folder.resolve()
    what = f"{VARIABLE}={named}" if named else str(folder)
    raise UserError(f"{what}: not a checkout of LangPTune; run it in one, or `export {VARIABLE}=/path/to/checkout`")


def stages(root: Path) -> list[str]:
    """The names of a checkout's stages."""
    return sorted(path.stem for path in (root / "scripts").glob("*.py") if path.stem not in (*TOOLS, "launch"))


def langptune() -> int:
    """Replace this process by the requested script, with the library of its checkout.

    Raises:
        UserError: there is no checkout, or no such stage.
    """
    commands = "\n".join(f"  {name:<10} {gives}" for name, gives in {**TOOLS, "stage NAME": STAGE}.items())
    parser = argparse.ArgumentParser(
        prog="langptune",
        description=f"commands (each has --help):\n{commands}",
        epilog=f"In a checkout, or with {VARIABLE}=/path/to/checkout. All jobs of a config: snakemake, or make demo.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=[*TOOLS, "stage"], metavar="command")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    args = parser.parse_args()
    root, name, rest = checkout(), args.command, args.arguments
    from langptune import processes  # imported late, so that help and errors are fast

    if name == "stage":
        from langptune.config.base import nearest

        known = stages(root)
        name, rest = (rest[0], rest[1:]) if rest else ("", [])
        if name not in known:
            raise UserError(f"stage '{name}': no such stage{nearest(name, known)}")
    path = os.pathsep.join(part for part in (str(root / "src"), processes.places().get("PYTHONPATH", "")) if part)
    environment = {**os.environ, **processes.places(), "PYTHONPATH": path, VARIABLE: str(root)}
    processes.become(processes.python(root / "scripts" / f"{name}.py", *rest), environment)


def main() -> NoReturn:
    """The entry point of the installed command."""
    finish(langptune)
