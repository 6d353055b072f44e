"""MovieLens from its original archives: 1M and 10M (``::`` between cells), 20M, 25M and later (CSV)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import polars as pl

from langptune.config.datasets import DatasetEntry
from langptune.data.raw import Raw
from langptune.data.readers import checks
from langptune.data.readers.titles import articles_first
from langptune.errors import UserError

RATINGS = ["user_id", "item_id", "rating", "timestamp"]
ITEMS = ["item_id", "title", "genres"]
USERS = ["user_id", "gender", "age", "occupation", "zip_code"]

# Codes of users.dat, as the README of MovieLens-1M gives them.
AGES = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or older",
}
OCCUPATIONS = [
    "other",
    "academic or educator",
    "artist",
    "clerical or admin",
    "college or grad student",
    "customer service",
    "doctor or health care",
    "executive or managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales or marketing",
    "scientist",
    "self-employed",
    "technician or engineer",
    "tradesman or craftsman",
    "unemployed",
    "writer",
]


def read_movielens(folder: Path, entry: DatasetEntry, scratch: Path | None) -> Raw:
    """ratings, movies and (1M) users, as ``.dat`` or ``.csv``: in ``folder``, in a folder inside it, or in a ``.zip``
    there. Item fields: title, year, genres.

    Raises:
        UserError: no archive, a damaged one, a cell too many, a number that is none, an unknown item.
    """
    source = _Source(folder)
    ratings = source.table("ratings", RATINGS)
    interactions = ratings.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        "user_id",
        "item_id",
        checks.number(ratings, "rating", pl.Float32, source.path("ratings"), source.first),
        checks.number(ratings, "timestamp", pl.Int64, source.path("ratings"), source.first),
    )
    checks.ratings_inside(interactions, entry.rating_range, source.path("ratings"), source.first)
    items = checks.year_apart(source.table("movies", ITEMS)).with_columns(
        pl.col("genres").str.replace("(no genres listed)", "", literal=True).str.replace_all("|", ", ", literal=True)
    )
    items = articles_first(items, entry)
    checks.ids_agree(interactions, items, source.path("ratings"), source.path("movies"), source.first)
    users = None
    if source.has("users"):
        jobs = {str(code): name for code, name in enumerate(OCCUPATIONS)}
        users = source.table("users", USERS).with_columns(
            pl.col("gender").replace({"F": "female", "M": "male"}),
            pl.col("age").replace(AGES),
            pl.col("occupation").replace(jobs),
        )
    return Raw(interactions, items.lazy(), users, source.files)


class _Source:
    """The archive's files, wherever they lie."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._zip: zipfile.ZipFile | None = None
        loose = sorted([*folder.glob("ratings.*"), *folder.glob("*/ratings.*")])
        if loose:
            self._names = {path.stem: path for path in loose[0].parent.iterdir()}
            self.files = [self._names[stem] for stem in ("ratings", "movies", "users") if stem in self._names]
        else:
            archives = sorted(folder.glob("*.zip"))
            if len(archives) != 1:
                raise UserError(f"{folder}: expected the archive (.zip) or its files, found {len(archives)} archives")
            self.files = archives
            try:
                self._zip = zipfile.ZipFile(archives[0])
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{archives[0]}: not a whole zip archive ({error}); download it again") from None
            self._names = {Path(name).stem: Path(name) for name in self._zip.namelist() if not name.endswith("/")}
        if not {"ratings", "movies"} <= self._names.keys():
            raise UserError(f"{self.files[0].parent}: ratings and movies must stand beside each other")
        self._dat = self._names["ratings"].suffix == ".dat"
        self.first = 1 if self._dat else 2
        """The line of the first row: only CSV files have a header."""

    def has(self, stem: str) -> bool:
        return self._dat and stem in self._names

    def path(self, stem: str) -> Path:
        """How errors name a file."""
        return self.files[0] / self._names[stem].name if self._zip else self._names[stem]

    def table(self, stem: str, columns: list[str]) -> pl.DataFrame:
        """A file's columns, all as text, under our names (which are in the order of the files)."""
        name = self._names[stem]
        try:
            data = self._zip.read(str(name)) if self._zip else name.read_bytes()
            if self._dat:
                try:
                    data.decode()
                except UnicodeDecodeError:  # movies.dat of 1M is Latin-1
                    data = data.decode("latin-1").encode()
                table = pl.read_csv(
                    io.BytesIO(data.replace(b"::", b"\x1f")),
                    separator="\x1f",
                    has_header=False,
                    quote_char=None,
                    infer_schema=False,
                )
            else:
                table = pl.read_csv(io.BytesIO(data), infer_schema=False)
        except (pl.exceptions.PolarsError, zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{self.path(stem)}: cannot be read: {str(error)[:200]}") from None
        if table.width < len(columns):
            raise UserError(f"{self.path(stem)}: {table.width} columns, expected {len(columns)}: {', '.join(columns)}")
        table = table.select(table.columns[: len(columns)]).rename(dict(zip(table.columns, columns, strict=False)))
        checks.filled(table, columns[:2], self.path(stem), self.first)
        return table.with_columns(pl.all().fill_null(""))
