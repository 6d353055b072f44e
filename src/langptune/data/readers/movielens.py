"""Reads MovieLens from its original archives: 1M and 10M (``::`` between cells), 20M, 25M and later (CSV).

The files of 20M from other sites (``rating.csv``, ``movie.csv``, times as text) are supported too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from langptune.config.datasets import DatasetEntry
from langptune.data import bounded
from langptune.data.reader_output import Raw
from langptune.data.readers import cells, checks
from langptune.data.readers.times import times
from langptune.data.readers.titles import articles_first, year_apart
from langptune.errors import UserError

# Our names of the columns: by position in .dat files, which have no header, and by the name in the header of CSV files.
RATINGS = {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"}
ITEMS = {"item_id": "movieId", "title": "title", "genres": "genres"}
USERS = {"user_id": "", "gender": "", "age": "", "occupation": "", "zip_code": ""}
# The files of each kind of archive; other files are ignored.
LAYOUTS = (
    {"ratings": "ratings.dat", "movies": "movies.dat", "users": "users.dat"},
    {"ratings": "ratings.csv", "movies": "movies.csv"},
    {"ratings": "rating.csv", "movies": "movie.csv"},
)

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
    """Read ratings, movies and (1M) users, as ``.dat`` or ``.csv``: in ``folder``, in a folder inside it, or in a
    ``.zip`` there. Item fields: title, year, genres.

    Raises:
        UserError: the archive is missing or damaged, a row has too many cells, a number is invalid, or an item is
            unknown.
    """
    source = _source(folder)
    ratings, movies = source.table("ratings", RATINGS), source.table("movies", ITEMS)
    notes = [*ratings.notes, *movies.notes]
    interactions = pl.DataFrame(
        {
            "row": pl.int_range(len(ratings), dtype=pl.Int64, eager=True),
            "user_id": checks.ids(ratings, "user_id"),
            "item_id": checks.ids(ratings, "item_id"),
            "rating": checks.number(ratings, "rating", pl.Float32),
            "timestamp": times(ratings, "timestamp", notes),
        }
    )
    checks.ratings_inside(interactions["rating"], entry.rating_range, ratings)
    checks.filled(movies, "title")
    items = movies.frame.with_columns(checks.ids(movies, "item_id"))
    checks.items_known(interactions, items, ratings, movies)
    users = None
    if "users" in source.names:
        table = source.table("users", USERS)
        checks.unique(checks.ids(table, "user_id"), table, "user")
        jobs = {str(code): name for code, name in enumerate(OCCUPATIONS)}
        users = table.frame.with_columns(
            pl.col("gender").replace({"F": "female", "M": "male"}),
            pl.col("age").replace(AGES),
            pl.col("occupation").replace(jobs),
        )

    def arranged(items: pl.DataFrame) -> pl.DataFrame:
        genres = pl.col("genres").str.replace("(no genres listed)", "", literal=True)
        return articles_first(year_apart(items).with_columns(genres.str.replace_all("|", ", ", literal=True)), entry)

    return Raw(interactions, items.lazy(), users, source.files, arrange_items=arranged, notes=notes)


@dataclass(frozen=True)
class _Source:
    """The files of one archive, packed or not.

    where: the folder of the files, or the archive.
    names: "ratings", "movies" and, if present, "users" -> the name in the folder or within the archive.
    """

    where: Path
    names: dict[str, str]

    @property
    def packed(self) -> bool:
        return self.where.is_file()

    @property
    def files(self) -> list[Path]:
        """The files to read."""
        return [self.where] if self.packed else [self.where / name for name in self.names.values()]

    def table(self, stem: str, columns: dict[str, str]) -> cells.Table:
        """A file's columns as text, under our names."""
        name = self.names[stem]
        path = self.where / PurePosixPath(name).name
        data = bounded.member(self.where, name, path) if self.packed else cells.content(path)
        if name.endswith(".dat"):
            try:
                data.decode()
            except UnicodeDecodeError:  # movies.dat of 1M is Latin-1
                data = data.decode("latin-1").encode()
            return cells.delimited(data, path, "::", columns=list(columns), quoted=False, header=False)
        table = cells.delimited(data, path, ",", columns=list(columns.values()), quoted=True)
        ours = {theirs: name for name, theirs in columns.items()}
        return cells.Table(path, table.frame.rename(ours), table.lines, notes=table.notes)


def _source(folder: Path) -> _Source:
    """The set of MovieLens files in a folder.

    Raises:
        UserError: there is none, more than one, or a damaged archive.
    """
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found, broken = [], []
    for base in [folder, *(path for path in there if path.is_dir())]:
        names = {path.name: path.name for path in base.iterdir() if path.is_file()}
        found += [_Source(base, layout) for layout in _layouts(names)]
    for path in there:
        if path.suffix.lower() == ".zip" and path.is_file():
            try:
                inside = bounded.members(path)
            except bounded.ZIP_ERRORS as error:
                broken.append(f"{path}: not a whole zip archive ({str(error)[:100]}); download it again")
                continue
            folders: dict[str, dict[str, str]] = {}
            for name in inside:
                parent, _, own = name.rpartition("/")
                folders.setdefault(parent, {})[own] = name
            for names in folders.values():
                found += [_Source(path, layout) for layout in _layouts(names)]
    if len(found) > 1:
        which = " and ".join(str(source.where / PurePosixPath(source.names["ratings"])) for source in found[:3])
        raise UserError(f"{folder}: {which} are there; keep one of them, so that it is clear which is read")
    if found:
        return found[0]
    if broken:
        raise UserError(broken[0])
    pairs = ", ".join(f"{layout['ratings']} and {layout['movies']}" for layout in LAYOUTS)
    raise UserError(
        f"{folder}: expected a MovieLens archive (.zip) or its files ({pairs}), in the folder or in one inside it; "
        f"found {', '.join(path.name for path in there[:8]) or 'nothing'}{' ...' if len(there) > 8 else ''}"
    )


def _layouts(names: dict[str, str]) -> list[dict[str, str]]:
    """The complete layouts among files, with the name of each file."""
    return [
        {stem: names[name] for stem, name in layout.items() if name in names}
        for layout in LAYOUTS
        if layout["ratings"] in names and layout["movies"] in names
    ]
