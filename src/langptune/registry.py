"""A folder as a registry: each file is an entry, and its name is the entry's name."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from langptune.alike import nearest
from langptune.errors import UserError
from langptune.reading import read_plain

SOURCES = Path(__file__).resolve().parents[1]


class Registry:
    """The modules of a package, by name.

    Names and constants are read from the files, so that a workflow is parsed without the imports of the entries.
    """

    def __init__(self, package: str):
        """``package``: a dotted name, such as ``langptune.figures.comparison``."""
        self.package = package
        self.folder = SOURCES / Path(*package.split("."))

    def names(self) -> list[str]:
        """All entries, in alphabetical order."""
        return sorted(path.stem for path in self.folder.glob("*.py") if path.stem != "__init__")

    def file(self, name: str) -> Path:
        """The file of an entry.

        Raises:
            UserError: there is no such entry.
        """
        if name not in (names := self.names()):
            raise UserError(f"{self.package}: no entry '{name}'{nearest(name, names)}")
        return self.folder / f"{name}.py"

    def constants(self, name: str) -> dict[str, Any]:
        """The literal constants at the top level of an entry's file.

        Raises:
            UserError: there is no such entry, or its file is not Python.
        """
        path = self.file(name)
        try:
            body = ast.parse(read_plain(path)).body
        except SyntaxError as error:
            raise UserError(f"{path}: line {error.lineno}: {error.msg}") from None
        found = {}
        for line in body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                try:
                    found[line.targets[0].id] = ast.literal_eval(line.value)
                except ValueError:
                    continue  # computed values are known only after an import
        return found

    def module(self, name: str) -> str:
        """The dotted name of an entry's module.

        Raises:
            UserError: there is no such entry.
        """
        return f"{self.package}.{self.file(name).stem}"

    def load(self, name: str) -> ModuleType:
        """An entry's module, imported.

        Raises:
            UserError: there is no such entry, its file is not Python, or something that it imports is missing.
        """
        try:
            return importlib.import_module(self.module(name))
        except SyntaxError as error:
            raise UserError(f"{error.filename}: line {error.lineno}: {error.msg}") from None
        except ImportError as error:
            raise UserError(f"{self.file(name)}: {error}") from None
