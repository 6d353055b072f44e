"""Edits as people type them (tests/free_edits.yaml): they name what exists, and plain ones are obeyed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks import free_edits
from langptune.config.load import load
from langptune.data import contracts
from langptune.errors import UserError
from langptune.language.tastes import tastes_of
from langptune.models.load import load_decoder
from langptune.ranking.decoder import embed_items
from langptune.ranking.edited import CachedReader
from langptune.ranking.queries import denials_of
from tests.conftest import ROOT
from tests.unit.test_config import base

GENRES = ["Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
          "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]  # fmt: skip
"""The genres of MovieLens-100K."""
FILMS = ["Alien", "Scream", "The Godfather", "Star Wars", "Blade Runner", "The Sound of Music"]
"""Titles of MovieLens-100K that edits name."""


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    """Five items of each genre, and the films."""
    named = [(f"Film {at}", genre) for at, genre in enumerate(genre for genre in GENRES for _ in range(5))]
    rows = [
        (at, str(at), title, f"{title} (1990). Genres: {genre}", None, genre)
        for at, (title, genre) in enumerate([*named, *((film, "Drama") for film in FILMS)])
    ]
    return pl.DataFrame(rows, schema={**contracts.ITEMS, "genres": pl.String}, orient="row")


def test_every_edit_names_tastes_and_titles_of_the_catalogue(items):
    edits = free_edits.read_edits()
    assert len(edits) >= 40 and len({edit.text for edit in edits}) == len(edits)
    tastes, titles = tastes_of(items, "genres"), items["title"].to_list()
    for edit in edits:
        for name in (*edit.up, *edit.down):
            assert free_edits.items_of(name, tastes, titles).any(), edit
    with pytest.raises(UserError, match="'Horor' is neither a taste nor a title"):
        free_edits.items_of("Horor", tastes, titles)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ("{where: after, text: x}", "'up' or 'down' are needed"),
        ("{where: amid, text: x, up: [War]}", "'where' is before, after or replace"),
        ("{where: after, txt: x, up: [War]}", "unexpected keyword argument 'txt'"),
    ],
)
def test_an_entry_that_cannot_be(tmp_path, entry, line):
    (tmp_path / "edits.yaml").write_text(f"edits:\n- {entry}\n")
    with pytest.raises(UserError, match=line) as caught:
        free_edits.read_edits(tmp_path / "edits.yaml")
    assert "entry 1" in str(caught.value) and "\n" not in str(caught.value)


def test_an_edit_is_obeyed_if_all_that_it_names_moves_as_it_should(items):
    tastes, titles = tastes_of(items, "genres"), items["title"].to_list()
    edits = [
        free_edits.FreeEdit("after", "x", up=("War",), down=("Horror",)),
        free_edits.FreeEdit("after", "x", up=("Alien",)),
    ]
    before = np.zeros((2, len(items)))
    after = np.zeros((2, 2, len(items)))
    after[0, :] += tastes.has[:, tastes.names.index("War")]
    after[0, 1] -= tastes.has[:, tastes.names.index("Horror")]
    after[1, 0] += free_edits.items_of("Alien", tastes, titles)
    assert free_edits.obeyed(edits, before, after, tastes, titles).tolist() == [[True, True], [True, False]]
    low, high = free_edits.interval(np.array([[True, False]] * 40), resamples=200)
    assert 0 <= low < 0.5 < high <= 1


@pytest.fixture(scope="module")
def decoder(real_models):
    return load_decoder(real_models / "minilm-l6", load(base(), ROOT).models["minilm-l6"], "cpu")


@pytest.mark.models
def test_the_untrained_decoder_obeys_most_plain_edits_with_denials(items, decoder, one_thread):
    edits = [edit for edit in free_edits.read_edits() if edit.plain]
    assert sum(bool(edit.down) for edit in edits) >= 8 and sum(bool(edit.up) for edit in edits) >= 5
    profiles = ["This user enjoys dramas of the 1990s.", "This user enjoys mysteries and crime films."]
    texts = [edit.applied(profile) for edit in edits for profile in profiles]
    tastes, vectors = tastes_of(items, "genres"), embed_items(decoder, items["text"].to_list(), "")[0]
    shares, reader = {}, CachedReader(decoder, vectors, "")
    for weight in (0.0, 0.5):
        denials = denials_of(items, "genres", weight)
        before, after = (reader.similarities(part, denials) for part in (profiles, texts))
        after = after.reshape(len(edits), len(profiles), -1)
        found = free_edits.obeyed(edits, before, after, tastes, items["title"].to_list())
        shares[weight] = found.mean()
        denied = np.array([bool(edit.down) for edit in edits])
        assert weight == 0 or found[denied].mean() > 0.8
    assert shares[0.5] > 0.7 and shares[0.5] > shares[0.0] + 0.2
