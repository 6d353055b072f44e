"""The survey of people: the draw, what the page reveals, exclusions, and the meaning of the numbers.

All responses here are synthetic: their file names begin with ``synthetic-``, and their comments say so.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from langptune.comparison import bootstrap
from langptune.config.base import read_yaml, validate
from langptune.config.load import load
from langptune.data import contracts
from langptune.errors import UserError, printable
from langptune.provenance import Record, write_json
from langptune.randomness import numbered
from langptune.survey import analysis, power, report
from langptune.survey.assignment import assign
from langptune.survey.responses import REASONS, read_responses
from langptune.survey.runs import surveyed
from langptune.survey.schema import CLAIMS, EASE, PREFERENCES, Codebook, digest, load_codebook
from tests.conftest import ROOT

HOSTILE = "Likes </script><script>alert(1)</script> <!-- \"quoted\" 'and' & <b>bold</b> \u2028 {braces} ${x}"
PLACES = ("Paris", "Rome", "Oslo", "Lima", "Kyoto")
TASTES = ("slow, talkative dramas", "science fiction with a puzzle in it", "old comedies", "thrillers set in one house")


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, text=True, capture_output=True)


def tables(folder: Path, users: int = 16, hostile: bool = False) -> dict:
    """Small tables in the workflow's format, and the spec that makes a survey from them in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = [f"The Film of {place} ({1950 + at})" for at, place in enumerate(PLACES)]
    titles[0] = HOSTILE if hostile else titles[0]
    n = len(titles)
    items = {"item": range(n), "item_id": [str(i) for i in range(n)], "title": titles, "text": titles}
    ids = list(range(100, 100 + users))
    sessions = {
        "session": ids,
        "user_id": [f"secret-user-{i}" for i in ids],
        "split": ["test"] * users,
        "history": [[0, 1, 2, 3]] * users,
        "ratings": [[5.0, 3.5, 4.0, float("nan")]] * users,
        "reviews": [None] * users,
        "seen": [[0, 1, 2, 3]] * users,
        "target": [4] * users,
        "target_time": [9] * users,
    }
    frames = {
        "items": pl.DataFrame({**items, "first_seen": [0] * n}, schema=contracts.ITEMS),
        "sessions": pl.DataFrame(sessions, schema=contracts.SESSIONS),
    }
    frames["evaluation"] = frames["sessions"].select("session", "split")
    texts = {
        "reference": "This user enjoys films.",
        "trained": "Number {i} enjoys {taste}, and is hard to please.",
    }
    for role, text in texts.items():
        written = [text.format(i=i, taste=TASTES[i % len(TASTES)]) for i in ids]
        if hostile:
            written[0] += HOSTILE
        if role == "trained":
            written[-1] = texts["reference"]  # both methods wrote the same text for the last user
        frames[role] = pl.DataFrame(
            {
                "session": ids,
                "sample": [0] * users,
                "profile": written,
                "prompt_tokens": [9] * users,
                "tokens": [9] * users,
                "finished": [True] * users,
                "logprob": [-1.0] * users,
            },
            schema=contracts.PROFILES,
        )
    for name, frame in frames.items():
        contracts.write(frame, folder / f"{name}.parquet", "profiles" if name in texts else name)
    return {
        "title": "Which text describes a person's taste?",
        "reference_title": "Zero-shot-method",
        "trained_title": "Trained-method",
        **{f"{name}_in": str(folder / f"{name}.parquet") for name in frames},
        "questions": 12,
        "history_items": 4,
        "questionnaire_out": str(folder / "questionnaire.html"),
        "codebook_out": str(folder / "codebook.json"),
        "codebook_md_out": str(folder / "codebook.md"),
    }


SCRIPT = runpy.run_path(str(ROOT / "scripts" / "make_survey.py"))


def make(folder: Path, hostile: bool = False, **changes) -> Codebook:
    """Make a survey with the script's own function, in this process."""
    spec = validate(SCRIPT["MakeSpec"], {**tables(folder, hostile=hostile), **changes}, "make_survey.py --spec")
    SCRIPT["make"](spec, Record(ROOT / "scripts" / "make_survey.py", {}), lambda line: None)
    return load_codebook(folder / "codebook.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of one survey with hostile texts."""
    folder = tmp_path_factory.mktemp("survey")
    make(folder, hostile=True)
    return folder


@pytest.fixture(scope="module")
def codebook(folder) -> Codebook:
    return load_codebook(folder / "codebook.json")


def synthetic(codebook: Codebook, seed: int, step) -> dict:
    """A synthetic response. ``step(pair)``: from -2, reference much better, to 2, trained profile much better."""
    known = {pair.question: pair for pair in codebook.pairs}
    profiles = {pair.question: list(pair.roles) for pair in codebook.pairs}
    repeats = {pair.question: pair.repeats for pair in codebook.pairs if pair.repeats}
    answers = []
    for question, left, right in assign(seed, profiles, repeats):
        pair = known[question]
        side = 1 if pair.roles[right] in ("trained", "instruction") else -1
        lean = 2 if pair.kind == "check" else step(pair)
        answers.append(
            {
                "question": question,
                "left": left,
                "right": right,
                "preference": PREFERENCES[2 + lean * side],
                "easier": EASE[1 + int(np.sign(lean)) * side],
                "unsupported_left": "yes" if pair.roles[left] == "reference" else "no",
                "unsupported_right": "yes" if pair.roles[right] == "reference" else "no",
            }
        )
    return {
        "schema": "langptune-survey-response/1",
        "survey": codebook.survey,
        "response": f"{seed:016x}",
        "consent": True,
        "seed": seed,
        "seconds": 20 * len(answers),
        "answers": answers,
        "comment": '"synthetic": true',
    }


def save(folder: Path, responses: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, response in responses.items():
        text = response if isinstance(response, str) else json.dumps(response)
        (folder / f"synthetic-{name}.json").write_text(text)
    return folder


def analysed(tmp_path, codebook, responses, **changes) -> dict:
    folder = save(tmp_path / "responses", {f"{at:03}": response for at, response in enumerate(responses)})
    used, excluded = read_responses(folder, codebook, 5)
    return analysis.analyse(codebook, used, excluded, **{"resamples": 500, "confidence": 0.95, "seed": 0, **changes})


def numbers(result) -> dict[str, dict]:
    return {number["key"]: number for number in result["numbers"]}


class Scripts(HTMLParser):
    """Parses the scripts of a page as a browser does."""

    def __init__(self, text):
        super().__init__()
        self.found, self._open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._open = tag == "script"
        self.found += [""] * self._open

    def handle_endtag(self, tag):
        self._open = False

    def handle_data(self, data):
        if self._open:
            self.found[-1] += data


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("questionnaire.html", "codebook.json", "codebook.md")}


def test_the_same_command_keeps_a_survey_and_no_other_folder_can_make_it(folder, codebook, tmp_path):
    spec = tables(tmp_path / "other", hostile=True)
    first = run("make_survey.py", "--spec", json.dumps(spec))
    assert first.returncode == 0, first.stderr
    made = files(tmp_path / "other")
    again = run("make_survey.py", "--spec", json.dumps(spec))
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "other") == made, "people may be answering it"
    other = load_codebook(tmp_path / "other" / "codebook.json")
    assert sorted(pair.session for pair in other.asked()) == sorted(pair.session for pair in codebook.asked())
    assert other.survey != codebook.survey and other.salt != codebook.salt
    assert not {pair.question for pair in other.pairs} & {pair.question for pair in codebook.pairs}
    changed = make(tmp_path / "other", hostile=True, contact="somebody else")
    assert changed.salt != other.salt, "the salt of another survey may have been published with its codebook"
    seeded = make(tmp_path / "seeded", hostile=True, seed=1)
    assert {pair.session for pair in seeded.asked()} != {pair.session for pair in codebook.asked()}


def test_a_codebook_of_before_the_salt_is_still_read(folder, tmp_path):
    content = json.loads((folder / "codebook.json").read_text())
    del content["salt"]
    (tmp_path / "codebook.json").write_text(json.dumps(content))
    assert load_codebook(tmp_path / "codebook.json").salt is None


def shown_data(folder: Path) -> dict:
    """Data in the page, which a respondent can read."""
    return json.loads(Scripts((folder / "questionnaire.html").read_text()).found[0])


def by_all_roles(data: dict, spec: dict) -> dict[str, str]:
    """Profile -> guessed role: tries all roles until the page's id is the hash of page, roles and titles."""
    page = {key: value for key, value in data.items() if key != "survey"}
    titles = {"reference": spec["reference_title"], "trained": spec["trained_title"]}
    sides = [tuple(one["id"] for one in pair["profiles"]) for pair in data["pairs"]]
    unknown = [at for at, pair in enumerate(data["pairs"]) if not any("is not a profile" in t for t in texts_of(pair))]
    for turn in range(2 ** len(unknown)):
        roles = []
        for at, (one, other) in enumerate(sides):
            first = "trained" if turn >> unknown.index(at) & 1 else "reference"
            roles.append({one: first, other: "trained" if first == "reference" else "reference"})
        guess = {name: role for pair in roles for name, role in pair.items()}
        if digest([page, roles, titles]) == data["survey"]:
            return guess
    return guess


def by_drawn_names(data: dict, spec: dict) -> dict[str, str]:
    """Profile -> guessed role: draws names again with the public seed, the reference's before the trained one's."""
    rng = numbered(spec["seed"])
    rng.permutation([100 + at for at in range(15)])
    place = {}
    for at in range(3 * len(data["pairs"])):
        place.setdefault(f"{int(rng.integers(2**32)):08x}", at)
    guess = {}
    for pair in data["pairs"]:
        one, other = sorted((one["id"] for one in pair["profiles"]), key=lambda name: (place.get(name, 0), name))
        guess |= {one: "reference", other: "trained"}
    return guess


def by_order(data: dict, spec: dict) -> dict[str, str]:
    """Profile -> guessed role: assumes that the reference is first in the file."""
    return {
        one["id"]: role
        for pair in data["pairs"]
        for one, role in zip(pair["profiles"], ("reference", "trained"), strict=True)
    }


def texts_of(pair: dict) -> list[str]:
    return [one["text"] for one in pair["profiles"]]


@pytest.mark.parametrize("attack", [by_all_roles, by_drawn_names, by_order])
def test_pairs_are_not_distinguishable_better_than_by_chance(tmp_path, attack):
    """The attacker has page, seed, code and both titles, like a respondent who reads the repository."""
    right = total = 0
    for at in range(25):
        spec = {**tables(tmp_path / str(at)), "questions": 8, "checks": 0, "repeats": 0, "seed": at}
        codebook = make(tmp_path / str(at), questions=8, checks=0, repeats=0, seed=at)
        guess = attack(shown_data(tmp_path / str(at)), spec)
        for pair in codebook.asked():
            right += all(guess[name] == role for name, role in pair.roles.items())
            total += 1
    assert total == 200
    assert abs(right / total - 0.5) < 0.18, f"{right} of {total}"  # five standard deviations of a fair coin


def test_the_profile_beside_a_check_does_not_follow_from_the_seed(tmp_path):
    """One profile that is known to be of a method reveals the style of all, so the seed must not determine it."""
    whose = set()
    for at in range(12):
        checks = sorted(
            (p for p in make(tmp_path / str(at), checks=2).pairs if p.kind == "check"), key=lambda p: p.session
        )
        fillers = [p.texts[name] for p in checks for name, role in p.roles.items() if role == "filler"]
        whose.add(tuple("enjoys films" in text for text in fillers))
    assert len(whose) > 1


def test_blanks_around_a_text_are_not_in_the_page(tmp_path):
    spec = tables(tmp_path)
    profiles = pl.read_parquet(spec["trained_in"])
    profiles.with_columns(pl.col("profile") + " \n").write_parquet(spec["trained_in"])
    validated = validate(SCRIPT["MakeSpec"], spec, "spec")
    SCRIPT["make"](validated, Record(ROOT / "scripts" / "make_survey.py", {}), lambda line: None)
    texts = [text for pair in shown_data(tmp_path)["pairs"] for text in texts_of(pair)]
    assert texts == [text.strip() for text in texts]


def test_what_is_asked(codebook):
    kinds = [pair.kind for pair in codebook.pairs]
    assert (kinds.count("pair"), kinds.count("check"), kinds.count("repeat")) == (12, 2, 1)
    assert (codebook.sessions, codebook.identical) == (16, 1)
    assert 115 not in {pair.session for pair in codebook.asked()}, "nobody is asked to choose between equal texts"
    first = [next(iter(pair.roles.values())) for pair in codebook.asked()]
    assert len(first) == 12 and set(first) <= {"reference", "trained"}
    assert [pair.question for pair in codebook.pairs] == sorted(pair.question for pair in codebook.pairs)


def test_the_page_gives_nothing_away_and_asks_for_nothing(folder, codebook):
    text = (folder / "questionnaire.html").read_text()
    for word in ("Zero-shot-method", "Trained-method", "secret-user", "roles", '"kind"', '"session"', "filler"):
        assert word not in text, word
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|\bsrc=|\bfetch\(|XMLHttpRequest|localStorage|cookie", text)
    assert not re.search(r"Date\.|new Date|navigator", text), "no time stamps, no fingerprints"
    assert re.search(r'content="default-src \'none\'; style-src \'sha256-[^ ]+\'; script-src \'sha256-', text)
    assert "unsafe-inline" not in text
    pages = (folder / "codebook.md").read_text()
    assert "Trained-method" in pages and "<script" not in pages and codebook.survey in pages


def test_hostile_texts_stay_texts(folder, codebook):
    data, script = Scripts((folder / "questionnaire.html").read_text()).found
    parsed = json.loads(data)
    assert "alert(1)" not in script and "<" not in data
    assert parsed["survey"] == codebook.survey
    texts = {one["id"]: one["text"] for pair in parsed["pairs"] for one in pair["profiles"]}
    assert texts == {name: text for pair in codebook.pairs for name, text in pair.texts.items()}
    assert parsed["pairs"][0]["history"] == [
        [HOSTILE, "5"],
        ["The Film of Rome (1951)", "3.5"],
        ["The Film of Oslo (1952)", "4"],
        ["The Film of Lima (1953)", None],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_in": "reference_in"}, "both methods wrote the same 16 profiles"),
        (
            {"contact": "the Trained-method team"},
            "'Trained-method', a method's title, is in a text that respondents read",
        ),
        ({"contact": "TRAINED-method."}, "'Trained-method', a method's title"),
        ({"questions": 0}, "key 'questions'"),
        ({"evaluation_in": "items_in"}, "column 'session' is missing"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path, changes, message):
    spec = tables(tmp_path)
    changes = {key: spec.get(value, value) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError, match=message):
        make(tmp_path, **changes)
    assert not (tmp_path / "questionnaire.html").exists()


def test_sides_are_fair_and_a_repeat_is_swapped_and_far():
    profiles = {f"q{at}": (f"a{at}", f"b{at}") for at in range(12)} | {"again": ("a3", "b3")}
    lefts, firsts = [], []
    for seed in range(400):
        drawn = assign(seed, profiles, {"again": "q3"})
        order = [question for question, _, _ in drawn]
        sides = {question: (left, right) for question, left, right in drawn}
        assert sorted(order) == sorted(profiles)
        assert sides["again"] == sides["q3"][::-1]
        assert abs(order.index("again") - order.index("q3")) >= 3
        lefts += [side[0].startswith("a") for question, side in sides.items() if question != "again"]
        firsts.append(order[0])
    assert abs(np.mean(lefts) - 0.5) < 0.03
    assert len(set(firsts)) == len(profiles)


def test_every_exclusion_is_counted_under_its_reason(tmp_path, codebook):
    good = [synthetic(codebook, seed, lambda pair: 1) for seed in range(12)]
    check = next(pair for pair in codebook.pairs if pair.kind == "check")

    def changed(at, **changes):
        return {**good[at], **changes}

    altered = copy.deepcopy(good[4])
    one = altered["answers"][3]
    one["left"], one["right"] = one["right"], one["left"]
    inattentive = copy.deepcopy(good[6])
    next(a for a in inattentive["answers"] if a["question"] == check.question)["preference"] = "equal"
    wrong = copy.deepcopy(good[9])
    wrong["answers"][0]["preference"] = "a-lot"
    strange = copy.deepcopy(good[10])
    strange["answers"][0]["question"] = "00000000"
    folder = save(
        tmp_path,
        {
            "a-used": good[0],
            "b-copy": changed(0, response="f" * 16, comment='other words, "synthetic": true'),
            "c-same-id": changed(1, response=good[0]["response"]),
            "d-truncated": json.dumps(good[2])[:-9],
            "e-foreign": changed(3, survey="0" * 16),
            "f-altered": altered,
            "g-part": changed(5, answers=good[5]["answers"][:-2]),
            "h-inattentive": inattentive,
            "i-fast": changed(7, seconds=10),
            "j-no-consent": changed(8, consent=False),
            "k-no-such-answer": wrong,
            "l-no-such-question": strange,
            "m-extra-key": changed(11, name="somebody"),
            "n-old-version": changed(11, schema="langptune-survey-response/0"),
            "o-list": "[1, 2]",
            "p-deep": "[" * 100_000,
            "q-for-ever": changed(2, seconds=10**400),
            "r-no-text": changed(2, survey="\ud800"),
            "t-one": changed(8, consent=1),
            "u-twice": json.dumps(good[8])[:-1] + ', "seconds": 9999}',
            "v-twice-within": json.dumps(good[8]).replace('"preference"', '"easier": "a", "preference"', 1),
            "w-large": " " * 1_000_000 + json.dumps(good[8]),
            "x\x1b]0;owned\x07": "{",
            "y-escape": changed(8, survey="\x1b[2J\u202e"),
        },
    )
    (folder / os.fsdecode(b"synthetic-s\xe9.json")).write_text("{}")
    (folder / "notes.txt").write_text("not looked at")
    os.mkfifo(folder / "synthetic-pipe.json")  # a pipe without a writer
    (folder / "synthetic-folder.json").mkdir()
    (folder / "synthetic-zero.json").symlink_to("/dev/zero")
    (folder / "synthetic-nothing.json").symlink_to("nowhere")
    used, excluded = read_responses(folder, codebook, 5)
    assert [response.response for response in used] == [good[0]["response"]]
    found = {left.file.removeprefix("synthetic-").split(".")[0]: left.reason for left in excluded}
    assert found == {
        "b-copy": "duplicate",
        "c-same-id": "duplicate",
        "d-truncated": "unreadable",
        "e-foreign": "foreign",
        "f-altered": "altered assignment",
        "g-part": "incomplete",
        "h-inattentive": "failed attention check",
        "i-fast": "too fast",
        "j-no-consent": "malformed",
        "k-no-such-answer": "malformed",
        "l-no-such-question": "unknown question",
        "m-extra-key": "malformed",
        "n-old-version": "malformed",
        "o-list": "malformed",
        "p-deep": "unreadable",
        "q-for-ever": "malformed",
        "r-no-text": "malformed",
        "s\\udce9": "malformed",
        "t-one": "malformed",
        "u-twice": "malformed",
        "v-twice-within": "malformed",
        "w-large": "unreadable",
        "x\\x1b]0;owned\\x07": "unreadable",
        "y-escape": "malformed",
        **dict.fromkeys(("pipe", "folder", "zero", "nothing"), "unreadable"),
    }
    why = {left.file.removeprefix("synthetic-").split(".")[0]: left.detail for left in excluded}
    assert "duplicate key 'seconds'" in why["u-twice"] and "duplicate key 'easier'" in why["v-twice-within"]
    assert set(found.values()) == set(REASONS)
    result = analysis.analyse(codebook, used, excluded, resamples=100, confidence=0.95, seed=0)
    assert sum(result["excluded"].values()) == len(excluded) == result["files"] - 1
    assert result["excluded"]["malformed"] == 12 and result["excluded"]["duplicate"] == 2
    write_json(tmp_path / "result.json", result)
    page = report.report(result, 5)
    assert page.isascii() and printable(page, "\n") == page and r"\\x1b\]0;owned" in page


def test_answers_count_for_the_method_not_for_the_side(tmp_path, codebook):
    result = numbers(analysed(tmp_path, codebook, [synthetic(codebook, seed, lambda pair: 2) for seed in range(8)]))
    assert result["prefer_trained"]["value"] == result["prefer_trained_much"]["value"] == result["score"]["value"] == 1
    assert result["prefer_reference"]["value"] == result["easier_reference"]["value"] == 0
    assert result["easier_trained"]["value"] == result["consistency"]["value"] == 1
    assert (result["unsupported_reference"]["value"], result["unsupported_trained"]["value"]) == (1, 0)
    assert result["unsupported_difference"]["value"] == -1
    assert 0.25 < result["chose_a"]["value"] < 0.75, "the sides were tossed"
    assert result["alpha_preference"]["value"] is None and "same" in result["alpha_preference"]["note"]
    assert result["alpha_unsupported"]["value"] == 1, "every respondent says the same of every profile"


def test_one_who_always_takes_a_shows_as_position_bias(tmp_path, codebook):
    responses = [synthetic(codebook, seed, lambda pair: 0) for seed in range(20)]
    known = {pair.question: pair for pair in codebook.pairs}
    for response in responses:
        for answer in response["answers"]:
            if known[answer["question"]].kind != "check":
                answer["preference"] = "a-bit"
    result = numbers(analysed(tmp_path, codebook, responses))
    assert result["chose_a"]["value"] == 1 and result["consistency"]["value"] == 0
    assert result["score"]["low"] < 0.5 < result["score"]["high"]


def test_a_known_preference_is_recovered(tmp_path, codebook):
    rng = np.random.default_rng(5)
    responses = [
        synthetic(codebook, seed, lambda pair: int(rng.choice([1, 2, -1], p=[0.5, 0.3, 0.2]))) for seed in range(30)
    ]
    result = analysed(tmp_path, codebook, responses)
    found = numbers(result)["prefer_trained"]
    assert found["low"] < 0.8 < found["high"] and found["high"] - found["low"] < 0.25
    assert result["tests"]["respondents"]["p"] < 0.001 > result["tests"]["questions"]["p"]
    assert [number["key"] for number in result["numbers"]][:3] == ["prefer_trained", "prefer_equal", "prefer_reference"]
    assert sum(numbers(result)[key]["value"] for key in ("prefer_trained", "prefer_equal", "prefer_reference")) == (
        pytest.approx(1)
    )
    assert analysed(tmp_path, codebook, responses) == result, "seeded"


def test_intervals_cover_a_preference_that_varies_by_person_and_by_question():
    """60 synthetic studies of 20 respondents and 12 questions; nominal 95%, and no better coverage is claimed."""
    rng = np.random.default_rng(1)
    covered = 0
    for study in range(60):
        lean = 0.7 + rng.normal(0, 0.12, (20, 1)) + rng.normal(0, 0.12, (1, 12))
        step = np.where(rng.random((20, 12)) < lean, 1, -1)
        table = dict.fromkeys(("step", "easier", "place"), step)
        table |= {f"unsupported_{role}": np.ones_like(step) for role in ("reference", "trained")}
        share = analysis._shares(table, 400, 0.95, study)[0]
        covered += share.low <= 0.7 <= share.high
    assert 50 <= covered <= 60


def test_agreement_is_one_for_the_same_answers_and_near_zero_for_chance(tmp_path, codebook):
    def alphas(step, where):
        responses = [synthetic(codebook, seed, partial(step, seed)) for seed in range(12)]
        result = numbers(analysed(tmp_path / where, codebook, responses))
        return result["alpha_preference"], result["alpha_easier"]

    for found in alphas(lambda _, pair: pair.session % 5 - 2, "same"):
        assert found["value"] == found["low"] == found["high"] == 1
    # Random by respondent and session, because the order of the questions depends on the random salt.
    for found in alphas(lambda seed, pair: int(np.random.default_rng([seed, pair.session]).integers(-2, 3)), "chance"):
        assert abs(found["value"]) < 0.1 and found["low"] < 0.05 and found["high"] > -0.05


def test_power_grows_with_respondents_and_effect_and_has_the_level_without_one():
    components = power.Variances(respondent=0.02, question=0.001, rest=0.2)
    found = [power.power(0.1, components, n, 12, 0.05, 0) for n in (5, 10, 20, 40)]
    assert found == sorted(found) and found[0] < 0.5 < found[-1]
    sizes = [power.needed(effect, components, 12, 0.05, 0.8, 0) for effect in (0.05, 0.1, 0.2, 0.4)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[1] > 2
    assert 0.005 < power.power(0.0, components, 60, 12, 0.05, 0) < 0.04, "one side of a test at 5%"
    # If users differ, there is a limit that no number of respondents exceeds.
    assert power.needed(0.1, power.Variances(0.0, 0.2, 0.1), 12, 0.05, 0.8, 0) is None


def test_power_knows_the_variances_and_the_error_of_the_bootstrap():
    rng = np.random.default_rng(0)
    score = 0.6 + rng.normal(0, 0.3, (400, 1)) + rng.normal(0, 0.2, (1, 400)) + rng.normal(0, 0.4, (400, 400))
    components = power.variances(score)
    assert np.sqrt([components.respondent, components.question, components.rest]) == pytest.approx(
        [0.3, 0.2, 0.4], abs=0.02
    )
    # The closed form in `power` on one table, against resampling the table.
    small = score[:15, :9]
    mean, rows, columns = small.mean(), small.mean(axis=1), small.mean(axis=0)
    rest = small - rows[:, None] - columns + mean
    closed = np.sqrt(rows.var() / 15 + columns.var() / 9 + (rest**2).mean() / (15 * 9))
    draws = bootstrap.replicates({"x": small[:, :, None]}, 20_000, 0)["x"]
    assert draws.std() == pytest.approx(closed, rel=0.02)
    # Studies that are simulated by their sums of squares, against studies that are simulated by full tables.
    small_told = power.Variances(0.03, 0.01, 0.2)
    hits = 0
    for _ in range(2000):
        table = 0.62 + rng.normal(0, 0.03**0.5, (15, 1)) + rng.normal(0, 0.1, (1, 9)) + rng.normal(0, 0.2**0.5, (15, 9))
        mean, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
        rest = table - rows[:, None] - columns + mean
        error = np.sqrt(rows.var() / 15 + columns.var() / 9 + (rest**2).mean() / (15 * 9))
        hits += mean - 0.5 > 1.959964 * error
    assert hits / 2000 == pytest.approx(power.power(0.12, small_told, 15, 9, 0.05, 0), abs=0.04)


def test_without_an_effect_the_plan_names_its_rule():
    score = np.tile([[0.0, 1.0], [1.0, 0.0]], (4, 3))
    planned = power.plan(score, 0.05, 0.8, 0)
    assert planned["effect"] == 0 and "no effect observed; planned for 0.1" in planned["note"]
    assert [size["effect"] for size in planned["sizes"]] == [0.1]
    assert planned["sizes"][0]["respondents"] > 10
    assert power.plan(np.ones((4, 3)), 0.05, 0.8, 0)["sizes"] == []
    assert "two respondents" in power.plan(np.ones((1, 3)), 0.05, 0.8, 0)["note"]


@pytest.mark.parametrize("count", [0, 1])
def test_the_command_works_with_no_response_and_with_one(tmp_path, folder, codebook, count):
    made = [synthetic(codebook, seed, lambda pair: 1) for seed in range(count)]
    responses = save(tmp_path / "in", {str(at): result for at, result in enumerate(made)})
    if not count:
        save(responses, {"broken|`": "{"})
    out = tmp_path / "out"
    done = run("analyse_survey.py", "--survey", str(folder), "--responses", str(responses), "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "analysis.json").read_text())
    page = (out / "analysis.md").read_text()
    rows = list(csv.DictReader((out / "analysis.csv").open()))
    assert result["respondents"] == count and (out / "analysis.json.manifest.json").exists()
    if count:
        assert len(rows) == len(result["numbers"]) > 15
        row = rows[0]
        assert row["key"] == "prefer_trained" and float(row["value"]) == 1 and "one respondent" in row["note"]
        assert result["power"]["sizes"] == [] and "No estimate: variances need at least two" in page
    else:
        assert rows == [] and "No valid response" in page and "no valid response, nothing to analyse" in done.stderr
        assert result["excluded"]["unreadable"] == 1 and "synthetic-broken" in page


def test_responses_among_the_surveys_own_files_are_refused(folder, codebook, tmp_path):
    with pytest.raises(UserError, match="holds a codebook"):
        read_responses(folder, codebook, 5)
    with pytest.raises(UserError, match="no such folder"):
        read_responses(tmp_path / "nowhere", codebook, 5)


def test_a_spoiled_codebook_is_one_line(folder, tmp_path):
    content = json.loads((folder / "codebook.json").read_text())
    content["pairs"][0]["roles"] = {}
    (tmp_path / "codebook.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"codebook.json: key 'pairs.0': a \w+ needs two profiles"):
        load_codebook(tmp_path / "codebook.json")
    (tmp_path / "codebook.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_codebook(tmp_path / "codebook.json")


def test_answers_are_those_that_the_page_offers():
    from langptune.survey.page import SCRIPT

    for value in (*PREFERENCES, *EASE, *CLAIMS):
        assert f"['{value}'," in SCRIPT


def test_people_are_asked_only_where_profiles_can_differ():
    workflow = load(read_yaml(ROOT / "config" / "config.yaml"), ROOT)
    asked = {run.method for run in surveyed(workflow)}
    assert "langptune" in asked and not asked & {"langptune-0", "langptune-cl", "shuffled-profiles", "history"}
    assert {run.seed for run in surveyed(workflow)} == {workflow.config.seeds[0]}
    without = workflow.config.interpretability.model_copy(update={"methods": ["langptune"]})
    workflow = replace(workflow, config=workflow.config.model_copy(update={"interpretability": without}))
    assert surveyed(workflow) == [], "no reference, nothing to set against"
