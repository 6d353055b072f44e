"""The metrics of recommended lists (``langptune.list_metrics``) over the runs of a comparison, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse

from langptune import list_metrics
from langptune.comparison import bootstrap, differences
from langptune.config.base import Strict
from langptune.data import contracts
from langptune.data.interactions import popularity
from langptune.errors import UserError
from langptune.list_metrics import Facts, Lists


class RankedRun(Strict):
    """One run and the file with its lists."""

    method: str
    models: str
    seed: int
    ranks_path: str


@dataclass(frozen=True)
class Row:
    """A method with its models.

    values: metric -> float64 ``[S, R]``, or ``[R]`` for a metric of all lists together; S sessions, R seeds.
    """

    method: str
    models: str
    values: dict[str, np.ndarray]

    @property
    def key(self) -> str:
        """``method/models``."""
        return f"{self.method}/{self.models}"


def facts_of(items: pl.DataFrame, sessions: pl.DataFrame, compared: pl.DataFrame, genres: np.ndarray | None) -> Facts:
    """The facts that metrics read.

    Args:
        items: contract ``items``.
        sessions: contract ``sessions``, of which columns user_id, split, history and target are read.
        compared: the compared sessions, of which column seen is read.
        genres: bool ``[N, G]``, whether an item has a genre; None where the dataset has none.
    """
    return Facts(
        popularity(sessions, len(items)),
        sessions.filter(pl.col("split") == "train")["user_id"].n_unique(),
        _history(compared["seen"], len(items)),
        genres if genres is not None and genres.shape[1] else None,
        _words(items["text"].to_list()),
    )


def _history(seen: pl.Series, n_items: int) -> sparse.csr_array:
    ends = np.concatenate([[0], seen.list.len().to_numpy().astype(np.int64).cumsum()])
    items = seen.explode().to_numpy(writable=True) if len(seen) else np.empty(0, dtype=np.int64)
    out = sparse.csr_array((np.ones(len(items)), items, ends), shape=(len(seen), n_items))
    out.sum_duplicates()
    out.data[:] = 1.0
    return out


def _words(texts: Sequence[str]) -> sparse.csr_array | None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return sparse.csr_array(TfidfVectorizer().fit_transform(texts))
    except ValueError:  # no text has a word
        return None


def read(path: str, sessions: np.ndarray, k: int, n_items: int) -> Lists:
    """The first k items of each session's list.

    Args:
        path: ranks.parquet of a run; it may hold more sessions.
        sessions: int ``[S]``, the compared sessions.

    Raises:
        UserError: a session is missing, repeated or without a list, or an item is outside the catalogue.
    """
    frame = contracts.read(path, "ranks", ["session", "top"])
    if frame["session"].is_duplicated().any():
        raise UserError(f"{path}: some sessions are ranked twice; rerun the rule that makes it")
    wanted = pl.DataFrame({"session": sessions}, schema={"session": pl.Int32})
    tops = wanted.join(frame, on="session", how="left", maintain_order="left")["top"].list.head(k)
    lengths = tops.list.len().fill_null(0).to_numpy()
    if len(lacking := np.flatnonzero(lengths == 0)):
        raise UserError(
            f"{path}: column 'top': {len(lacking)} of {len(sessions)} compared sessions (first: session "
            f"{sessions[lacking[0]]}) have no list; rerun the rule that makes it"
        )
    flat = tops.explode()
    if not flat.is_between(0, n_items - 1).fill_null(False).all():
        raise UserError(
            f"{path}: column 'top': an item lies outside 0..{n_items - 1}; the lists are of another catalogue"
        )
    items = np.full((len(sessions), k), -1, dtype=np.int64)
    items[np.arange(k) < lengths[:, None]] = flat.to_numpy()
    return Lists(items, n_items)


def collect(runs: Sequence[RankedRun], sessions: np.ndarray, facts: Facts, k: int) -> list[Row]:
    """The values of all metrics that the dataset allows, on all runs, in the order of the runs.

    Raises:
        UserError: see ``read``; or a run is listed twice.
    """
    cells: dict[tuple[str, str], dict[int, dict[str, np.ndarray | float]]] = {}
    left_out = list_metrics.left_out(facts)
    names = [name for name in list_metrics.names() if name not in left_out]
    for run in runs:
        seeds = cells.setdefault((run.method, run.models), {})
        if run.seed in seeds:
            raise UserError(f"runs: duplicate run {run.method}/{run.models} with seed {run.seed}; keep one")
        lists = read(run.ranks_path, sessions, k, len(facts.popularity))
        seeds[run.seed] = {name: list_metrics.values(name, lists, facts) for name in names}
    return [
        Row(*key, {name: np.stack([values[name] for values in seeds.values()], axis=-1) for name in names})
        for key, seeds in cells.items()
    ]


SCHEMA = {
    **dict.fromkeys(("metric", "title"), pl.String),
    "k": pl.Int64,
    **dict.fromkeys(("method", "models"), pl.String),
    "sessions": pl.Int64,
    **dict.fromkeys(("mean", "low", "high", *differences.COLUMNS), pl.Float64),
    "left_out": pl.String,
}


def table(
    rows: Sequence[Row],
    left_out: Mapping[str, str],
    reference: str,
    sessions: int,
    k: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """All metrics of all rows.

    Args:
        rows: from ``collect``.
        left_out: metric -> why it has no values; a line gives the reason.
        reference: the method that differences are taken to, of the same models (``grid.own_reference``).
        sessions: the number of compared sessions.
        k: cut-off of the lists.

    Returns:
        A line per metric, method and models: ``sessions``, ``mean`` over sessions and seeds with ``low`` and ``high``,
        and the ``differences.COLUMNS`` to the reference, null for the reference itself. Intervals are
        percentile-bootstrap intervals over sessions and seeds. Sessions without a value of some run are left out of a
        metric for all runs. A metric of all lists together has no intervals: a resample repeats sessions, so it has
        fewer distinct items than a sample of as many users would have.
    """
    bases = differences.bases(rows, reference)
    left_out, lines = dict(left_out), {name: [] for name in list_metrics.names()}
    for names, chosen in _of_the_same_sessions(rows):
        if not chosen.any():
            left_out |= dict.fromkeys(names, "no session has a value of every run")
            continue
        values = {row.key: np.stack([row.values[name][chosen] for name in names], axis=2) for row in rows}
        draws = bootstrap.replicates(values, resamples, seed)
        for row in rows:
            low, high = bootstrap.interval(draws[row.key], confidence)
            against = differences.against(values, draws, row.key, bases[row.key], confidence)
            for at, name in enumerate(names):
                own = {"sessions": int(chosen.sum()), "mean": float(values[row.key][:, :, at].mean())}
                own |= {"low": float(low[at]), "high": float(high[at])}
                lines[name].append(_named(row) | own | {key: column[at] for key, column in against.items()})
    for name in _measured(rows, per_session=False):
        means = {row.key: float(row.values[name].mean()) for row in rows}
        for row in rows:
            base = bases[row.key]
            own = {"difference": means[row.key] - means[base]} if base != row.key else {}
            lines[name].append(_named(row) | {"sessions": sessions, "mean": means[row.key]} | own)
    for name, reason in left_out.items():
        lines[name] = [{"left_out": reason}]
    out = [
        {**dict.fromkeys(SCHEMA), "metric": name, "title": list_metrics.metric(name).TITLE, "k": k, **line}
        for name, found in lines.items()
        for line in found
    ]
    return pl.DataFrame(out, schema=SCHEMA)


def _named(row: Row) -> dict[str, str]:
    return {"method": row.method, "models": row.models}


def _measured(rows: Sequence[Row], per_session: bool) -> list[str]:
    """The metrics that the rows have, of one kind."""
    return [name for row in rows[:1] for name in row.values if list_metrics.metric(name).PER_SESSION is per_session]


def _of_the_same_sessions(rows: Sequence[Row]) -> list[tuple[list[str], np.ndarray]]:
    """The metrics of sessions, grouped by the sessions on which every run has a value: bool ``[S]``."""
    groups: dict[bytes, list[str]] = {}
    for name in _measured(rows, per_session=True):
        defined = np.all([~np.isnan(row.values[name]).any(axis=1) for row in rows], axis=0)
        groups.setdefault(defined.tobytes(), []).append(name)
    return [(names, np.frombuffer(defined, dtype=bool)) for defined, names in groups.items()]
