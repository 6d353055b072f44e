"""Measures of profiles against texts and catalogues whose answers are known, and with the real embedded models."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from langptune.config.models import VerifierEntry
from langptune.config.workflow import load
from langptune.data import contracts
from langptune.errors import UserError
from langptune.interpretability import claims, faithfulness, simulation, steering, summary, wording
from langptune.interpretability.subjects import catalogue_of, drawn
from langptune.interpretability.tastes import tastes_of
from langptune.interpretability.wording import words
from langptune.models.load import load_decoder, load_encoder, load_verifier
from langptune.models.tiny import write_verifier
from tests.conftest import ROOT

GENRES = ["Western", "Horror", "Musical", "Sci-Fi", "Romance", "War"]


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    """Ten items of each genre and decade by turns; the titles say nothing."""
    rows = []
    for at in range(60):
        genre, year = GENRES[at % 6], 1940 + 10 * (at % 6)
        title = f"Quiet Parable {at}" if at % 2 else f"The Long Way to Number {at}"
        rows.append((at, str(at), title, f"{title} ({year}). Genres: {genre}", None, genre, str(year)))
    schema = {**contracts.ITEMS, "genres": pl.String, "year": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_wording_of_known_texts():
    told = wording.measure("The cat sat on the mat. The cat sat on the mat.", [])
    assert told.words == 12
    assert told.repetition == pytest.approx(4 / 10)  # of ten runs of three words, four stood there before
    assert told.reading_ease > 100 and told.grade < 1
    hard = wording.measure("Phenomenological considerations necessitate interdisciplinary epistemological inquiry.", [])
    assert hard.reading_ease < 0 < hard.grade
    empty = wording.measure("", ["Alien"])
    assert (empty.words, empty.repetition, empty.copied) == (0, 0, 0) and np.isnan(empty.reading_ease)


def test_copied_titles_are_caught():
    titles = ["Star Wars", "The Silence of the Lambs", "Fargo", "Heat"]
    assert wording.measure("Star Wars, The Silence of the Lambs, Fargo", titles).copied == 1
    assert wording.measure("The user enjoys stars, wars of the mind, and the heat of summer", titles).copied == 0
    assert wording.measure("Likes STAR WARS a lot", titles).copied == pytest.approx(2 / 5)
    assert wording.measure("silence of the lambs", titles).copied == 1  # a title without its article


def test_sameness_knows_one_text_for_all_from_texts_of_their_own():
    assert wording.sameness(["likes drama"] * 4) == pytest.approx(1)
    assert wording.sameness(["western", "horror", "musical"]) == pytest.approx(0)
    assert wording.sameness(["", ""]).tolist() == [0, 0] and wording.sameness(["alone"]).tolist() == [0]


def test_tastes_come_from_the_field_or_are_mined(items):
    tastes = tastes_of(items, "genres")
    assert tastes.names == sorted(GENRES) and tastes.has.sum() == 60
    told = "Loves science fiction, romantic stories and musicals; the warm war hero"
    assert [tastes.names[at] for at in tastes.in_text(told)] == ["Musical", "Romance", "Sci-Fi", "War"]
    assert tastes.in_text("warm wares, westernised") == []
    # Words of every tenth item are tags; those of half of them are not.
    mined = tastes_of(
        items.with_columns(text=pl.col("text") + pl.lit(" common ") + pl.col("genres").str.to_lowercase()), None
    )
    assert {"western", "horror", "musical", "romance"} <= set(mined.names) and "common" not in mined.names


def test_claims_of_every_kind_with_their_polarity(items):
    tastes = tastes_of(items, "genres")
    titles = claims.Titles(items["title"].to_list())
    found = claims.extract(
        "The user likes westerns and horror from the 1940s, but dislikes musicals. Admires Sergio Leone and The Long "
        "Way to Number 4. Clever plots with moral dilemmas. They enjoy movies.",
        tastes,
        titles,
    )
    told = [(claim.kind, claim.value, claim.liked) for claim in found]
    assert told == [
        ("genre", "Horror", True),
        ("genre", "Western", True),
        ("era", "1940", True),
        ("genre", "Musical", False),
        ("title", "the long way to number 4", True),
        ("person", "Sergio Leone", True),
        ("theme", "Clever plots with moral dilemmas", True),
    ]
    assert claims.extract("", tastes, titles) == claims.extract("This user enjoys movies.", tastes, titles) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("They like comedy, not horror.", {("Comedy", True), ("Horror", False)}),
        ("They like not only horror but also war.", {("Horror", True), ("War", True)}),
        ("They hate horror, war and musicals.", {("Horror", False), ("War", False), ("Musical", False)}),
        ("They don't like horror, preferring war.", {("Horror", False), ("War", True)}),
        ("Enjoys war rather than horror.", {("War", True), ("Horror", False)}),
        ("They love war. They like war films. War is best.", {("War", True)}),
    ],
)
def test_polarity_holds_as_far_as_it_is_meant(items, text, found):
    tastes = tastes_of(items.with_columns(genres=pl.col("genres").replace("Western", "Comedy")), "genres")
    told = claims.extract(text, tastes, claims.Titles([]))
    assert {(claim.value, claim.liked) for claim in told} == found and len(told) == len(found)


def test_titles_are_found_however_they_are_written(items):
    names = ["Tomorrow Never Dies", "Terminator 2: Judgment Day", "101 Dalmatians", "L.A. Confidential", "Heat"]
    names += ["The Usual Suspects", "The War Room", "Star Trek: First Contact"]
    tastes = tastes_of(items, "genres")
    for name in names[:4] + names[5:]:
        for text in (f"They love {name} and other dramas.", f"They love {name.replace('The ', 'the ')}."):
            (claim,) = claims.extract(text, tastes, claims.Titles(names))
            assert (claim.kind, claim.value, claim.liked) == ("title", claims.title_key(name), True), text
    assert claims.extract("They love Usual Suspects.", tastes, claims.Titles(names))[0].value == "the usual suspects"
    assert claims.extract("They love Heat.", tastes, claims.Titles(names)) == []
    assert claims.extract('They love "Heat".', tastes, claims.Titles(names))[0].value == "heat"
    # A part of a title is no person.
    (claim,) = claims.extract("They love Star Trek.", tastes, claims.Titles(names))
    assert claim.kind == "theme"
    assert claims.extract("\ue000 \uf8ff", tastes, claims.Titles(names)) == []


def test_facts_are_looked_up_in_the_shown_history(items):
    catalogue = catalogue_of(items, "genres")
    westerns, others = [0, 6, 12, 18, 24], [1, 7, 13, 19, 25]

    def verdict(text, shown=westerns, ratings=(5, 4, 5, 4, 5)):
        (claim,) = claims.extract(text, catalogue.tastes, claims.Titles(catalogue.keys))
        (one,) = faithfulness.check([claim], shown, ratings, [(others, [4.0] * 5)], catalogue, _never)
        return one.supported, one.strangers

    assert verdict("Likes westerns.") == (True, 0.0)
    assert verdict("Likes horror.") == (False, 1.0)
    assert verdict("Dislikes horror.") == (True, 0.0)
    assert verdict("Likes movies of the 1940s.") == (True, 0.0)
    assert verdict("Likes The Long Way to Number 6.") == (True, 0.0)
    assert verdict("Likes The Long Way to Number 8.") == (False, 0.0)
    # Two of ten items of a genre, which the user could not stand, are no liking.
    assert verdict("Likes westerns.", [0, 6, *others, 31, 37, 43], (1, 1, *[5.0] * 8)) == (False, 0.0)


def _never(text, liked, histories):
    return np.zeros(len(histories), dtype=bool)


def _honest(items: pl.DataFrame, genre: str) -> str:
    year = items.filter(pl.col("genres") == genre)["year"][0]
    return f"The user loves {genre} movies from the {year}s."


@pytest.fixture(scope="module")
def decoder(real_models):
    model = load(_config(), ROOT).models["minilm-l6"]
    return load_decoder(real_models / "minilm-l6", model, "cpu")


def _config(**interpretability):
    return {
        "datasets": ["ml-100k-small"],
        "encoders": ["smollm2-135m"],
        "decoders": ["minilm-l6"],
        "methods": ["langptune-0", "pop", "best-of-8"],
        "interpretability": interpretability,
    }


@pytest.mark.models
def test_a_shuffled_profile_is_not_faithful(items, decoder, one_thread):
    from langptune.ranking.decoder import embed

    catalogue = catalogue_of(items, "genres")
    known = claims.Titles(catalogue.keys)
    histories = [[at + 6 * step for step in range(5)] for at in range(6)]
    rated = [(shown, [4.0] * 5) for shown in histories]
    texts = [_honest(items, genre) + f" Stories told in the manner of the {genre} tradition." for genre in GENRES]

    def means(profiles):
        own = [claims.extract(text, catalogue.tastes, known) for text in profiles]
        asked = sorted({text for told in own for one in told if (text := faithfulness.statement(one, catalogue))})
        vectors = dict(zip(asked, embed(decoder, asked).vectors, strict=True)) if asked else {}
        verify = faithfulness.by_similarity(vectors, embed(decoder, catalogue.texts).vectors)
        checked = [
            faithfulness.check(told, *rated[at], [other for i, other in enumerate(rated) if i != at], catalogue, verify)
            for at, told in enumerate(own)
        ]
        supported = np.mean([one.supported for told in checked for one in told])
        return supported, supported - np.mean([one.strangers for told in checked for one in told])

    faithful, advantage = means(texts)
    assert faithful == 1 and advantage > 0.9
    shuffled, none = means(texts[1:] + texts[:1])
    assert shuffled < 0.25 and none < 0.05


@pytest.mark.models
def test_an_embedder_verifies_themes_and_turns_denials_round(items, decoder, one_thread):
    from langptune.ranking.decoder import embed

    texts = items["text"].to_list()
    asked = ["cowboys and gunfights of the old west"]
    verify = faithfulness.by_similarity(
        dict(zip(asked, embed(decoder, asked).vectors, strict=True)), embed(decoder, texts).vectors
    )
    histories = [([at, at + 6, at + 12], [4.0, 5.0, 4.0]) for at in range(6)]  # the first: westerns
    held = verify(asked[0], True, histories)
    assert held[0] and held.sum() <= 2  # four of five strangers must be less alike
    assert (verify(asked[0], False, histories) == ~verify(asked[0], True, histories)).all()


def test_a_verifier_of_inference_is_read_by_its_own_labels(tmp_path):
    entry = VerifierEntry(role="verifier", title="", source={"folder": "x"}, licence="", parameters=1, max_tokens=64)
    pairs = [("The user has liked: Western", "likes westerns"), ("drama", "comedy"), ("horror", "war")]
    told = {}
    for labels in (("contradiction", "entailment", "neutral"), ("ENTAILMENT", "neutral", "contradiction")):
        folder = write_verifier(tmp_path / labels[0], labels)
        told[labels[0]] = load_verifier(folder, entry, "cpu")(pairs)
        assert told[labels[0]].shape == (3,) and ((told[labels[0]] > 0) & (told[labels[0]] < 1)).all()
    # The same weights, another order of labels: another column.
    assert not np.allclose(told["contradiction"], told["ENTAILMENT"])
    verify = faithfulness.by_inference(
        lambda asked: np.array(["person liked a Western" in premise for premise, _ in asked], float),
        ["a Western", "b", "c"],
        ["A", "B", "C"],
        max_tokens=64,
    )
    histories = [([0, 1], [4, 4]), ([1], [4]), ([0, 1, 2], [1, 5, 5])]
    assert verify("likes westerns", True, histories).tolist() == [True, False, False]
    with pytest.raises(UserError, match="none is 'entailment'"):
        load_verifier(write_verifier(tmp_path / "other", ("positive", "negative", "neutral")), entry, "cpu")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_verifier(tmp_path / "nowhere", entry, "cpu")


def test_candidates_hold_the_target_and_nothing_seen():
    one = simulation.candidates(7, [1, 2, 3], 30, 10, seed=0, session=4)
    assert one[0] == 7 and len(set(one.tolist())) == 10 and not {1, 2, 3} & set(one.tolist())
    assert one.tolist() == simulation.candidates(7, [1, 2, 3], 30, 10, seed=0, session=4).tolist()
    assert one.tolist() != simulation.candidates(7, [1, 2, 3], 30, 10, seed=0, session=5).tolist()
    assert len(simulation.candidates(0, [1, 2], 5, 10, 0, 0)) == 3  # a catalogue that is too small


def test_outcome_shares_ties():
    assert simulation.outcome(np.array([3.0, 1, 2])) == (1.0, 1)
    assert simulation.outcome(np.array([2.0, 1, 3])) == (0.0, 2)
    assert simulation.outcome(np.array([1.0, 1, 1, 1])) == (0.25, 3)


@pytest.mark.models
def test_a_reader_tells_items_by_a_profile_and_not_by_a_shuffled_one(items, real_models, one_thread):
    import torch

    from langptune.interpretability.likelihood import Reader, token_logprobs

    model, tokenizer = load_encoder(real_models / "smollm2-135m", torch.device("cpu"), torch.float32)
    reader = Reader(model, tokenizer)
    texts = items["text"].to_list()

    def told(profiles):
        chosen = [[at, *(other for other in range(6) if other != at)] for at in range(6)]
        asked = zip(profiles, chosen, strict=True)
        scores = [reader.scores(profile, [texts[item] for item in own]) for profile, own in asked]
        return np.mean([simulation.outcome(score)[0] for score in scores])

    profiles = [_honest(items, genre) for genre in GENRES]
    own, shuffled = told(profiles), told(profiles[1:] + profiles[:1])
    assert own >= 0.5 and shuffled <= 1 / 6, (own, shuffled)
    # A score is a difference of log-likelihoods, each computed at once as well as from a cache.
    prompt, nothing = (reader._question(text) for text in (profiles[0], "nothing"))
    ids = [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in texts[:3]]
    whole = token_logprobs(model, [prompt] * 3, ids) - token_logprobs(model, [nothing] * 3, ids)
    assert reader.scores(profiles[0], texts[:3]) == pytest.approx(whole, abs=1e-2)
    assert token_logprobs(model, [prompt], [[]]).tolist() == [0]


def test_edits_add_what_is_missing_and_change_what_is_there(items):
    tastes = tastes_of(items, "genres")
    profile = "Loves westerns, horror, and old musicals"
    titles = claims.Titles(["The Sound of Musicals"])
    told = steering.edits(profile, tastes, titles, 2, seed=0, session=3)
    assert told == steering.edits(profile, tastes, titles, 2, seed=0, session=3)
    kinds = [edit.edit for edit in told]
    assert kinds.count("add") == 2 and kinds.count("strengthen") == kinds.count("remove") == kinds.count("negate") == 2
    by_kind = {(edit.edit, tastes.names[edit.taste]): edit.text for edit in told}
    for (edit, name), text in by_kind.items():
        if edit == "add":
            assert text == f"They love {name}. {profile}"
        if edit == "remove":
            assert not tastes.in_text(text).count(tastes.names.index(name)) and len(words(text)) < len(words(profile))
        if edit == "negate":
            assert text.startswith(f"They dislike {name}. ")
    assert steering.removed("Loves westerns, horror and war.", "Horror") == "Loves westerns and war."
    assert steering.removed("Loves westerns and horror.", "Horror") == "Loves westerns."
    assert [edit.edit for edit in steering.edits("", tastes, titles, 9, 0, 0)] == ["add"] * 6
    # What a title says is no taste.
    told = steering.edits("Loves war and The Sound of Musicals.", tastes, titles, 9, 0, 0)
    assert {edit.text for edit in told if edit.edit == "remove"} == {"Loves and The Sound of Musicals."}


def test_effect_counts_rivals_and_places():
    has = np.array([True, True, False, False, False])
    low, high = np.array([1.0, 2, 3, 4, 5]), np.array([6.0, 7, 3, 4, 5])
    assert steering.effect(low, high, has, []) == (1.0, 3.0)
    assert steering.effect(high, low, has, []) == (-1.0, -3.0)
    assert steering.effect(low, low, has, [0]) == (0.0, 0.0)
    assert np.isnan(steering.effect(low, high, has, [0, 1])[0])
    ties = np.zeros(5)
    assert steering.effect(ties, high, has, [])[0] == pytest.approx(0.5)


@pytest.mark.models
def test_editing_in_a_genre_raises_its_items(items, decoder, one_thread):
    from langptune.ranking.decoder import embed

    tastes = tastes_of(items, "genres")
    vectors = embed(decoder, items["text"].to_list()).vectors
    changes = []
    for at, genre in enumerate(GENRES):
        profile = _honest(items, genre)
        made = [edit for edit in steering.edits(profile, tastes, claims.Titles([]), 9, 0, at) if edit.edit == "add"]
        told = embed(decoder, [profile, *(edit.text for edit in made)]).vectors @ vectors.T
        changes += [
            steering.effect(told[0], row, tastes.has[:, e.taste], [])[0] for row, e in zip(told[1:], made, strict=True)
        ]
    assert len(changes) == 30
    assert np.mean(np.array(changes) > 0) > 0.9


def test_the_mean_leaves_out_what_is_undefined_and_pairs_by_session():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 1))
    better = np.concatenate([base, base], axis=1) + 0.2 + 0.01 * rng.normal(size=(200, 2))
    gappy = base.copy()
    gappy[::2] = np.nan
    told = summary.estimate({"a": base, "b": better, "c": gappy}, dict.fromkeys("abc", "a"), 400, 0.95, 0)
    assert told["a"].differs == 0 and np.isnan(told["a"].difference)
    assert told["b"].difference == pytest.approx(0.2, abs=0.01) and told["b"].differs == 1
    # Paired: the interval of the difference is far narrower than that of the means.
    assert told["b"].difference_high - told["b"].difference_low < 0.1 * (told["a"].high - told["a"].low)
    assert told["c"].mean == pytest.approx(np.nanmean(gappy)) and told["c"].values == 100
    nothing = summary.estimate({"a": base, "d": np.full((200, 1), np.nan)}, {"d": "a"}, 400, 0.95, 0)["d"]
    assert np.isnan(nothing.mean) and np.isnan(nothing.low) and nothing.differs == 0
    # Each against the reference of its own models.
    told = summary.estimate({"a": base, "b": better, "c": base}, {"b": "c"}, 400, 0.95, 0)
    assert told["b"].difference == pytest.approx(0.2, abs=0.01) and np.isnan(told["c"].difference)


def test_sessions_are_drawn_the_same_whatever_the_order():
    assert drawn([5, 3, 1, 4, 2], 3, 0) == drawn([1, 2, 3, 4, 5], 3, 0)
    assert drawn([1, 2], 9, 0) == [1, 2]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"methods": ["pop"]}, "interpretability.methods: 'pop' has not one profile"),
        ({"methods": ["best-of-8"]}, "has not one profile"),
        ({"methods": ["langptune"]}, "interpretability.methods: 'langptune' is not run here"),
        ({"verifier": "smollm2-135m"}, "interpretability.verifier: unknown entry 'smollm2-135m'"),
        ({"reader": "minilm-l6"}, "interpretability.reader: 'minilm-l6' is a decoder of this run"),
        ({"judges": ["nobody"]}, "interpretability.judges: unknown entry 'nobody'"),
        ({"candidates": 1}, "interpretability.candidates"),
    ],
)
def test_settings_that_cannot_be(told, line):
    with pytest.raises(UserError, match=line):
        load(_config(**told), ROOT)


def test_measured_methods_are_those_with_one_profile_each():
    workflow = load(_config(), ROOT)
    assert workflow.readable == ["langptune-0"]
    assert (workflow.verifier, workflow.reader) == ("minilm-l6", "smollm2-135m")
