"""A synthetic archive with the format and size of MovieLens-1M: 1,000,209 ratings, 6,040 users, 3,883 films.

As in the real archive, 3,706 films are rated, every user has at least 20 ratings, and 6,040 users and 3,416 films
survive the 5-core. Popularity and activity are long-tailed. Users prefer some genres, and what a user rates next
depends on what came before, so that models have something to learn. Quality measured on it means nothing.

``python -m tests.movielens FOLDER`` writes ``FOLDER/ml-1m.zip``.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import polars as pl

USERS, FILMS, RATED, CORE, RATINGS = 6_040, 3_883, 3_706, 3_416, 1_000_209
LEAST = 20
"""Fewest ratings of a user in the core."""
GENRES = ("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Drama", "Horror", "Romance", "Thriller")
BEGIN, END = 956_703_932, 1_046_454_590
"""Times of the first and the last rating, in seconds since 1970."""


def ratings(seed: int = 0) -> pl.DataFrame:
    """Columns user, film, rating, time; users and films are numbered from 1."""
    rng = np.random.default_rng(seed)
    rare = rng.integers(1, 5, RATED - CORE)  # too few ratings for the core
    counts = _activity(rng, RATINGS - int(rare.sum()))
    popularity = 1.0 / (np.arange(CORE) + 60.0)
    genre, taste = rng.integers(0, len(GENRES), CORE), rng.integers(0, len(GENRES), USERS)
    rows = []
    for user, count in enumerate(counts):
        weights = np.log(popularity) + 1.5 * (genre == taste[user])
        # The largest keys are a sample without replacement in proportion to the weights, in the order of the draws.
        keys = weights + rng.gumbel(size=CORE)
        rows.append(np.argsort(-keys)[:count])
    films, users = np.concatenate(rows), np.repeat(np.arange(USERS), counts)
    start = rng.integers(BEGIN, END - 40_000_000, USERS)
    times = start[users] + np.concatenate([np.sort(rng.integers(0, 40_000_000, count)) for count in counts])
    films = np.concatenate([films, np.repeat(np.arange(CORE, RATED), rare)])
    few = np.concatenate([rng.choice(USERS, count, replace=False) for count in rare])
    users, times = np.concatenate([users, few]), np.concatenate([times, start[few]])
    stars = rng.choice([1, 2, 3, 4, 5], len(users), p=[0.06, 0.11, 0.26, 0.35, 0.22])
    return pl.DataFrame({"user": users + 1, "film": films + 1, "rating": stars, "time": times})


def _activity(rng: np.random.Generator, total: int) -> np.ndarray:
    """Ratings per user, at least ``LEAST``, long-tailed, with the given sum."""
    raw = rng.lognormal(4.2, 1.0, USERS)
    counts = np.minimum(LEAST + (raw / raw.sum() * (total - LEAST * USERS)).astype(int), 2_000)
    lacking = total - int(counts.sum())
    counts += lacking // USERS
    counts[: lacking % USERS] += 1
    return counts


def write(folder: Path, seed: int = 0) -> Path:
    """Write ``ml-1m.zip`` into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed + 1)
    table = ratings(seed).sample(fraction=1.0, shuffle=True, seed=seed).sort("user", maintain_order=True)
    rows = table.select(pl.concat_str(pl.all().cast(pl.String), separator="::").str.join("\n")).item()
    films = [
        f"{film}::Film {film} ({1950 + film % 50})::{'|'.join(rng.choice(GENRES, 2, replace=False))}"
        for film in range(1, FILMS + 1)
    ]
    people = [f"{user}::{'FM'[user % 2]}::25::{user % 21}::55117" for user in range(1, USERS + 1)]
    path = folder / "ml-1m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name, text in (("ratings", rows), ("movies", "\n".join(films)), ("users", "\n".join(people))):
            packed.writestr(f"ml-1m/{name}.dat", f"{text}\n".encode("latin-1"))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(write(parser.parse_args().folder))
