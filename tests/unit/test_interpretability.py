"""Measures of profiles: on texts and catalogues with known answers, and with the real embedded models."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from langptune.comparison import significance
from langptune.config.load import load
from langptune.config.models import VerifierEntry
from langptune.config.prompts import Prompt
from langptune.data import contracts
from langptune.errors import UserError
from langptune.interpretability import (
    faithfulness,
    frontier,
    simulation,
    steering,
    summary,
    weights,
)
from langptune.interpretability.inputs import catalogue_of, drawn
from langptune.language import claims, wording
from langptune.language.tastes import Tastes, pattern, removed, tastes_of
from langptune.language.wording import words
from langptune.models.likelihood import text_logprobs
from langptune.models.load import load_decoder, load_encoder, load_verifier
from langptune.models.tiny import write_verifier
from langptune.prompts import Encoded
from scripts import measure_profiles
from tests import planted as p
from tests.conftest import ROOT

GENRES = ["Western", "Horror", "Musical", "Sci-Fi", "Romance", "War"]


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    """Ten items of each of six genres and decades, in turn; the titles reveal nothing."""
    rows = []
    for at in range(60):
        genre, year = GENRES[at % 6], 1940 + 10 * (at % 6)
        title = f"Quiet Parable {at}" if at % 2 else f"The Long Way to Number {at}"
        rows.append((at, str(at), title, f"{title} ({year}). Genres: {genre}", None, genre, str(year)))
    schema = {**contracts.ITEMS, "genres": pl.String, "year": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_wording_of_known_texts():
    measured = wording.measure("The cat sat on the mat. The cat sat on the mat.", [])
    assert measured.words == 12
    assert measured.repetition == pytest.approx(4 / 10)  # of ten sequences of three words, four are repeats
    assert measured.reading_ease > 100 and measured.grade < 1
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
    text = "Loves science fiction, romantic stories and musicals; the warm war hero"
    assert [tastes.names[at] for at in tastes.in_text(text)] == ["Musical", "Romance", "Sci-Fi", "War"]
    assert tastes.in_text("warm wares, westernised") == []
    # Words that occur in a tenth of the items are tags; words that occur in half of them are not.
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
    triples = [(claim.kind, claim.value, claim.liked) for claim in found]
    assert triples == [
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
    claimed = claims.extract(text, tastes, claims.Titles([]))
    assert {(claim.value, claim.liked) for claim in claimed} == found and len(claimed) == len(found)


PHRASES = [
    ("The user likes comedy and does not like horror.", "+Comedy -Horror"),
    ("The user likes comedy and doesn't like horror.", "+Comedy -Horror"),
    ("They love comedy and hate horror.", "+Comedy -Horror"),
    ("They love comedy and war and they really do not enjoy horror.", "+Comedy +War -Horror"),
    ("They can't get enough of comedy.", "+Comedy"),
    ("They cannot get enough of westerns and war films.", "+Western +War"),
    ("They could not be happier with comedies.", "+Comedy"),
    ("They couldn't be happier with a comedy.", "+Comedy"),
    ("A fan of comedy, drama but not horror.", "+Comedy +Drama -Horror"),
    ("Never misses a western.", "+Western"),
    ("The user never misses a western and avoids horror.", "+Western -Horror"),
    ("This user likes not only comedies but also dramas.", "+Comedy +Drama"),
    ("Not only comedies but also dramas.", "+Comedy +Drama"),
    ("They do not only like comedy but also horror.", "+Comedy +Horror"),
    ("They don't just watch comedies, they also love war.", "+Comedy +War"),
    ("The user does not like horror and loves comedy.", "-Horror +Comedy"),
    ("The user does not like horror and war.", "-Horror -War"),
    ("They do not like horror or war.", "-Horror -War"),
    ("They like comedy but not horror or war.", "+Comedy -Horror -War"),
    ("Horror is not for them.", "-Horror"),
    ("They like comedy and horror is not for them.", "+Comedy -Horror"),
    ("They like comedy and horror is avoided.", "+Comedy -Horror"),
    ("Horror films are avoided.", "-Horror"),
    ("They hate horror, and can't get enough of comedy.", "-Horror +Comedy"),
    ("They hate horror and can't get enough of comedy.", "-Horror +Comedy"),
    ("They like comedies that do not rely on horror.", "+Comedy -Horror"),
    ("Horror is a genre that they do not like.", "-Horror"),
    ("They never tire of comedy.", "+Comedy"),
    ("They never get tired of musicals.", "+Musical"),
    ("They are tired of musicals.", "-Musical"),
    ("They do not dislike horror.", "+Horror"),
    ("They don't mind horror.", "+Horror"),
    ("They like neither horror nor war.", "-Horror -War"),
    ("They like comedy and neither horror nor war.", "+Comedy -Horror -War"),
    ("The user is not a fan of horror.", "-Horror"),
    ("The user is a fan of comedy and not a fan of horror.", "+Comedy -Horror"),
    ("They enjoy comedy not horror.", "+Comedy -Horror"),
    ("Comedy not horror.", "+Comedy -Horror"),
    ("Comedy, drama, and no interest in horror.", "+Comedy +Drama -Horror"),
    ("They can't stand horror.", "-Horror"),
    ("They love drama and can't stand horror, war or musicals.", "+Drama -Horror -War -Musical"),
    ("They can't stand horror but love drama.", "-Horror +Drama"),
    ("They like nothing but comedy.", "+Comedy"),
    ("They like anything but horror.", "-Horror"),
    ("They like all genres except horror.", "-Horror"),
    ("They like comedy, except for war comedies.", "+Comedy -War -Comedy"),
    ("They can't resist a good western.", "+Western"),
    ("They can't wait for the next fantasy.", "+Fantasy"),
    ("Dislikes: horror, war.", "-Horror -War"),
    ("Likes: comedy. Dislikes: horror.", "+Comedy -Horror"),
    ("They love comedy because they do not like horror.", "+Comedy -Horror"),
    ("Although they like comedy, they hate horror.", "+Comedy -Horror"),
    ("They like comedy, which is not horror.", "+Comedy -Horror"),
    ("They don't watch gory films, like horror.", "-Horror"),
    ("They don’t like horror and can’t get enough of comedy.", "-Horror +Comedy"),
    ("They are passionate about drama and uninterested in war.", "+Drama -War"),
    ("They no longer enjoy horror.", "-Horror"),
    ("They couldn't care less about horror.", "-Horror"),
    ("They wouldn't miss a western.", "+Western"),
    ("They don't miss a western.", "+Western"),
    ("They enjoy drama, avoid horror, and adore comedy.", "+Drama -Horror +Comedy"),
    ("Whether or not it is a comedy, they like war.", "+Comedy +War"),
    ("They like comedy, not to mention drama.", "+Comedy +Drama"),
    ("They never watch horror and rarely war, and love comedy.", "-Horror -War +Comedy"),
    ("Comedy and horror are not liked.", "-Comedy -Horror"),
    ("They love war films as well as drama and do not care for horror.", "+War +Drama -Horror"),
    ("They rate comedy highly and horror poorly, and do not like war.", "+Comedy +Horror -War"),
    ("The user likes fantastic films.", "+Fantasy"),
    ("The user likes mysterious films, and comic ones.", "+Mystery +Comedy"),
    ("They read comic books.", ""),
    ("They love comedies, fantasies and mysteries.", "+Comedy +Fantasy +Mystery"),
    ("They love fantasic comedic things.", "+Comedy"),
    ("They never disappoint a comedy lover and never skip drama.", "+Comedy -Drama"),
    ("They do not like war more than horror.", "-War -Horror"),
    ("They find it hard not to like comedy.", "+Comedy"),
    ("They lack interest in war and enjoy drama.", "-War +Drama"),
    ("They like westerns that never had a sequel.", "+Western"),
    ("The user likes comedy and will avoid horror, while they like war.", "+Comedy -Horror +War"),
    ("They don't only love fantasy.", "+Fantasy"),
    ("Their favourites are comedies; horror they do not watch.", "+Comedy -Horror"),
    ("Comedy and drama are favorites, and horror is disliked.", "+Comedy +Drama -Horror"),
    ("Comedy and drama are favorites and horror is disliked.", "+Comedy +Drama -Horror"),
]
"""A phrase, and the genres that it likes (+) and dislikes (-)."""


@pytest.mark.parametrize(("text", "expected"), PHRASES)
def test_a_denial_denies_what_it_is_about(text, expected):
    names = ["Comedy", "Drama", "Fantasy", "Horror", "Musical", "Mystery", "War", "Western"]
    found = claims.extract(text, Tastes(names, np.zeros((1, len(names)), dtype=bool)), claims.Titles([]))
    genres = sorted((claim.value, claim.liked) for claim in found if claim.kind == "genre")
    assert genres == sorted((word[1:], word[0] == "+") for word in expected.split()), claims.statements(text)


LIKED = ["likes {}", "is a fan of {}", "can't get enough of {}", "could not be happier with {}", "never misses {}",
         "enjoys not only {}", "doesn't dislike {}", "never tires of {}"]  # fmt: skip
DENIED = ["does not like {}", "doesn't enjoy {}", "avoids {}", "can't stand {}", "is not a fan of {}", "hates {}",
          "has no interest in {}", "never watches {}", "is tired of {}", "dislikes {}"]  # fmt: skip
JOINS = [" and ", ", and ", " but ", ". They ", ", ", "; ", " and they ", ", while this user "]


def test_two_statements_of_a_sentence_keep_their_own_polarity():
    tastes = Tastes(["Comedy", "Horror"], np.zeros((1, 2), dtype=bool))
    for one, other in [*itertools.product(LIKED, DENIED), *itertools.product(DENIED, LIKED)]:
        for join in JOINS:
            text = f"The user {one.format('comedy')}{join}{other.format('horror')}."
            found = {claim.value: claim.liked for claim in claims.extract(text, tastes, claims.Titles([]))}
            assert found == {"Comedy": one in LIKED, "Horror": other in LIKED}, text


def test_statements_lose_no_word():
    for text, _ in PHRASES:
        kept = [word for part, _ in claims.statements(text) for word in words(part)]
        contrasts = {"but", "although", "while", "however"}
        assert [w for w in kept if w not in contrasts] == [w for w in words(text) if w not in contrasts], text


@pytest.mark.parametrize(
    ("name", "named", "not_named"),
    [
        ("Fantasy", "fantasy fantasies fantastic fantastical Fantasy", "fantasic fantast fantastically"),
        ("Comedy", "comedy comedies comic comedic comical", "comedian comics comedys comic-book"),
        ("Mystery", "mystery mysteries mysterious", "mysteric mysteryic"),
        ("History", "history histories historic historical", "historian"),
        ("Documentary", "documentary documentaries", "documentaric"),
        ("Biography", "biography biographies biographical biopics", "biographer"),
        ("Drama", "drama dramas dramatic", "dramaturgy"),
        ("Manga", "manga mangas", "mangatic"),
        ("Family", "family families", "familic"),
        ("Essay", "essay essays", "essaies"),
        ("Romance", "romance romances romantic", "romantically"),
        ("Western", "western westerns", "westernised"),
    ],
)
def test_a_taste_is_named_by_its_plural_and_its_adjective(name, named, not_named):
    assert [word for word in named.split() if not pattern(name).fullmatch(word)] == []
    assert [word for word in not_named.split() if pattern(name).search(word)] == []
    assert pattern("Comedy").search("comic books") is None and pattern("Comedy").search("comic timing")


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
    # A part of a title is not a person.
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
    # Two of ten items of a genre, both rated low, do not support a liking.
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
    texts = [_honest(items, genre) + f" Stories in the manner of the {genre} tradition." for genre in GENRES]

    def means(profiles):
        own = [claims.extract(text, catalogue.tastes, known) for text in profiles]
        asked = sorted({text for claimed in own for one in claimed if (text := faithfulness.statement(one, catalogue))})
        vectors = dict(zip(asked, embed(decoder, asked).vectors, strict=True)) if asked else {}
        verify = faithfulness.by_similarity(vectors, embed(decoder, catalogue.texts).vectors)
        checked = [
            faithfulness.check(
                claimed, *rated[at], [other for i, other in enumerate(rated) if i != at], catalogue, verify
            )
            for at, claimed in enumerate(own)
        ]
        supported = np.mean([one.supported for claimed in checked for one in claimed])
        return supported, supported - np.mean([one.strangers for claimed in checked for one in claimed])

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
    histories = [([at, at + 6, at + 12], [4.0, 5.0, 4.0]) for at in range(6)]  # the first history has westerns
    held = verify(asked[0], True, histories)
    assert held[0] and held.sum() <= 2  # four of five strangers must be less similar
    assert (verify(asked[0], False, histories) == ~verify(asked[0], True, histories)).all()


def test_a_verifier_of_inference_is_read_by_its_own_labels(tmp_path):
    entry = VerifierEntry(role="verifier", title="", source={"folder": "x"}, licence="", parameters=1, max_tokens=64)
    pairs = [("The user has liked: Western", "likes westerns"), ("drama", "comedy"), ("horror", "war")]
    scores = {}
    for labels in (("contradiction", "entailment", "neutral"), ("ENTAILMENT", "neutral", "contradiction")):
        folder = write_verifier(tmp_path / labels[0], labels)
        scores[labels[0]] = load_verifier(folder, entry, "cpu")(pairs)
        assert scores[labels[0]].shape == (3,) and ((scores[labels[0]] > 0) & (scores[labels[0]] < 1)).all()
    # The same weights with the labels in another order: another column is read.
    assert not np.allclose(scores["contradiction"], scores["ENTAILMENT"])
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

    from langptune.models.likelihood import Reader, text_logprobs

    model, tokenizer = load_encoder(real_models / "smollm2-135m", torch.device("cpu"), torch.float32)
    reader = Reader(model, tokenizer)
    texts = items["text"].to_list()

    def identified(profiles):
        chosen = [[at, *(other for other in range(6) if other != at)] for at in range(6)]
        asked = zip(profiles, chosen, strict=True)
        scores = [reader.scores(profile, [texts[item] for item in own]) for profile, own in asked]
        return np.mean([simulation.outcome(score)[0] for score in scores])

    profiles = [_honest(items, genre) for genre in GENRES]
    own, shuffled = identified(profiles), identified(profiles[1:] + profiles[:1])
    assert own >= 0.5 and shuffled <= 1 / 6, (own, shuffled)
    # A score is a difference of log-likelihoods; computed without the cache, it is the same.
    prompt, nothing = (reader._question(text) for text in (profiles[0], "nothing"))
    ids = [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in texts[:3]]
    whole = text_logprobs(model, [prompt] * 3, ids) - text_logprobs(model, [nothing] * 3, ids)
    assert reader.scores(profiles[0], texts[:3]) == pytest.approx(whole, abs=1e-2)
    assert text_logprobs(model, [prompt], [[]]).tolist() == [0]


@pytest.mark.parametrize("cap", [None, 2.0])
def test_likelihoods_are_those_of_the_models_own_logits(cap, one_thread):
    """Gemma-2 caps its logits after the head: a likelihood from hidden states and head alone would differ."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from langptune.models.likelihood import text_logprobs

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        initializer_range=0.5,
        final_logit_softcapping=cap,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).eval()
    prompts, texts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]], [[20, 21], [22, 23, 24, 25, 26, 27], []]
    expected = []
    for prompt, text in zip(prompts, texts, strict=True):
        with torch.inference_mode():
            logs = torch.log_softmax(model(torch.tensor([[*prompt, *text]])).logits[0].double(), -1)
        expected.append(sum(float(logs[len(prompt) + at - 1, token]) for at, token in enumerate(text)))
    assert text_logprobs(model, prompts, texts) == pytest.approx(expected, abs=1e-4)
    assert text_logprobs(model, prompts, texts, batch_size=1) == pytest.approx(expected, abs=1e-4)


def test_edits_add_what_is_missing_and_change_what_is_there(items):
    tastes = tastes_of(items, "genres")
    profile = "Loves westerns, horror, and old musicals"
    titles = claims.Titles(["The Sound of Musicals"])
    edited = steering.edits(profile, tastes, titles, 2, seed=0, session=3)
    assert edited == steering.edits(profile, tastes, titles, 2, seed=0, session=3)
    kinds = [edit.edit for edit in edited]
    assert kinds.count("add") == 2 and kinds.count("strengthen") == kinds.count("remove") == kinds.count("negate") == 2
    by_kind = {(edit.edit, tastes.names[edit.taste]): edit.text for edit in edited}
    for (edit, name), text in by_kind.items():
        if edit == "add":
            assert text == f"They love {name}. {profile}"
        if edit == "remove":
            assert not tastes.in_text(text).count(tastes.names.index(name)) and len(words(text)) < len(words(profile))
        if edit == "negate":
            assert text.startswith(f"They dislike {name}. ")
    assert removed("Loves westerns, horror and war.", "Horror") == "Loves westerns and war."
    assert removed("Loves westerns and horror.", "Horror") == "Loves westerns."
    assert [edit.edit for edit in steering.edits("", tastes, titles, 9, 0, 0)] == ["add"] * 6
    # A word in a title is not a taste.
    edited = steering.edits("Loves war and The Sound of Musicals.", tastes, titles, 9, 0, 0)
    assert {edit.text for edit in edited if edit.edit == "remove"} == {"Loves and The Sound of Musicals."}


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
        scores = embed(decoder, [profile, *(edit.text for edit in made)]).vectors @ vectors.T
        changes += [
            steering.effect(scores[0], row, tastes.has[:, e.taste], [])[0]
            for row, e in zip(scores[1:], made, strict=True)
        ]
    assert len(changes) == 30
    assert np.mean(np.array(changes) > 0) > 0.9


def test_the_mean_leaves_out_what_is_undefined_and_pairs_by_session():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 1))
    better = np.concatenate([base, base], axis=1) + 0.2 + 0.01 * rng.normal(size=(200, 2))
    gappy = base.copy()
    gappy[::2] = np.nan
    estimate_of = _estimates({"a": base, "b": better, "c": gappy}, dict.fromkeys("abc", "a"))
    assert (
        estimate_of["a"].mark(0.95) == 0 and np.isnan(estimate_of["a"].difference) and np.isnan(estimate_of["a"].p_holm)
    )
    assert estimate_of["b"].difference == pytest.approx(0.2, abs=0.01) and estimate_of["b"].mark(0.95) == 1
    # Paired: the interval of the difference is far narrower than that of the means.
    assert estimate_of["b"].difference_high - estimate_of["b"].difference_low < 0.1 * (
        estimate_of["a"].high - estimate_of["a"].low
    )
    assert estimate_of["c"].mean == pytest.approx(np.nanmean(gappy)) and estimate_of["c"].values == 100
    # On sessions where both have a value, the values are equal: the methods do not differ, although their means do.
    assert (estimate_of["c"].pairs, estimate_of["c"].paired, estimate_of["c"].p, estimate_of["c"].mark(0.95)) == (
        100,
        0.0,
        1.0,
        0,
    )
    nothing = _estimates({"a": base, "d": np.full((200, 1), np.nan)}, {"d": "a"})["d"]
    assert np.isnan(nothing.mean) and np.isnan(nothing.low) and (nothing.pairs, nothing.mark(0.95)) == (0, 0)
    # Each method is compared with the reference of its own models.
    estimate_of = _estimates({"a": base, "b": better, "c": base}, {"b": "c"})
    assert estimate_of["b"].difference == pytest.approx(0.2, abs=0.01) and np.isnan(estimate_of["c"].difference)


def _estimates(values, references):
    """Estimates of one measure in a separate block."""
    one = summary.Measure("m", "m", 1, "B", 3, "")
    return summary.estimates([one], {"m": values}, references, 400, 0.95, 0)["m"]


def test_marks_are_corrected_over_all_measures_and_methods_of_a_block():
    """Four methods equal the reference except for noise in twenty measures: intervals sometimes err, marks do not."""
    rng = np.random.default_rng(1)
    measures = [summary.Measure(f"m{at}", f"m{at}", 1, "AB"[at % 2], 3, "") for at in range(20)]
    references = dict.fromkeys("rabcd", "r")
    values = {one.key: {name: rng.normal(size=(60, 1)) for name in references} for one in measures}
    values["m0"]["a"] = values["m0"]["r"] + 0.8
    estimated = summary.estimates(measures, values, references, 200, 0.95, 0)
    found = {(key, name): one for key, own in estimated.items() for name, one in own.items()}
    alone = [at for at, one in found.items() if one.difference_low > 0 or one.difference_high < 0]
    assert len(alone) > 2, "intervals one by one leave out 0 by chance"
    assert {at: one.mark(0.95) for at, one in found.items() if one.mark(0.95)} == {("m0", "a"): 1}
    for block in "AB":
        family = [at for at in found if measures[int(at[0][1:])].block == block]
        expected = significance.holm([found[at].p for at in family])
        assert [found[at].p_holm for at in family] == pytest.approx(expected, nan_ok=True)
        assert sum(not np.isnan(p) for p in expected) == 40
    one = found["m3", "b"]
    assert one.p == significance.paired(values["m3"]["b"][:, 0], values["m3"]["r"][:, 0], 0).p_permutation


INTERPRET = runpy.run_path(str(ROOT / "scripts" / "interpret.py"))


FACT = "Read by <script>alert(1)</script>."


class _Notes:
    def note(self, **facts):
        """Keep the facts that a manifest would hold."""
        self.facts = facts


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """The tables of a reference and two methods that have the same title."""
    folder, rng = tmp_path_factory.mktemp("interpreted"), np.random.default_rng(0)
    titles = {"zero": "Zero", "one": "Same", "two": "Same"}
    sessions = pl.Series("session", range(30), dtype=pl.Int32)
    runs = []
    for shift, (method, title) in enumerate(titles.items()):
        files = {}
        for name in ("metrics_path", "measures", "simulation", "steering", "steering_weights"):
            files[name] = str(folder / f"{method}-{name}.parquet")
        own = {key: rng.normal(size=30) + shift for key in ("words", "reading_ease", "grade", "repetition", "copied")}
        own |= {key: rng.normal(size=30) for key in ("sameness", "nats_per_token", "claims", "supported", "strangers")}
        pl.DataFrame({"session": sessions, **own}).write_parquet(files["measures"])
        pl.DataFrame({"session": sessions, "chosen": np.zeros(30)}).write_parquet(files["simulation"])
        pl.DataFrame({"session": sessions, "edit": "add", "auc_change": 0.1}).write_parquet(files["steering"])
        weighed = pl.DataFrame({"session": sessions, "edit": "add"}).join(
            pl.DataFrame({"weight": [0.0, 0.5]}), how="cross"
        )
        change = pl.when(pl.col("weight") == 0).then(0.4).otherwise(0.1)
        weighed.with_columns(auc_change=change).write_parquet(files["steering_weights"])
        if shift:  # the weight of the first one is a number
            files["grid_path"] = files["weight_path"] = str(folder / f"{method}-popularity.json")
            grid = [{"weight": weight, "ndcg@10": 0.02 + weight / 10} for weight in (0, 0.5, 1)]
            Path(files["weight_path"]).write_text(json.dumps({"weight": 0.5, "text": "profiles", "grid": grid}))
        else:
            files["weight"] = 0.5
        pl.DataFrame({"session": sessions, "ndcg@10": np.full(30, 0.1 * shift)}).write_parquet(files["metrics_path"])
        runs.append({"method": method, "models": "e+d", "seed": 0, "title": title, "group": "profiles", **files})
    texts = ("table_csv", "table_md", "table_html", "judges", "frontier_csv", "weights_csv")
    outs = {f"{name}_out": str(folder / name) for name in texts}
    outs |= {f"{name}_out": [str(folder / f"{name}.png")] for name in ("tradeoff", "steering", "frontier", "weights")}
    spec = INTERPRET["Spec"](
        title="T", facts=[FACT], runs=runs, reference="zero", steerability_of="zero", main_metric="ndcg@10",
        candidates=4, bootstrap=100, confidence=0.95, seed=0, **outs,
    )  # fmt: skip
    INTERPRET["work"](spec, _Notes(), lambda line: None)
    return pl.read_csv(folder / "table_csv"), (folder / "table_md").read_text(), folder


def test_methods_of_one_title_stay_two_methods(interpreted):
    table, page, _ = interpreted
    rows = {(row["method"], row["measure"]): row for row in table.iter_rows(named=True)}
    assert {method for method, _ in rows} == {"zero", "one", "two"} and set(table["seeds"]) == {1}
    assert [rows[method, "ndcg@10"]["mean"] for method in ("zero", "one", "two")] == pytest.approx([0, 0.1, 0.2])
    assert page.count("| Same |") == 2 * 5, "two rows in each of five blocks"
    assert rows["two", "words"]["p_holm"] < 0.05 and rows["zero", "words"]["p_holm"] is None
    assert rows["two", "words"]["p"] < rows["two", "words"]["p_holm"]


def test_facts_that_name_models_are_no_markup(interpreted):
    assert "<script" not in interpreted[1] and "Read by &lt;script&gt;" in interpreted[1]


def test_the_page_says_how_marks_are_made(interpreted):
    table, page, _ = interpreted
    # 7 measures of wording, 5 of truth, and 8 of steering, of which 6 have no value here; two methods each.
    assert (
        "p < 0.05 in a sign-flip permutation test paired by session, Holm-corrected over all comparisons of a block "
        "(Truth 10, Wording 14, Steering 4)" in page
    )
    marked = {(row["method"], row["measure"]) for row in table.iter_rows(named=True) if (row["p_holm"] or 1) < 0.05}
    assert page.count(" ▲ |") + page.count(" ▼ |") == len(marked) > 0


def test_the_shares_kept_are_those_of_the_references(interpreted):
    """Of the best accuracy, because no method is called langptune; of the steering of the one named."""
    page, frontier = interpreted[1], pl.read_csv(interpreted[2] / "frontier_csv")
    rows = {(row["method"], row["measure"]): row for row in frontier.iter_rows(named=True)}
    assert {key: row["reference"] for key, row in rows.items()} == {
        (method, measure): "two" if measure == "ndcg@10" else "zero"
        for method in ("zero", "one", "two")
        for measure in ("ndcg@10", *(f"steer_{edit}" for edit in steering.EDITS))
    }
    shares = [rows[method, "ndcg@10"]["kept"] for method in ("zero", "one", "two")]
    assert shares == pytest.approx([0, 0.5, 1]) and rows["one", "steer_add"]["kept"] == pytest.approx(1)
    assert rows["one", "steer_negate"]["kept"] is None, "nothing was denied"
    assert "NDCG@10 as a share of that of Same; the effect of edits as a share of that of Zero" in page
    assert "| Zero | 0% [0%, 0%] | 100% [100%, 100%] | – | – | – | 1.00 [1.00, 1.00] | – | – | – |" in page


def test_the_page_sets_the_text_alone_beside_the_weight(interpreted):
    page, weights = interpreted[1], pl.read_csv(interpreted[2] / "weights_csv")
    assert "| Same | 0.5 | 0.0200 → 0.0700 | profiles | 0.400 → 0.100 |" in page
    assert "| Zero | 0.5 | – → – | – | 0.400 → 0.100 |" in page
    rows = weights.filter(pl.col("edit") == "add").sort("method", "weight")
    assert rows["weight"].to_list() == [0, 0.5] * 3 and rows["chosen_by"].to_list() == [0, 1] * 3
    assert rows["auc_change"].to_list() == pytest.approx([0.4, 0.1] * 3) and (rows["obeyed"] == 1).all()
    assert rows["validation_ndcg@10"].to_list() == [0.02, 0.07, 0.02, 0.07, None, None]


def test_effects_at_a_weight_are_means_of_the_edits_of_a_session():
    frame = pl.DataFrame(
        [(1, "add", 0.0, 0.2), (1, "add", 0.0, -0.1), (2, "negate", 0.0, 0.3), (1, "add", 1.0, 0.0)],
        schema=["session", "edit", "weight", "auc_change"],
        orient="row",
    )
    found = weights.by_weight(frame, [1, 2])
    assert list(found) == [0.0, 1.0]
    add, negate = steering.EDITS.index("add"), steering.EDITS.index("negate")
    assert found[0.0][0, add].tolist() == pytest.approx([0.05, 0.5]) and np.isnan(found[0.0][0, negate]).all()
    assert found[0.0][1, negate].tolist() == [-0.3, 0.0], "up is not what a denial means"
    assert found[1.0][0, add].tolist() == [0.0, 0.0]
    # A weight that one seed lacks has no mean over seeds.
    assert {
        row["weight"] for row in weights.summarise("a", [found, {0.0: found[0.0]}], [0.0, 0.0], [], 100, 0.95, 0)
    } == {0.0}


def test_the_interval_of_a_share_kept_is_that_of_a_paired_ratio():
    rng = np.random.default_rng(0)
    whole = rng.gamma(1.0, size=(400, 3))
    half = 0.5 * whole + 0.01 * rng.normal(size=whole.shape)
    other = 0.5 * rng.gamma(1.0, size=(400, 3))
    values = {"a": whole, "b": half, "c": other, "d": rng.normal(size=(400, 1))}
    found = frontier.kept(values, dict.fromkeys("abc", "a") | {"d": "d"}, 500, 0.95, 0)
    assert (found["a"].share, found["a"].low, found["a"].high) == (1, 1, 1)
    for name in "bc":
        one = found[name]
        assert one.share == pytest.approx(values[name].mean() / whole.mean()) and one.low < one.share < one.high
        assert one.low < 0.5 < one.high
    assert np.isnan(found["d"].share), "a share of what may be nothing"
    # Against simulation: the interval of a ratio of independent means has a known standard error.
    wide = found["c"].high - found["c"].low
    error = found["c"].share * np.sqrt(2) * whole.std() / whole.mean() / np.sqrt(whole.size)
    assert 0.5 * 2 * 1.96 * error < wide < 2 * 2 * 1.96 * error


def test_a_grid_that_cannot_be_read_is_one_line(tmp_path):
    file = tmp_path / "popularity.json"
    for text in ("", "{}", '{"text": "profiles", "grid": [{"weight": 1}]}', '{"text": "profiles", "grid": 3}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"popularity.json: no grid of weights in it .*; delete it and rerun"):
            weights.read_validation(str(file))


def test_sessions_are_drawn_the_same_whatever_the_order():
    assert drawn([5, 3, 1, 4, 2], 3, 0) == drawn([1, 2, 3, 4, 5], 3, 0)
    assert drawn([1, 2], 9, 0) == [1, 2]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"methods": ["pop"]}, "interpretability.methods: 'pop' does not have exactly one profile"),
        ({"methods": ["best-of-8"]}, "does not have exactly one profile"),
        ({"methods": ["langptune"]}, "interpretability.methods: 'langptune' is not among this run's methods"),
        ({"verifier": "smollm2-135m"}, "interpretability.verifier: unknown entry 'smollm2-135m'"),
        ({"reader": "minilm-l6"}, "interpretability.reader: 'minilm-l6' is a decoder of this run"),
        ({"judges": ["nobody"]}, "interpretability.judges: unknown entry 'nobody'"),
        ({"candidates": 1}, "interpretability.candidates"),
        ({"accuracy_of": "pop"}, "interpretability.accuracy_of: 'pop' is not among the methods that are measured"),
        ({"steerability_of": "langptune-1"}, "interpretability.steerability_of: .* did you mean 'langptune-0'?"),
    ],
)
def test_settings_that_cannot_be(settings, line):
    with pytest.raises(UserError, match=line):
        load(_config(**settings), ROOT)


def test_measured_methods_are_those_with_one_profile_each():
    workflow = load(_config(), ROOT)
    assert workflow.readable == ["langptune-0"]
    assert (workflow.verifier, workflow.reader) == ("minilm-l6", "smollm2-135m")


def test_drift_is_that_of_what_was_written(tmp_path):
    """The prompt gives the beginning of profiles, so these tokens are not part of the mean."""
    model, words = p.tiny_encoder(), p.tokenizer()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    prompt, rest = words("<user> watched drama film <end> <bot> user likes").input_ids, words("drama film n3").input_ids
    prompts = [Encoded(prompt, 0, 0)] * 2
    entry = Prompt(template="t", starts="user likes")
    fields = {"encoder_in": str(tmp_path), "dtype": "float32", "prompt_entry": entry, "max_tokens": 8}
    spec = measure_profiles.Spec.model_construct(**fields)
    profiles = ["user likes drama film n3", "user likes"]
    found = measure_profiles._drift(spec, profiles, prompts, lambda line: None)
    assert found == [pytest.approx(-text_logprobs(model, [prompt], [rest])[0] / 3), None]
