"""Rewards by hand, terms of form on examples, targets of the train part only, and shuffled rewards."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch

from langptune.config import rewards
from langptune.config.recipes import ReinforcementRecipe
from langptune.config.rewards import parse
from langptune.data import contracts
from langptune.errors import UserError
from langptune.metrics import from_ranks
from langptune.randomness import stream
from langptune.ranking.decoder import embed
from langptune.ranking.ranks import full_ranks
from langptune.training.reward import Reward, Sessions, dealt, futures
from langptune.training.rewards import REWARDS, Contest
from langptune.training.terms import TERMS, Written, facts_of
from tests import planted as p

SCORES = np.array([[5.0, 3.0, 4.0, 1.0, 3.0], [0.0, 2.0, 1.0, 4.0, 3.0]], dtype=np.float32)
# The first profile's target ties with item 4 and ranks below items 0 and 2; the second's is the best allowed item.
CONTEST = Contest(["a", "b"], np.array([1, 4]), SCORES, np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]], dtype=bool))
RANKS = [4, 1]
LOGS = [
    3 - math.log(sum(map(math.exp, (5, 3, 4, 1, 3)))),
    3 - math.log(sum(map(math.exp, (0, 2, 1, 3)))),
]
BY_HAND = {
    "ndcg": [1 / math.log2(5), 1],
    "ndcg@3": [0, 1],
    "mrr": [1 / 4, 1],
    "log-rank": [-math.log(4), 0],
    "piecewise": [15 / 9, 2],
    "softmax": LOGS,
    "probability": [math.exp(value) for value in LOGS],
    "contrast": [3 - 13 / 4, 3 - 3 / 3],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_rewards_by_hand(name):
    assert CONTEST.rank.tolist() == RANKS
    base, kind, k = parse(name)
    assert REWARDS[base](CONTEST, k) == pytest.approx(BY_HAND[name], rel=1e-6)
    assert kind.negative or min(BY_HAND[name]) >= 0
    assert {*REWARDS} - {name.partition("@")[0] for name in BY_HAND} == {"title"}


def test_a_config_knows_the_rewards_and_terms_that_there_are():
    assert rewards.REWARDS.keys() == REWARDS.keys() and set(rewards.TERMS) == TERMS.keys()


def test_piecewise_at_its_edges():
    ranks = np.array([1, 10, 11, 100, 101, 5000])
    scores = np.zeros((6, 6000), dtype=np.float32)
    scores[:, -1] = 1
    for row, rank in enumerate(ranks):
        scores[row, : rank - 1] = 2
    contest = Contest([""] * 6, np.full(6, 5999), scores, np.ones_like(scores, dtype=bool))
    assert contest.rank.tolist() == ranks.tolist()
    assert REWARDS["piecewise"](contest, None) == pytest.approx([2, 1, 89 / 90, 0, 0, 0])


def reward(recipe=None, weight=0.0, **more):
    data, decoder = p.planted(train=5, val=30), p.tiny_decoder()
    return data, Reward(decoder, p.scoring(decoder, data.items, weight), recipe=recipe, **more), decoder


def profiles(data, split="val"):
    return [" ".join(data.items[item] for item in shown[:2]) for shown in data.history[split]]


def recipe(**changes):
    return p.reinforcement(**{"unfinished": "score", **changes})


@pytest.mark.parametrize("name", ["ndcg", "mrr", "ndcg@10"])
def test_a_reward_is_the_metric_of_the_written_ranks(name):
    data, used, decoder = reward(recipe(reward=name))
    texts, sessions = profiles(data), p.sessions_of(data, "val", p.tokenizer())
    scores = p.scoring(decoder, data.items).scores(embed(decoder, texts).vectors)
    ranks = full_ranks(scores, sessions.targets, sessions.seen).rank
    assert np.array_equal(used.ranks(texts, sessions.targets, sessions.seen), ranks)
    found = used.columns(texts, sessions, range(30), np.ones(30, dtype=bool))
    assert found.keys() == {"reward"} and np.array_equal(found["reward"], from_ranks(name, ranks))


def test_unfinished_profiles_get_zero_or_their_score():
    data, zero, decoder = reward(p.reinforcement())
    score = Reward(decoder, p.scoring(decoder, data.items), recipe=recipe())
    sessions, finished = p.sessions_of(data, "val", p.tokenizer()), np.arange(30) % 2 == 0
    cut, kept = (used.columns(profiles(data), sessions, range(30), finished)["reward"] for used in (zero, score))
    assert (cut[~finished] == 0).all() and (kept > 0).all() and np.array_equal(cut[finished], kept[finished])


def test_several_targets_are_averaged_and_do_not_compete():
    data, used, decoder = reward(recipe(reward="log-rank", targets=3))
    texts = profiles(data)[:2]
    scores = p.scoring(decoder, data.items).scores(embed(decoder, texts).vectors)
    best = np.argsort(-scores[0])
    # The first session's targets are the three best items of its profile, so each ranks first. The second has two.
    sessions = Sessions([0, 1], [[1], [1]], [int(best[2]), 0], [[], [5]], [best[[2, 0, 1]].tolist(), [0, 7]], [[], []])
    found = used.columns(texts, sessions, [0, 1], np.ones(2, dtype=bool))["reward"]
    assert found[0] == 0.0
    by_hand = []
    for target, other in ((0, 7), (7, 0)):
        open_to = np.delete(np.arange(len(data.items)), [5, other])
        value = scores[1][target]
        ties = int((scores[1][open_to] == value).sum()) - 1
        by_hand.append(-math.log(1 + int((scores[1][open_to] > value).sum()) + (ties + 1) // 2))
    assert found[1] == pytest.approx(np.mean(by_hand))
    one = Reward(decoder, p.scoring(decoder, data.items), recipe=recipe(reward="log-rank"))
    assert one.columns(texts, sessions, [0, 1], np.ones(2, dtype=bool))["reward"][0] == pytest.approx(-math.log(3))


def test_a_weighted_sum_shows_its_parts():
    weights = {"ndcg@1000": 0.95, "probability": 0.05}
    data, used, _ = reward(recipe(reward=weights))
    sessions = p.sessions_of(data, "val", p.tokenizer())
    found = used.columns(profiles(data), sessions, range(30), np.ones(30, dtype=bool))
    assert found.keys() == {"reward", *weights}
    assert found["reward"] == pytest.approx(0.95 * found["ndcg@1000"] + 0.05 * found["probability"])


def test_the_block_size_changes_nothing(monkeypatch):
    data, used, _ = reward(recipe(reward="softmax", targets=2))
    sessions = p.sessions_of(data, "val", p.tokenizer())
    whole = used.columns(profiles(data), sessions, range(30), np.ones(30, dtype=bool))["reward"]
    monkeypatch.setattr("langptune.training.reward.BLOCK", 7 * len(data.items))
    parts = used.columns(profiles(data), sessions, range(30), np.ones(30, dtype=bool))["reward"]
    assert parts == pytest.approx(whole, abs=1e-5)


def test_title_asks_the_reader_alone():
    from langptune.models.likelihood import Reader

    data, words = p.planted(train=5, val=4), p.tokenizer()
    words.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    reader = Reader(p.tiny_encoder(), words)

    def asked(texts, targets):
        return reader.per_token(texts, [data.items[target] for target in targets])

    used = Reward(None, p.scoring(p.tiny_decoder(), data.items), recipe=recipe(reward="title"), reader=asked)
    sessions = p.sessions_of(data, "val", words)
    found = used.columns(profiles(data), sessions, range(4), np.ones(4, dtype=bool))["reward"]
    one = data.items[sessions.targets[2]]
    alone = reader._logprobs(profiles(data)[2], [one])[0] / len(words(one, add_special_tokens=False).input_ids)
    assert found[2] == pytest.approx(alone, abs=1e-4) and (found < 0).all() and len(set(found.round(6))) > 1


def session_table() -> pl.DataFrame:
    """Two users; the first has five train sessions, then one validation and one test session."""
    rows = [("a", "train", target, at) for at, target in enumerate([10, 11, 12, 11, 13])]
    rows += [("a", "val", 14, 5), ("a", "test", 15, 6), ("b", "train", 20, 0), ("b", "val", 21, 1)]
    # In a temporal split, one user's validation may precede another user's training.
    rows += [("b", "train", 22, 3)]
    table = pl.DataFrame(rows, schema=["user_id", "split", "target", "target_time"], orient="row")
    return table.with_row_index("session").with_columns(
        pl.col("session").cast(pl.Int32),
        pl.col("target").cast(pl.Int32),
        history=pl.lit([1], dtype=pl.List(pl.Int32)),
        ratings=pl.lit([5.0], dtype=pl.List(pl.Float32)),
        reviews=pl.lit(None, dtype=pl.List(pl.String)),
        seen=pl.Series([[1], [1], [1, 12], *[[1]] * 7], dtype=pl.List(pl.Int32)),
    )


def test_next_targets_are_of_the_train_part_and_never_of_validation_or_test():
    table = session_table()
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=1)
    found = dict(zip([0, 1, 4, 7], futures(shuffled, [0, 1, 4, 7], 3), strict=True))
    assert found == {0: [10, 11, 12], 1: [11, 12, 13], 4: [13], 7: [20, 22]}, "repeats are left out, users apart"
    held_out = set(table.filter(pl.col("split") != "train")["target"])
    train = table.filter(pl.col("split") == "train")["session"].to_list()
    everything = futures(table, [at for at in train if at != 2], 100)
    assert not held_out & {item for own in everything for item in own}
    assert futures(table, [3], 1) == [[11]]


def test_planted_validation_targets_never_enter_the_reward_of_training():
    """If its rows were not dropped, every item that only validation or test has as a target would be in a future."""
    data = p.planted(train=40, val=10)
    rows = [(split, target) for split in ("train", "val") for target in data.target[split]]
    table = pl.DataFrame(
        {
            "session": pl.Series(range(len(rows)), dtype=pl.Int32),
            "user_id": [str(at % 5) for at in range(len(rows))],
            "split": [split for split, _ in rows],
            # Items of validation have separate numbers.
            "target": pl.Series([t + 1000 * (split == "val") for split, t in rows], dtype=pl.Int32),
            "target_time": pl.Series(range(len(rows)), dtype=pl.Int64),
            "seen": pl.Series([[]] * len(rows), dtype=pl.List(pl.Int32)),
        }
    )
    found = futures(table, list(range(40)), 10**6)
    assert max(item for own in found for item in own) < 1000
    assert max(map(len, found)) > 3 and all(own[0] == target for own, (_, target) in zip(found, rows, strict=False))


# Terms of form

ITEMS = pl.DataFrame(
    {
        "item": range(8),
        "item_id": list("abcdefgh"),
        "title": [
            "Star Wars",
            "Kingpin",
            "Jaws",
            "Men in Black",
            "Twelve Monkeys",
            "Heat",
            "The Big Night",
            "Alien (Octavo)",
        ],
        "text": list("abcdefgh"),
        "first_seen": [0] * 8,
        "year": ["1977", "1996", "1975", "1997", "1995", "1995", "1996", "1979"],
        "genres": ["Sci-Fi", "Comedy", "Thriller", "Comedy", "Sci-Fi", "Thriller", "Comedy", "Sci-Fi"],
    },
    schema_overrides=contracts.ITEMS,
)


@pytest.fixture(scope="module")
def facts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("langptune.language.tastes.FEWEST", 2)
        return facts_of(ITEMS, "genres")


def term(name, text, facts=None, history=(0, 1), **more):
    return TERMS[name].value(Written(text, **{"finished": True, "history": history, **more}), facts)


def test_terms_of_form():
    assert [term("unfinished", "a", finished=ended) for ended in (True, False)] == [0, 1]
    assert term("repetition", "thriller, thriller, thriller, thriller") == pytest.approx(2 / 3)
    assert term("repetition", "This user enjoys slow films.") == 0 == term("repetition", "")
    assert term("list", "- Jaws\n- Alien") == term("list", "thriller, drama, comedy") == term("list", "") == 1
    assert term("list", "1. Star Wars (1977)\n2. Jaws") == 1
    assert term("list", "This user enjoys comedy, drama, thriller, and romance.") == 0
    assert [term("length", "a", tokens=n, limit=40) for n in (0, 32, 36, 40)] == pytest.approx([0, 0, 0.5, 1])


def test_the_term_repetition_is_the_penalty_of_trl_over_words():
    from trl.rewards import get_repetition_penalty_reward

    text = "the user likes the user likes drama and the user"
    ids = [hash(word) for word in text.split()]
    assert term("repetition", text) == pytest.approx(-get_repetition_penalty_reward(2, -1.0)([ids])[0])


def test_the_term_length_is_the_penalty_of_trl():
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(max_completion_len=40, soft_punish_cache=8)(
        [[0] * n for n in (0, 33, 39, 40)]
    )
    ours = [term("length", "a", tokens=n, limit=40) for n in (0, 33, 39, 40)]
    assert ours == pytest.approx([-value for value in theirs])


def test_copied_counts_titles_and_years_of_the_history(facts):
    assert term("copied", "Enjoys Star Wars and drama", facts) == pytest.approx(2 / 5)
    assert term("copied", "Enjoys drama (1996) and Men in Black", facts) == pytest.approx(1 / 7), "the year alone"
    assert term("copied", "Enjoys drama (1997)", facts) == 0 == term("copied", "", facts)


CLAIMS = {
    "Enjoys sci-fi.": (0, "a genre of the history"),
    "Enjoys thrillers.": (1, "a genre that the history lacks"),
    "Enjoys Star Wars.": (0, "a title of the history"),
    "Enjoys Men in Black.": (1, "a title outside the history"),
    "Enjoys Star Wars (1977).": (0, "title and year"),
    "Enjoys Star Wars (1996).": (1 / 2, "title right, year wrong"),
    "Enjoys Kingpin (1996).": (0, "a title of one word is identified by its year"),
    "Enjoys Kingpin (1997).": (1, "with a wrong year"),
    "Enjoys Jaws (1975).": (1, "right, but not in the history"),
    "Enjoys comedy (1996).": (0, "a genre of the history with a year of it"),
    "Enjoys comedy (1999).": (1 / 2, "with another year"),
    "Enjoys The Dust Collector (1996).": (1, "an invented title"),
    "Enjoys Alien (1979).": (1, "right without its second title, but not in the history"),
    "Enjoys films of 1996.": (0, "a year of the history"),
    "Enjoys films of 2004.": (1, "a year outside it"),
    "Enjoys films of the 1990s.": (0, "an era, no year"),
    "Enjoys slow and quiet films.": (0, "nothing that the catalogue could decide"),
}


UNDATED = {
    "Enjoys Star Wars (1999).": (0, "a title of the history, and its year is unknown"),
    "Enjoys Kingpin (1999).": (0, "a title of one word, likewise"),
    "Enjoys Jaws (1975).": (1, "a title outside the history"),
    "Enjoys comedy (1996).": (0, "no year of the history is known"),
    "Enjoys films of 2004 and of the 1950s.": (0, "likewise, nor an era"),
    "Enjoys The Dust Collector (1996).": (1, "an invented title"),
}


@pytest.mark.parametrize("text", UNDATED)
def test_without_years_no_year_is_false(text, monkeypatch):
    monkeypatch.setattr("langptune.language.tastes.FEWEST", 2)
    share, why = UNDATED[text]
    assert term("false_claims", text, facts_of(ITEMS.drop("year"), "genres")) == pytest.approx(share), why


@pytest.mark.parametrize("text", CLAIMS)
def test_false_claims(text, facts):
    share, why = CLAIMS[text]
    assert term("false_claims", text, facts) == pytest.approx(share), why


def test_a_title_is_known_without_its_second_one(facts):
    assert term("false_claims", "Enjoys Alien (1979).", facts, history=[7]) == 0
    assert term("false_claims", "Enjoys Alien (1980).", facts, history=[7]) == 1


def test_ratings_speak_against_a_liking(facts):
    assert term("false_claims", "Enjoys comedy.", facts, ratings=[5.0, 1.0]) == 1
    assert term("false_claims", "Enjoys comedy.", facts, ratings=[5.0, 4.0]) == 0


def test_terms_count_in_deviations_of_the_reward(facts):
    terms = {"unfinished": -1.0, "copied": -0.5, "list": 0.0}
    data, decoder = p.planted(train=5, val=6), p.tiny_decoder()
    used = Reward(decoder, p.scoring(decoder, data.items), recipe=recipe(terms=terms), facts=facts)
    # Histories contain only items that the facts know.
    sessions = Sessions(
        list(range(6)), [[1]] * 6, data.target["val"], [[]] * 6, [[t] for t in data.target["val"]], [[0]] * 6
    )
    texts = ["This is Star Wars", *profiles(data)[1:]]
    found = used.columns(texts, sessions, range(6), np.array([True] * 5 + [False]))
    assert found.keys() == {"reward", *terms} and found["unfinished"].tolist() == [0] * 5 + [1]
    assert found["copied"].tolist() == [0.5] + [0] * 5 and found["list"][0] == 0
    combined = used.combine(found, sessions.sessions)
    spread = found["reward"].std()
    assert combined == pytest.approx(found["reward"] - spread * (found["unfinished"] + 0.5 * found["copied"]))
    same = used.combine({**found, "reward": np.full(6, 0.3)}, sessions.sessions)
    assert same == pytest.approx(0.3 - found["unfinished"] - 0.5 * found["copied"]), "form alone tells them apart"


def test_steering_is_the_change_of_the_auc_after_a_sentence():
    """Profile by profile, from ranks counted here."""
    data, decoder = p.planted(train=5, val=6), p.tiny_decoder()
    tastes, scored = p.tastes(data), p.scoring(decoder, data.items)
    items = pl.DataFrame({"title": data.items, "text": data.items, "genres": [text.split()[0] for text in data.items]})
    known = facts_of(items, "genres")
    assert known.catalogue.tastes.names == tastes.names
    used = Reward(decoder, scored, recipe=recipe(terms={"steering": 1.0}), facts=known)
    sessions = p.sessions_of(data, "val", p.tokenizer())
    every = " ".join(p.TASTES)
    texts = ["likes western", "likes horror", "likes war", "likes western", every, "user likes space"]
    found = used.columns(texts, sessions, [0, 1, 2, 0, 4, 5], np.ones(6, dtype=bool))["steering"]
    assert found[0] == found[3], "drawn by session"
    assert found[4] == 0.0, "no taste is left to add"
    for at in (0, 1, 2, 5):
        edited, taste = TERMS["steering"].edit(
            texts[at], known, stream(0, "reinforcement-1", "edits of terms", sessions.sessions[at])
        )
        assert edited.endswith(" " + texts[at]) and tastes.names[taste] in edited.removesuffix(texts[at])
        assert tastes.names[taste] not in texts[at]
        unseen = [item for item in range(len(data.items)) if item not in sessions.seen[at]]
        auc = []
        for text in (texts[at], edited):
            scores = scored.scores(embed(decoder, [text]).vectors)[0]
            own, rest = ([scores[item] for item in unseen if tastes.has[item, taste] == has] for has in (True, False))
            auc.append(np.mean([(a > b) + 0.5 * (a == b) for a in own for b in rest]))
        assert found[at] == pytest.approx(auc[1] - auc[0], abs=1e-9) and found[at] != 0
    with pytest.raises(UserError, match="the items"):
        Reward(decoder, scored, recipe=recipe(terms={"steering": 1.0}))


def test_length_counts_the_tokens_that_were_written():
    data, used, _ = reward(recipe(terms={"length": -1.0}), limit=10)
    sessions, finished = p.sessions_of(data, "val", p.tokenizer()), np.arange(30) < 29
    asked = (profiles(data), sessions, range(30), finished)
    assert used.columns(*asked, tokens=[9] * 29 + [10])["length"].tolist() == [0.5] * 29 + [1]
    assert used.columns(*asked)["length"].tolist() == [0.0] * 29 + [1], "unknown but for the last, which was cut off"


def test_what_a_term_needs_is_asked_for_before_work():
    for changes, what in (
        ({"terms": {"copied": -1}}, "the items"),
        ({"terms": {"length": -1}}, "the longest profile"),
        ({"reward": "title"}, "the initial encoder"),
    ):
        with pytest.raises(UserError, match=what):
            reward(recipe(**changes))


# Shuffled rewards


def test_rewards_are_shuffled_to_other_sessions():
    groups = np.array([7, 3, 9, 3, 5, 8])  # session 3 occurs twice in the batch
    sessions = np.repeat(groups, 3)
    orders = [dealt(groups, 3, stream(0, "reinforcement-1", "dealt rewards", batch)) for batch in range(50)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(18)), "every reward is used once"
        assert (sessions[order] != sessions).all() and (order % 3 == np.arange(18) % 3).all(), (
            "samples keep their place"
        )
        assert (order[::3] + 1 == order[1::3]).all(), "groups stay together"
    assert len({tuple(order) for order in orders}) > 20


def test_shuffled_rewards_belong_to_seed_phase_and_batch():
    columns = {"reward": np.arange(8.0)}
    data, decoder = p.planted(train=5, val=4), p.tiny_decoder()

    def combined(batch=0, **more):
        used = Reward(decoder, p.scoring(decoder, data.items), recipe=recipe(shuffle_rewards=True), **more)
        return used.combine(columns, [1, 2, 3, 4], batch).tolist()

    first = combined()
    assert sorted(first) == columns["reward"].tolist() and first == combined() != columns["reward"].tolist()
    others = [combined(batch) for batch in range(9)] + [combined(seed=1), combined(phase="reinforcement-2")]
    assert len({tuple(other) for other in others}) > 3
    plain = Reward(decoder, p.scoring(decoder, data.items), recipe=recipe())
    assert plain.combine(columns, [1, 2, 3, 4]).tolist() == columns["reward"].tolist()


def test_terms_of_form_are_not_shuffled():
    """A repetitive profile keeps its own penalty, so the control has the same pressure on form as RLSO."""
    data, decoder = p.planted(train=5, val=4), p.tiny_decoder()
    settings = recipe(shuffle_rewards=True, terms={"unfinished": -1.0})
    used = Reward(decoder, p.scoring(decoder, data.items), recipe=settings)
    columns = {"reward": np.arange(8.0), "unfinished": np.arange(8) % 2.0}
    combined = used.combine(columns, [1, 2, 3, 4])
    dealt_rewards = combined + columns["reward"].std() * columns["unfinished"]
    assert sorted(dealt_rewards.round(9)) == columns["reward"].tolist() != dealt_rewards.round(9).tolist()


def test_one_session_cannot_be_shuffled():
    with pytest.raises(UserError, match="raise sessions_per_batch"):
        dealt([1, 1, 2], 2, stream(0, "a", "b"))


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "ndgc"}, "unknown reward 'ndgc'; valid: ndcg"),
        ({"reward": "softmax@10"}, "a cut-off is a positive integer"),
        ({"reward": "ndcg@0"}, "a cut-off is a positive integer"),
        ({"reward": {}}, "give each reward a finite weight"),
        ({"reward": {"ndcg": 0.0}}, "a weight other than 0"),
        ({"reward": {"ndcg": 0.9, "tuna": 0.1}}, "unknown reward 'tuna'"),
        ({"reward": "log-rank", "unfinished": "zero"}, "'zero' would be the highest possible reward"),
        ({"terms": {"copy": -1.0}}, "did you mean 'copied'"),
        ({"targets": 0}, "greater than or equal to 1"),
        ({"standardise": True}, "batch"),
        ({"guard": {"distinct": 1.0}}, "less than 1"),
    ],
)
def test_bad_recipes_are_refused_in_words(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**changes)


def test_form_counts_by_default_and_not_as_published(tmp_path):
    fields = {key: value for key, value in p.reinforcement().model_dump().items() if key not in ("terms", "unfinished")}
    parsed = ReinforcementRecipe.model_validate(fields)
    assert parsed.terms == {"unfinished": -1.0, "repetition": -2.0} and parsed.unfinished == "score"
    from langptune.config.base import read_yaml
    from tests.conftest import ROOT

    for name, entry in read_yaml(ROOT / "config/recipes.yaml").items():
        if name.startswith("rlso-paper-"):
            parsed = ReinforcementRecipe.model_validate(entry)
            assert (parsed.reward, parsed.targets, parsed.terms, parsed.unfinished) == ("ndcg", 1, {}, "zero"), name


def test_training_shows_its_columns_and_moves_by_them(tmp_path):
    terms = {"unfinished": -1.0, "repetition": -2.0, "list": 0.0}
    trainer = p.policy_trainer(tmp_path, recipe(terms=terms, batches=2))
    trainer.run()
    row = trainer.watch.state["curve"][1]
    assert {"reward", *terms, "finished", "distinct", "tokens"} <= row.keys()
    assert row["unfinished"] == pytest.approx(1 - row["finished"])
    other = p.policy_trainer(tmp_path / "b", recipe(terms={}, batches=2))
    other.run()
    first, second = p.weights(trainer.model), p.weights(other.model)
    assert any(not torch.equal(first[name], second[name]) for name in first)
