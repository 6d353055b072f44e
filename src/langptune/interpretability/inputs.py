"""Loads the sessions to measure, each with its profile and the history that its encoder saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from pydantic import Field

from langptune.data import contracts
from langptune.errors import UserError
from langptune.interpretability.faithfulness import Catalogue
from langptune.language.claims import title_key
from langptune.language.tastes import tastes_of
from langptune.profiles.shuffle import deal
from langptune.randomness import numbered
from langptune.stage import StageSpec


class ProfileSpec(StageSpec):
    """Profiles and their sessions: the settings that all measures share."""

    items_in: str
    sessions_in: str
    evaluation_in: str
    profiles_in: str
    history_items: int = Field(description="most recent items that the encoder saw")
    shuffle: int | None = Field(None, description="deal each session the profile of another user, by this seed")
    sessions: int = Field(description="how many test sessions, drawn at random")
    seed: int = Field(0, description="of that draw and of every other")
    taste_field: str | None = Field(None, description="item field of genres; null: tags are mined from texts")


def drawn(evaluation: Sequence[int], count: int, seed: int) -> list[int]:
    """``count`` test sessions, drawn at random but the same for every method; all if there are fewer."""
    ids = np.sort(np.asarray(evaluation))
    return np.sort(numbered(seed, 1).permutation(ids)[:count]).tolist()


def load(spec: ProfileSpec) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The items, and one row per measured session.

    Returns:
        Contract ``items``; and contract ``sessions`` with columns profile, shown and shown_ratings (the items that the
        encoder saw), in ascending order of session.

    Raises:
        UserError: a file is invalid, or a session has no profile.
    """
    items = contracts.read(spec.items_in, "items")
    test = contracts.read(spec.evaluation_in, "evaluation").filter(pl.col("split") == "test").select("session")
    sessions = contracts.read(spec.sessions_in, "sessions").join(test, on="session", how="semi").sort("session")
    profiles = contracts.read(spec.profiles_in, "profiles")
    if profiles["sample"].max():
        raise UserError(f"{spec.profiles_in}: several profiles a session; measures are of methods with one")
    if spec.shuffle is not None:
        profiles = deal(profiles, dict(sessions.select("session", "user_id").iter_rows()), spec.shuffle)
    kept = drawn(sessions["session"].to_list(), spec.sessions, spec.seed)
    measured = sessions.filter(pl.col("session").is_in(kept)).join(
        profiles.select("session", "profile"), on="session", how="left", maintain_order="left"
    )
    if missing := measured["profile"].null_count():
        raise UserError(
            f"{spec.profiles_in}: {missing} of {len(measured)} sessions have no profile; rerun the profiles"
        )
    return items, measured.with_columns(
        shown=pl.col("history").list.tail(spec.history_items),
        shown_ratings=pl.col("ratings").list.tail(spec.history_items),
    )


def catalogue_of(items: pl.DataFrame, taste_field: str | None) -> Catalogue:
    """The catalogue against which claims are checked; decades come from the items' field ``year`` if there is one."""
    years = (
        items["year"].str.extract(r"^([0-9]{4})", 1).cast(pl.Int32).fill_null(0) if "year" in items.columns else None
    )
    decade = np.zeros(len(items), dtype=np.int64) if years is None else years.to_numpy() // 10 * 10
    keys = [title_key(title) for title in items["title"].to_list()]
    return Catalogue(keys, items["text"].to_list(), decade, tastes_of(items, taste_field))
