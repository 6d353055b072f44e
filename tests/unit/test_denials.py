"""Profiles in two parts: texts are split into likes and avoids, and what is avoided counts against items."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest

from langptune.config.load import load
from langptune.config.phases import DENIALS
from langptune.config.workflow import Run
from langptune.data import contracts
from langptune.errors import UserError
from langptune.language.claims import Titles, statements
from langptune.language.denials import Parts, Splitter
from langptune.language.tastes import Tastes
from langptune.language.wording import words
from langptune.models.load import load_decoder
from langptune.ranking.decoder import ItemVectors, embed
from langptune.ranking.queries import denials_of, embed_queries, splitter_of
from langptune.ranking.scoring import Scoring, choose, choose_both, read_weight
from langptune.workflow.job import Job
from langptune.workflow.project import Project
from tests.conftest import ROOT
from tests.unit.test_config import MODELS, base
from tests.unit.test_interpretability import DENIED, JOINS, LIKED, PHRASES

NAMES = ["Action", "Comedy", "Drama", "Fantasy", "Horror", "Musical", "Mystery", "Romance", "War", "Western"]
TITLES = ["Tomorrow Never Dies", "Star Wars", "Pulp Fiction", "Dead Man Walking", "Who Is Not Here?"]
TASTES = Tastes(NAMES, np.zeros((1, len(NAMES)), dtype=bool))
PLAIN, SPLITTER = Splitter(Titles(TITLES)), Splitter(Titles(TITLES), TASTES)


@pytest.mark.parametrize(
    ("text", "likes", "avoids"),
    [
        ("They dislike horror and war films. They love comedies.", "They love comedies.", "horror and war films"),
        ("They love comedies. They dislike horror and war films.", "They love comedies.", "horror and war films"),
        ("They like comedy but hate horror.", "They like comedy.", "horror"),
        ("They hate horror but love comedy.", "love comedy.", "horror"),
        ("They love drama, dislike horror, and love war.", "They love drama, and love war.", "horror"),
        ("While they enjoy drama, they dislike horror.", "they enjoy drama.", "horror"),
        ("Likes: comedy. Dislikes: horror, war.", "Likes: comedy.", "horror, war"),
        ("- Likes comedy\n- Hates horror\n- Likes war", "- Likes comedy\n- Likes war", "horror"),
        ("Comedies please, no horror", "Comedies please", "horror"),
        ("no horror pls, just comedy", "just comedy", "horror"),
        ("Less war, more comedy.", "more comedy.", "war"),
        ("i dont like horror", "", "horror"),
        ("Westerns bore me to death, but I love war films.", "I love war films.", "Westerns"),
        ("I love comedy and can't bear love stories.", "I love comedy.", "love stories"),
        ("Skip the musicals. I love romance.", "I love romance.", "musicals"),
        ("I love comedy, and have had enough of war films!", "I love comedy!", "war films"),
        ("Thrillers without gore, please.", "Thrillers.", "gore"),
        ("I love Star Wars; can't stand Pulp Fiction.", "I love Star Wars;", "Pulp Fiction"),
        ("I'm not a fan of horror at all. Comedy!", "Comedy!", "horror"),
        ("Horror is not my cup of tea. Comedy is.", "Comedy is.", "Horror"),
        ("I like drama, but nothing with blood, and I never watch musicals.", "I like drama.", "blood, musicals"),
    ],
)
def test_a_denial_is_taken_out_and_what_it_denies_is_kept(text, likes, avoids):
    assert PLAIN.parts(text) == SPLITTER.parts(text) == Parts(likes, avoids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  Two  spaces,\n\n and a line.\t",
        "This user enjoys films like Tomorrow Never Dies, which is an action film.",
        'Loves Dead Man Walking and "Who Is Not Here?".',
        "Can't get enough of westerns; never misses a comedy, and loves not only war but also drama.",
        "Not really. They do not.",
        "I cant get enough of horror",
        "\ue000 a private character",
        "恐怖映画が好きです。",
        *(f"The user {one.format('comedy')}{join}{other.format('horror')}." for one in LIKED for other in LIKED
          for join in JOINS),
    ],
)  # fmt: skip
def test_a_text_without_denials_is_unchanged(text):
    parts = SPLITTER.parts(text)
    assert parts.likes == text and parts == Parts(text)


@pytest.mark.parametrize("text", ["They hate horror", "No horror.", "This user, who hates horror.", "Dislikes Horror!"])
def test_a_text_of_denials_alone_likes_nothing(text):
    assert SPLITTER.parts(text) in (Parts("", "horror"), Parts("", "Horror"))


def test_both_parts_cover_every_statement():
    texts = [text for text, _ in PHRASES]
    for one, other in [*itertools.product(LIKED, DENIED), *itertools.product(DENIED, LIKED)]:
        texts += [f"The user {one.format('comedy')}{join}{other.format('horror')}." for join in JOINS]
    for text in texts:
        parts = PLAIN.parts(text)
        liked, avoided = words(parts.likes), words(parts.avoids)
        for statement, likes in statements(text):
            named = [word for word in words(statement) if word in {"comedy", "horror", "war", "drama", "musicals"}]
            for word in named:
                assert word in (liked if likes else avoided), (text, parts)
                if len([at for at in words(text) if at == word]) == 1:
                    assert word not in (avoided if likes else liked), (text, parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("They love horror and war. They dislike horror.", Parts("They love and war.", "horror", ("Horror",))),
        ("They dislike horror. They love horror and war.", Parts("They love horror and war.", "", ("Horror",))),
        ("I love war. I hate horror, war and musicals.", Parts("", "horror, war and musicals", ("War",))),
        ("I hate horror and war. I love war films.", Parts("I love war films.", "horror", ("War",))),
        # A part of a taste does not contradict the taste.
        ("They like war films, but not slow war films.", Parts("They like war films.", "slow war films")),
        ("They dislike horror. They love old horror.", Parts("They love old horror.", "horror")),
    ],
)  # fmt: skip
def test_of_contradicting_statements_the_later_one_counts(text, parts):
    assert SPLITTER.parts(text) == parts
    assert PLAIN.parts(text).contradicted == (), "without tastes nothing contradicts"


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    rows = [
        (at, str(at), f"{genre} Number {at}", f"{genre} Number {at}. Genres: {genre}", None, genre)
        for at, genre in enumerate(name for name in NAMES for _ in range(5))
    ]
    return pl.DataFrame(rows, schema={**contracts.ITEMS, "genres": pl.String}, orient="row")


def test_without_a_field_of_genres_there_are_no_contradictions(items):
    text = "They love horror. They hate horror."
    assert splitter_of(items, "genres").parts(text).contradicted == ("Horror",)
    assert splitter_of(items, None).parts(text) == splitter_of(items, "categories").parts(text)
    assert splitter_of(items, None).parts(text) == Parts("They love horror.", "horror")


@pytest.fixture(scope="module")
def decoder(real_models):
    return load_decoder(real_models / "minilm-l6", load(base(), ROOT).models["minilm-l6"], "cpu")


@pytest.mark.models
def test_what_is_denied_falls_and_texts_without_denials_keep_their_vectors(items, decoder, one_thread):
    vectors = embed(decoder, items["text"].to_list()).vectors
    texts = [f"This user enjoys {name.lower()} films." for name in NAMES]
    assert denials_of(items, "genres", 0) is None
    half, full = (denials_of(items, "genres", weight) for weight in (0.5, 1.0))
    whole = embed(decoder, texts)
    assert np.array_equal(embed_queries(decoder, texts, "", full).vectors, whole.vectors)
    has = np.array([[genre == name for genre in items["genres"]] for name in NAMES])
    for at, text in enumerate(texts):
        for other in range(len(NAMES)):
            if other == at:
                continue
            denied = f"{text} They dislike {NAMES[other].lower()}."
            plain, less, least = (
                (embed_queries(decoder, [denied], "", denials).vectors @ vectors.T)[0][has[other]].mean()
                for denials in (None, half, full)
            )
            assert least < less < plain, denied
            likes, avoids = embed(decoder, [text, NAMES[other].lower()]).vectors
            expected = likes - 0.5 * avoids
            found = embed_queries(decoder, [denied], "", half).vectors[0]
            assert np.allclose(found, expected, atol=1e-5)
    alone = embed_queries(decoder, ["They hate horror."], "", half).vectors[0]
    assert np.allclose(alone, -0.5 * embed(decoder, ["horror"]).vectors[0], atol=1e-5), "nothing is liked"


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_both_weights_are_chosen_together_and_the_largest_of_equals_is_taken():
    vectors = unit(40, 0)
    scoring = Scoring(ItemVectors(vectors, np.arange(40)), np.log1p(np.arange(40)).astype(np.float32))
    targets = list(range(30))
    asked = pl.DataFrame(
        {"session": targets, "target": targets, "seen": [[39]] * 30},
        schema={key: contracts.SESSIONS[key] for key in ("session", "target", "seen")},
    )
    avoids, weights = unit(30, 1), [2, 0, 1]
    # The target is exactly what the query at 0.5 is near to.
    queries = {beta: vectors[:30] + (0.5 - beta) * avoids for beta in (0.5, 1.0, 0.0)}
    weight, denials, grid = choose_both(asked, queries, scoring, weights)
    assert (weight, denials) == (0, 0.5) and len(grid) == 9
    for beta in queries:
        rows = [{key: row[key] for key in row if key != "denials"} for row in grid if row["denials"] == beta]
        assert rows == choose(asked, queries[beta], scoring, weights)[1]
    same = dict.fromkeys(DENIALS, queries[0.5])
    assert choose_both(asked, same, scoring, weights)[:2] == (0, 1.0)


def test_a_chosen_weight_is_read_from_its_file(tmp_path):
    path = tmp_path / "popularity.json"
    path.write_text('{"weight": 1, "denials": 0.75}')
    assert (read_weight(0.0, path), read_weight(0.0, path, "denials"), read_weight(0.5, None, "denials")) == (
        1,
        0.75,
        0.5,
    )
    path.write_text('{"weight": 1}')
    with pytest.raises(UserError, match=r"popularity\.json: no denials in it"):
        read_weight(0.0, path, "denials")


def configured(**denials) -> dict:
    names = ["langptune-0", "langptune-cl", "langptune-cl-profiles", "langptune", "langptune-text", "history"]
    overrides = {name.replace("_", "-"): {"denials": value} for name, value in denials.items()}
    return base() | {"methods": names, "comparison": {"reference": "langptune-0"}, "overrides": overrides}


def phase(name: str, **denials):
    return load(configured(**denials), ROOT).phase_of("ml-100k", name, MODELS)


def test_denials_are_in_the_names_of_what_they_change_alone():
    def ids(name, **denials):
        return [one.id for one in phase(name, **denials).all()]

    for name in ("langptune-0", "langptune-cl"):
        key = name.replace("-", "_")
        assert ids(name) == ids(name, **{key: 0}) == ids(name, **{key: 0.5}) == ids(name, **{key: "auto"}), name
    # Rewards count denials; a decoder is trained on the likes of profiles.
    plain, half, auto = (ids("langptune", langptune=value) for value in (0, 0.5, "auto"))
    assert plain[:-1] == half[:-1] == auto[:-1] and len({plain[-1], half[-1], auto[-1]}) == 3
    plain, half, auto = (ids("langptune-cl-profiles", langptune_cl_profiles=value) for value in (0, 0.5, "auto"))
    assert plain[0] == half[0] == auto[0] and len({plain[1], half[1], auto[1]}) == 3


def test_denials_are_weighed_by_the_profiles_that_deny():
    project = Project(load(configured(langptune="auto", langptune_0="auto", langptune_cl=0.5), ROOT), ROOT)
    paths = project.paths

    def job(method: str) -> Job:
        encoder, decoder = MODELS.split("+")
        names = {"dataset": "ml-100k", "method": method, "encoder": encoder, "decoder": decoder, "seed": "1"}
        return Job(project, names)

    run = Run("ml-100k", "langptune", MODELS, 1)
    assert paths.run_weight(run) == paths.run_denials(run) == job("langptune").denials_file
    assert job("langptune").reading() == {"taste_field": "genres"}
    # A control has its method's denials, whatever it changes.
    assert paths.run_denials(Run("ml-100k", "langptune-text", MODELS, 1)) == paths.run_denials(run)
    assert job("langptune-cl").reading() == {"denials": 0.5, "taste_field": "genres"}
    assert job("langptune-cl").denials_file is None
    assert paths.run_weight(Run("ml-100k", "langptune-cl", MODELS, 1)) != paths.run_weight(run)
    assert job("history").reading() == {} and paths.run_denials(Run("ml-100k", "history", "minilm-l6", 0)) == 0
    last = paths.run_phase(run)
    assert paths.reward_denials("ml-100k", MODELS, 1, last.all()[-1]) == paths.run_denials(run)
    for method in ("langptune", "langptune-0"):
        file = job(method).denials_file
        folder, seed = file.split("/")[-2], file.split("/")[-3].removeprefix("seed")
        chosen = Job(project, {"dataset": "ml-100k", "models": MODELS, "seed": seed, "phase": folder})
        assert folder in project.phases and chosen.phase.weighed_by == "profiles"
        assert chosen.weighing_profiles == paths.run_profiles(Run("ml-100k", "langptune-0", MODELS, 0), "val")
        assert chosen.grid_of_denials() == {"denials": list(DENIALS), "taste_field": "genres"}
        assert chosen.decoder_folder == paths.run_decoder(Run("ml-100k", method, MODELS, int(seed)))
        assert chosen.weights() == project.config.training.popularity_weights
    plain = Project(load(configured(), ROOT), ROOT)
    assert all(
        "denials"
        not in Job(plain, {"dataset": "ml-100k", "models": MODELS, "seed": "1", "phase": one}).grid_of_denials()
        for one in plain.phases
    )


def test_a_number_for_popularity_stays_beside_denials_that_are_chosen():
    config = configured()
    config["overrides"] = {"langptune-0": {"denials": "auto", "popularity": 1.5}, "langptune-cl": {"denials": "auto"}}
    project = Project(load(config, ROOT), ROOT)
    run = Run("ml-100k", "langptune-0", MODELS, 0)
    assert project.paths.run_weight(run) == 1.5
    folder = project.paths.run_denials(run).split("/")[-2]
    chosen = Job(project, {"dataset": "ml-100k", "models": MODELS, "seed": "0", "phase": folder})
    assert chosen.weights() == [1.5]


@pytest.mark.parametrize("value", [-0.1, "none", float("inf")])
def test_a_weight_that_cannot_be(value):
    with pytest.raises(UserError, match="denials"):
        load(configured(langptune_0=value), ROOT)
