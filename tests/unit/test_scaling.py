"""The time of every regular expression and function that reads untrusted texts grows in proportion to their length.

Times are compared within one run of one process: four times the length may take at most six times as long. Quadratic
time would be sixteen times as long.
"""

from __future__ import annotations

import ast
import gc
import importlib
import re
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from langptune import prompts, thinking
from langptune.config.base import nearest
from langptune.data import jsonl, templates, texts
from langptune.data.readers import titles as titles_read
from langptune.endpoint import answers
from langptune.explorer import titles as titles_typed
from langptune.explorer.differences import differences
from langptune.interpretability import steering
from langptune.judge import prompt, verdict
from langptune.language import claims, denials, tastes, wording
from langptune.language.tastes import Tastes, pattern
from langptune.training import terms
from tests.conftest import ROOT

SHORT, SHORT_IF_SLOW, MOST = 25_000, 10_000, 6.0
"""Numbers of characters; how many times as long four times the characters may take."""
LEAST = 2e-4
"""Shorter times, in seconds, are too inexact to compare."""
METHODS = {"search", "match", "fullmatch", "finditer", "findall", "sub", "subn", "split"}
Hostile = tuple[str, str, str]
"""Prefix, repeated part, suffix."""
COMMON: list[Hostile] = [
    *(
        ("", unit, "x")
        for unit in [
            " ",
            "\n",
            " \n",
            "\t",
            ".",
            ":",
            ",",
            ", ",
            "a",
            "aB",
            "a ",
            "a-",
            "a'",
            "1",
            "(",
            "(a",
            "[A",
            "[a ",
            "<",
            "*",
            '"',
            '"a',
            "É",
        ]
    ),
    *(
        ("x", unit, "!")
        for unit in [
            "and ",
            "and  ",
            "never ",
            "not a ",
            "ly ",
            "is ",
            "that ",
            "\x01",
            "n't",
            "Aa ",
            "Aa",
            "( )",
            "( ",
            '<b a="',
        ]
    ),
]
"""Every expression is tested with these strings, and with strings made for it, which are below."""
OWN: dict[str, list[Hostile]] = {
    "comparison/pages.py:_label": [],
    "config/base.py:_NAME": [("a", "._-", "!")],
    "data/card.py:URL": [("http://", "a/", "<"), ("", "http://", ""), ("", "https", "")],
    "language/denials.py:avoided": [],
    "language/denials.py:CONJUNCTION": [("", ", ", "x"), ("", " ", "x"), ("and", " ", "x"), ("", "\n,", "x")],
    "language/denials.py:DENYING": [
        ("", "lacks of ", "x"),
        ("", "not a, ", ""),
        ("", "n'", "t"),
        ("", "also ", "lik"),
        ("", "without a ", "x"),
    ],
    "language/denials.py:NAMED": [("", "a-", ""), ("", "a''", ""), ("", "\ue000", "")],
    "language/denials.py:SEPARATOR": [("", ".!", ""), ("", ": ", "")],
    "models/check.py:_LAYERS": [
        (".*\\.layers\\.(", "1", ")"),
        (".*\\.layers\\.(", "1|", ""),
        (".*\\.layers\\.(1)\\..*\\.(", "a|", "!"),
    ],
    "models/check.py:_WHOLE": [("model.layers.", "1", "x")],
    "spreadsheet.py:FORMULA": [("", "'", "a"), ("", "'", "=")],
    "data/fetch.py:_range": [("bytes ", "1", "-2/3"), ("bytes 1-", "2", "/"), ("bytes */", "1", "x")],
    "data/jsonl.py:_HALVES": [("", "\ud800", "")],
    "data/readers/titles.py:_BEFORE_BRACKETS": [("", ", The (a", ")"), ("x", ", The (a)", "b)"), ("", ", The", ")")],
    "data/readers/titles.py:_LAST": [("", ", The (a", ""), ("", ", The", "x"), ("x", ", ", ""), ("", ", The ", "")],
    "data/templates.py:_NOTHING_IN_BRACKETS": [
        ("", " \t", "("),
        ("", " (", ""),
        ("", "(\ufdd0", ""),
        ("", " [\ufdd0 ", ""),
    ],
    "endpoint/answers.py:error_status": [("", "1", "x")],
    "explorer/titles.py:RATING": [
        ("|", " ", "x"),
        ("", "| 1", "x"),
        ("", "| 1 ", "x"),
        ("|1.", "1", "x"),
        ("", "|1.11 ", "x"),
    ],
    "explorer/titles.py:YEAR": [("(1999)", " ", "x"), ("", "(1999) ", "x"), ("", "(199", "")],
    "explorer/titles.py:key": [],
    "explorer/differences.py:_WORD": [("", "a'", ""), ("", "'a", ""), ("", "a''", "")],
    "language/claims.py:AFFIRMATIVE": [("", "and ", "x"), ("and", " ", "x"), ("", " ", "more than")],
    "language/claims.py:BE": [
        ("is", " ", "x"),
        ("is ", "a", "!"),
        ("", "is  a ", "!"),
        ("", "isn't", "x"),
        ("", "been ", "!"),
    ],
    "language/claims.py:CLAUSE": [
        *(("", unit, "x") for unit in (".\n", "!?", "::", "dislikes:", "dislikes::", "hates: :", ".:", "nothing but ")),
    ],
    "language/claims.py:CONJUNCTION": [
        *(
            ("and ", unit, "x")
            for unit in ("the ", "a an the ", "the    ", "really  ", "user users ", "to to ", "no no ")
        ),
        *(("", unit, "x") for unit in ("and the ", "and  the  ", "or nor ", "as so if ", "and no longer", "and n't ")),
        ("and the", " ", "x"),
        ("and ", "n", "'x"),
        ("and the ", "a", "n't"),
    ],
    "language/claims.py:DECADE": [
        ("", "19", "s"),
        ("", "1990", "'"),
        ("", "early late ", "19"),
        ("", "'9", "0"),
    ],
    "language/claims.py:IMPERATIVE": [
        ("", "and ", "x"),
        ("and", " ", "x"),
        ("", "no ", "-"),
        ("", "less ", "than"),
    ],
    "language/claims.py:KEEN": [
        ("", "never  ", "x"),
        ("never", " ", "x"),
        ("never really", " ", "x"),
        ("", "never really  ", "x"),
        ("", "can't have ", "x"),
        ("", "n", "'x"),
        ("", "never be more a", "é"),
        ("never say ", "a", "!"),
        ("", "no stranger ", "x"),
        ("", "nothing ", "x"),
    ],
    "language/claims.py:LAST_AND": [("", "and ", "x"), ("", "and", "x"), ("", "or\n", "")],
    "language/claims.py:LIKING": [
        ("", "also ", "lik"),
        ("", "\x01\x02", ""),
        ("", "fan of", ""),
        ("", "would ", "like"),
    ],
    "language/claims.py:NEGATION": [
        ("", "lacks of ", "x"),
        ("", "no  ", "x"),
        ("", "n'", "t"),
        ("", "avoid", "-"),
        ("", "hated", ""),
    ],
    "language/claims.py:NEUTRAL": [
        ("", "not  ", "only"),
        ("not", " ", "x"),
        ("not really", " ", "x"),
        ("", "more often than ", ""),
    ],
    "language/claims.py:PASSIVE": [
        ("is", " ", "x"),
        ("is ", "ly", "!"),
        ("", "is ly  ", "!"),
        ("is aly", " ", "x"),
    ],
    "language/claims.py:PERSON": [
        ("A", "a", "1"),
        ("", "Aa ", "A"),
        ("", "Aa A.", ""),
        ("", "Aa Aaa", "1"),
        ("Aa A", "a", "1"),
    ],
    "language/claims.py:PRIVATE": [("", "\ue000", "")],
    "language/claims.py:QUOTED": [("", '"aa', ""), ("", "*", "a"), ("", "“a", ""), ("", "“" + "a" * 80, "")],
    "language/claims.py:RELATIVE": [
        ("that", " ", "x"),
        ("", "that  ", "x"),
        ("", "that the ", ""),
        ("", "who who ", ""),
    ],
    "language/claims.py:_parts": [("", ",", "")],
    "language/claims.py:_decades": [],
    "language/tastes.py:removed": [
        ("", " ", "x"),
        ("", ", ", "x"),
        ("", ",", "x"),
        ("", ": ", "x"),
        ("", " ,", "x"),
    ],
    "language/tastes.py:_with_plural": [("", "y", "x")],
    "language/tastes.py:pattern": [],
    "language/wording.py:WORD": [("", "a-", ""), ("", "a--", ""), ("", "_", ""), ("", "a’", "")],
    "judge/prompt.py:as_data": [("", "ver", ""), ("", "=", "x"), ("", "= ", "")],
    "judge/verdict.py:_AFTER": [("", "` ", "x")],
    "judge/verdict.py:_BARE": [("", "**", "x!"), ("", "((", "a"), ("(", "a", "!"), ("", "a)", ""), ("(a", ")", "!")],
    "judge/verdict.py:_HEADING_LINE": [
        ("", "so ", "x"),
        ("", "the,", "verdic"),
        ("", "so, ", "verdict:"),
        ("verdict", "*", "x"),
        ("verdict:", " ", "x"),
    ],
    "judge/verdict.py:_KEY": [('"verdict"', " ", "x"), ("", '"verdict" ', "x"), ("", '"verdict', "")],
    "judge/verdict.py:_MENTION": [
        ("verdict", " ", "x"),
        ("", "verdict is ", ""),
        ("verdict ", "is ", ""),
        ("", "verdict", "!"),
    ],
    "judge/verdict.py:_VERDICT": [
        ("", "so ", "verdict: A?"),
        ("verdict:", "*", "A"),
        ("verdict: ", "a", "!"),
        ("", "verdict", ""),
        ("#", "the  ", "x"),
    ],
    "judge/verdict.py:_from_json": [("profile", " ", "x"), ("", "profile ", "x"), ("", "{", "")],
    "prompts.py:_LOOKS_SPECIAL": [("", "[A", ""), ("", "[/", ""), ("[", "A", "x"), ("", "[_", "]")],
    "thinking.py:_MARK": [("", "<think", ""), ("", "<thinking>", ""), ("", "</think>", ""), ("", "[THINK", "")],
    "thinking.py:_OPENED": [("<think>", " ", "x"), ("", "<think> ", "x"), ("", "<think>", "x")],
    "training/terms.py:BRACKETS": [
        ("", " ", "x"),
        ("", " (", "x"),
        ("", "()", "x"),
        ("", " () ", "x"),
        ("(", "a", "x"),
    ],
    "training/terms.py:ITEM": [
        ("", "\n", "x"),
        ("", " \n", "x"),
        ("", "-\n", "x"),
        ("", "(1", ""),
        ("", "- ", ""),
        ("", "\r\n", "x"),
    ],
    "training/terms.py:YEAR": [("", "1999", ""), ("", "1999 ", ""), ("", "19", "")],
}
"""Each regular expression of the source that reads texts, as file:name; if it has no name, file:function."""
EXCEPT = {
    "config/datasets.py:_one": "the owner's own config; anchored",
    "config/models.py:_check_endpoint": "the owner's own config; one anchored pass",
    "config/settings.py:changes": "the owner's own config",
    "data/fetch.py:fetch": "a file name in the hub's cache",
    "endpoint/errors.py:_advice": "a literal word between two boundaries: no repetition in it",
    "allowed.py:_HOST": "the user's own list; one anchored pass",
    "allowed.py:_NAME": "the user's own list; one anchored pass",
    "endpoint/serve.py:NEEDED": "names of the owner's environment variables",
    "explorer/access.py:_has_token": "a fixed length behind a literal name; requests have at most 128 KiB",
    "files.py:_parts": "file names, which the system bounds",
    "processes.py:SECRET": "names of the owner's environment variables",
    "launch.py:address": "what Slurm says of its own nodes",
    "metrics/__init__.py:_NAME": "the owner's own config; anchored",
    "prompts.py:__init__": "an alternation of a tokenizer's own tokens: no repetition in it",
    "training/terms.py:BEFORE": "searches 200 characters; the function that cuts them is tested",
    "stage.py:preempted": "what Slurm says of its own partitions",
}
"""Expressions that read no untrusted text, and the reason."""


def text(hostile: Hostile, size: int) -> str:
    first, unit, last = hostile
    return first + unit * (size // len(unit)) + last


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """The shortest of several times of this thread only, so that other load does not count."""
    least = float("inf")
    gc.disable()
    try:
        for _ in range(times):
            start = time.thread_time()
            call()
            least = min(least, time.thread_time() - start)
    finally:
        gc.enable()
    return least


def ratio(make: Callable[[int], Callable[[], object]], size: int) -> float:
    """The time for a text of four times ``size`` characters over that for ``size``."""
    short, long = make(size), make(4 * size)
    short()  # work that is done only once is not measured
    for times in (1, 3, 9, 27):  # measured again only if the first result is suspicious
        found = seconds(long, times) / max(seconds(short, 2 * times), LEAST)
        if found <= MOST:
            return found
    # The longer text may be the first that exceeds a cache or needs more memory from the system. That happens once,
    # but quadratic time shows at every length.
    return min(found, seconds(make(16 * size), 3) / max(seconds(long, 3), LEAST))


def check(
    make: Callable[[Hostile], Callable[[int], Callable[[], object]]], hostile: list[Hostile], size: int = SHORT
) -> None:
    found = {one: ratio(make(one), size) for one in hostile}
    worst = {one: round(value, 1) for one, value in found.items() if value > MOST}
    assert not worst, f"4 times the length takes more than {MOST} times as long: {worst}"


# --- expressions -----------------------------------------------------------------------------------------------


def expressions() -> dict[str, list[tuple[re.Pattern[str] | None, set[str]]]]:
    """All expressions of the library: file:name -> the expression (None if it is built at run time) and its uses."""
    out: dict[str, list[tuple[re.Pattern[str] | None, set[str]]]] = {}
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "src/langptune").rglob("*.py"))}
    used: dict[str, set[str]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in METHODS | {"pattern"}:
                name = getattr(node.value, "id", getattr(node.value, "attr", ""))
                used.setdefault(name, set()).add(node.attr)
    for path, tree in trees.items():
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "re" for node in ast.walk(tree)), path
        where = path.relative_to(ROOT / "src/langptune").as_posix()
        owners = [(node, node.name) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if getattr(node.func.value, "id", "") != "re" or node.func.attr not in METHODS | {"compile"}:
                continue
            inside = [name for owner, name in owners if owner.lineno <= node.lineno <= owner.end_lineno]
            named = [one.targets[0].id for one in tree.body if isinstance(one, ast.Assign) and one.value is node]
            if named:
                module = importlib.import_module("langptune." + where.removesuffix(".py").replace("/", "."))
                out.setdefault(f"{where}:{named[0]}", []).append((getattr(module, named[0]), used.get(named[0], set())))
                continue
            literal = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            found = re.compile(literal) if literal is not None else None
            out.setdefault(f"{where}:{inside[-1]}", []).append((found, {node.func.attr}))
    return out


FOUND = expressions()


def test_every_expression_is_tested_or_excepted():
    assert set(FOUND) == set(OWN) | set(EXCEPT), set(FOUND) ^ (set(OWN) | set(EXCEPT))
    assert not set(OWN) & set(EXCEPT)


@pytest.mark.parametrize("name", sorted(set(OWN) & set(FOUND)))
def test_an_expression_reads_a_text_once(name):
    for expression, uses in FOUND[name]:
        if expression is None:
            assert name in CASES, f"{name}: put together at run time; test its function"
            continue

        def make(hostile, expression=expression, uses=uses):
            def of(size):
                sample = text(hostile, size)
                if uses <= {"match", "fullmatch"}:
                    return lambda: [getattr(expression, use)(sample) for use in uses]
                return lambda: sum(1 for _ in expression.finditer(sample))

            return of

        check(make, COMMON + OWN[name])


# --- functions -------------------------------------------------------------------------------------------------

TASTES = Tastes(["Children's", "Comedy", "Drama", "Sci-Fi", "War"], np.ones((6, 5), dtype=bool))
TITLES = [
    "Usual Suspects, The",
    "Heat",
    "The War and the War and the War",
    "a a a a a a a a",
    "aB" * 60,
    "Star Wars (1977)",
]
PROSE = claims.Titles(TITLES)
SPLITTER = denials.Splitter(PROSE, TASTES)
TYPED = titles_typed.Titles(TITLES, [""] * 6)
JUDGES = {
    kind: SimpleNamespace(answer=kind, answers=SimpleNamespace(labels={"A": "first", "B": "second", "tie": "tie"}))
    for kind in ("json", "line", "word")
}
CATALOGUE = terms.facts_of(
    pl.DataFrame({"title": TITLES, "text": TITLES, "genres": ["Comedy, War"] * 6, "year": ["1990"] * 6}), "genres"
)
HALF: list[Hostile] = [("", "a b ", ""), ("", "the ", ""), ("", "x y z ", "")]
HTML: list[Hostile] = [
    *(
        ("", unit, "")
        for unit in ("<br ", "<br>", "&amp;", "&", "&a", "<!--", "<b a='", " <br>", "&#38;", "&amp;amp;lt;")
    ),
    ("<br ", 'x="<br>" ', ""),
    ("<br ", "a=b ", ""),
    ("<b ", "a ", ""),
    ("", " \t", "<br"),
    ("<!--", "-", ""),
]


def frame(content: str, column: str = "title") -> pl.DataFrame:
    return pl.DataFrame({"item_id": ["1"], column: [content]})


CASES: dict[str, tuple[Callable[[str], object], list[Hostile]]] = {
    "language/claims.py:_decades": (claims._decades, [("", "sixtie", ""), ("", "sixties ", "")]),
    "language/claims.py:statements": (claims.statements, [("", "likes a, not b. ", ""), ("", "not a, ", "")]),
    "language/claims.py:extract": (
        lambda sample: claims.extract(sample, TASTES, PROSE),
        [("", '"Heat" ', ""), ("", "Usual Suspects, ", ""), ("", "The War and ", ""), ("", "Tom Hanks. ", "")],
    ),
    "language/denials.py:avoided": (
        denials.avoided,
        [("", "not a, ", ""), ("no ", "the ", "war"), ("", "not  likes ", ""), ("war ", "the ", "x"), ("", "and ", "")],
    ),
    "language/denials.py:parts": (
        lambda sample: SPLITTER.parts(sample),
        [
            ("", "likes war, not drama. ", ""),
            ("", "hates war. ", "loves war."),
            ("", "not a, ", ""),
            ("hates war, likes ", "drama and ", ""),
            ("", '"Heat" and no Star Wars, ', ""),
            ("", "but not war ", ""),
        ],
    ),
    "language/tastes.py:removed": (
        lambda sample: tastes.removed(sample, "Comedy"),
        [("", "and ", "x"), ("", ", comedy", ""), ("", "and  comedy,", ""), ("and", " ", "x"), ("", " and comed", "")],
    ),
    "interpretability/steering.py:edits": (
        lambda sample: steering.edits(sample, TASTES, PROSE, 5, 0, 0),
        [("", "comedy and war, ", ""), ("", '"Heat" and drama ', "")],
    ),
    "language/tastes.py:pattern": (
        lambda sample: [pattern(name).search(sample) for name in (*TASTES.names, "Fantasy", "Biography")],
        [
            ("", "comic", " book"),
            ("comic", " ", "book"),
            ("", "comic- ", "books"),
            ("", "sci-", "fi"),
            ("", "fantastic", ""),
        ],
    ),
    "language/wording.py:copied": (
        lambda sample: wording.copied(wording.words(sample), TITLES),
        [*HALF, ("", "a ", ""), ("", "The War and ", ""), ("", "heat ", "")],
    ),
    "language/wording.py:repetition": (lambda sample: wording.repetition(wording.words(sample)), HALF),
    "language/wording.py:measure": (
        lambda sample: wording.measure(sample, TITLES),
        [("", "a b ", ""), ("", "a", "")],
    ),
    "language/wording.py:sameness": (lambda sample: wording.sameness([sample, "a b c"]), HALF),
    "data/readers/titles.py:move_article": (
        titles_read.move_article,
        [("", ", The (a", ""), ("", ", The (a\n", ")"), ("x", ", The (a)", ")"), ("", ", The", "\n")],
    ),
    "data/readers/titles.py:year_apart": (
        lambda sample: titles_read.year_apart(frame(sample)),
        [("", "(1999", ""), ("a", " ", "(1999)"), ("", "(1999) ", "x"), ("a(1999", " ", "x")],
    ),
    "data/texts.py:clean_items": (lambda sample: texts.clean_items(frame(sample)), HTML),
    "data/templates.py:render": (
        lambda sample: templates.render(templates.compile_template("({{ a }}) {{ b }}", "x"), "x", a=sample, b=""),
        [("", " (", ""), ("", "\ufdd0", ""), ("", "(\ufdd0) ", "")],
    ),
    "data/jsonl.py:storable": (jsonl.storable, [("", "\ud800", "")]),
    "explorer/titles.py:match": (
        TYPED.match,
        [*HALF, ("", "aB", "x"), ("", "́̀", ""), ("", "ﷺ", ""), ("", "the usual suspect ", ""), ("| 1.", "1", "")],
    ),
    "explorer/titles.py:catalogue": (
        lambda sample: titles_typed.Titles([sample, sample + "x"]).match("the usual suspects"),
        [*HALF, ("", "a\u0315\u0300", ""), ("", "\u0315\u0300", "")],
    ),
    "explorer/differences.py:differences": (
        lambda sample: differences(
            sample, sample[: len(sample) // 2] + " and " + sample[len(sample) // 2 + 1 :].replace("a", "b a")
        ),
        [*HALF, ("", "a ", ""), ("", "a a b ", "")],
    ),
    "judge/verdict.py:read": (
        lambda sample: [verdict.read(sample, True, judge) for judge in JUDGES.values()],
        [
            ('{"verdict": "A"', '{"a":', ""),
            ("", '{"verdict":[', ""),
            ("", '{"verdict":', '"A"}'),
            ('{"verdict":"', "{", ""),
            ("", '{"verdict": "A"} ', ""),
            ("", '{"a":1,', '"verdict":"A"'),
            ("```", "\n`", "```"),
            ("", "```json\n", ""),
            ('{"verdict":"A"}', " ", "x"),
            ("", "VERDICT: A\n", ""),
            ("", "so, verdict ", "A"),
            ('"verdict":', "{}", ""),
        ],
    ),
    "judge/prompt.py:as_data": (
        lambda sample: prompt.as_data(sample, len(sample), ("A", "B")),
        [("", "verdict", ""), ("", "A\n", ""), ("", "==\n", ""), ("", "\u200b", ""), ("", "<|im_end|>", "")],
    ),
    "thinking.py:without_thoughts": (
        thinking.without_thoughts,
        [("", "<think>", ""), ("", "</think>", ""), ("", "<think>a</think>", ""), ("", "<think", ">")],
    ),
    "prompts.py:without_special": (prompts.without_special, [("", "[A", "]"), ("", "[A]", "")]),
    "training/terms.py:terms": (
        lambda sample: [
            term.value(terms.Written(sample, True, 9, 9, [0, 1], [1.0, 2.0]), CATALOGUE)
            if isinstance(term, terms.Term)
            else term.edit(sample, CATALOGUE, np.random.default_rng(0))
            for term in terms.TERMS.values()
        ],
        [
            ("", "1999 ", ""),
            ("", " (1995", ""),
            ("", "Heat (1999) ", ""),
            ("", "Tom Hanks (1999), ", ""),
            ("1999", " (", "1999"),
            ("", "- a\n", ""),
        ],
    ),
    "config/base.py:nearest (a long name)": (lambda sample: nearest("titel", [sample, sample[1:]]), HALF),
    "config/base.py:nearest (many names)": (
        lambda sample: nearest("titel", sample.split(" ")),
        [("", "titel ", ""), ("", "tilet ", "")],
    ),
    "endpoint/answers.py:read": (
        lambda sample: answers.read(sample.encode(), answers.Request((("user", "x"),), 9)),
        [
            ("", "[", ""),
            ("", '{"choices":', ""),
            ('{"choices":[{"message":{"content":[', '"a",', '"a"]}}]}'),
            ('{"choices":[{"message":{"content":"', "<think>", '"}}]}'),
            ('{"choices":[{"message":{"content":"', "\\ud800", '"}}]}'),
        ],
    ),
}
"""Functions that read untrusted texts and involve more than one expression, or none."""


RUNS: list[Hostile] = [("", unit, "x") for unit in (" ", "\n", ",", "a", "a. ", "(", "and ")]
SLOW = {
    "language/claims.py:extract",
    "language/denials.py:parts",
    "interpretability/steering.py:edits",
    "language/wording.py:measure",
    "language/wording.py:sameness",
    "training/terms.py:terms",
}
"""Functions that are slow on any text."""


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_function_takes_time_in_proportion(name):
    function, hostile = CASES[name]

    def make(one):
        def of(size):
            sample = text(one, size)
            return lambda: function(sample)

        return of

    if name in SLOW:
        check(make, hostile, SHORT_IF_SLOW)
    else:
        check(make, hostile + RUNS)


# --- the same results ------------------------------------------------------------------------------------------

WRITTEN = (
    "and or but not never dislikes: avoids:: likes comedy comedies drama war the a of is that nothing 1990s Star Wars "
    "Usual Suspects Heat - * 1. 2) : :: . ... , ; ! ? ( ) () (1999) [ ] , The , A ( \n \n\n \t \ufdd0 (\ufdd0) [\ufdd0]"
)
VOCABULARY = WRITTEN.split(" ")
PLAIN = {
    "CLAUSE": (
        claims.CLAUSE,
        re.compile(
            r"[.!?;\n]+(?=\s|$)|(?<!\bdislikes)(?<!\bavoids)(?<!\bhates):+(?=\s|$)|"
            r"(?<!\bnothing )(?<!\banything )\bbut\b|\b(?:however|although|though|while|whereas)\b",
            re.IGNORECASE,
        ),
    ),
    "BRACKETS": (terms.BRACKETS, re.compile(r"\s*\([^()]*\)$")),
    "NOTHING": (templates._NOTHING_IN_BRACKETS, re.compile("[ \t]*(?:\\(\ufdd0\\)|\\[\ufdd0\\])")),
}
"""Expressions with a guard, and the same without it."""


def plainly_removed(profile: str, name: str) -> str:
    out = re.sub(r"(?:,?\s*\b(?:and|or)\s+|,\s*)?" + pattern(name).pattern, "", profile, flags=re.IGNORECASE)
    out = re.sub(r"\s+([,.;:!?])", r"\1", out)
    out = re.sub(r"([,:])\s*(?=[.;!?])", "", out)
    return re.sub(r"\s{2,}", " ", out).strip(" ,")


def plainly_copied(tokens: list[str], titles: list[str]) -> list[bool]:
    taken = [False] * len(tokens)
    for own in map(wording.words, titles):
        for start in range(len(own)):
            for at in range(len(tokens)):
                length = 0
                while (
                    start + length < len(own)
                    and own[start + length : start + length + 1] == tokens[at + length : at + length + 1]
                ):
                    length += 1
                least = 2 if len(own) > 1 else 1
                if (
                    length >= least
                    and (len(own) > 1 or len(own[0]) > 4)
                    and not wording.COMMON.issuperset(tokens[at : at + length])
                ):
                    taken[at : at + length] = [True] * length
    return taken


def plainly_moved(title: str) -> str:
    found = re.match(r"^(.+), (The|A|An|Les?|La|L'|El|Los|Las|Il|Die|Der|Das|Une?)( \(.*\))?$", title)
    return f"{found[2]}{'' if found[2] == chr(76) + chr(39) else ' '}{found[1]}{found[3] or ''}" if found else title


def test_what_is_faster_finds_the_same():
    rng = np.random.default_rng(0)
    blanks = [" ", " ", " ", "", "  ", "\n", "\t", ", "]
    for _ in range(500):
        sample = "".join(rng.choice(VOCABULARY) + rng.choice(blanks) for _ in range(rng.integers(1, 40)))
        for name, (guarded, plain) in PLAIN.items():
            assert [m.span() for m in guarded.finditer(sample)] == [m.span() for m in plain.finditer(sample)], (
                name,
                sample,
            )
        assert len(terms.ITEM.findall(sample)) == len(re.findall(r"(?m)^\s*(?:[-*•–]|\(?\d{1,2}[.)])\s", sample)), (
            sample
        )
        assert tastes.removed(sample, "Comedy") == plainly_removed(sample, "Comedy"), sample
        words, titles = wording.words(sample), [*TITLES[:3], sample[:40]]
        assert wording.copied_words(words, titles).tolist() == plainly_copied(words, titles), sample
        for title in (sample, sample.split("\n")[0] + ", The", sample[:30] + ", A (1999)", sample[:30] + ", The\n"):
            assert titles_read.move_article(title) == plainly_moved(title), title


def test_long_comparisons_are_left_out_and_short_ones_are_not():
    assert differences("a b " * 5000, "b a " * 5000) == [("-", "a b " * 5000, ""), ("+", "", "b a " * 5000)]
    assert differences("a b " * 5000, "a b " * 5000) == [("=", "a b " * 5000, "a b " * 5000)]
    long = " ".join(f"word{at}" for at in range(800))
    assert [kind for kind, *_ in differences(long, long.replace("word7 ", "other "))] == ["=", "-", "+", "="]
    near = (
        "The Incredibly Strange Creatures Who Stopped Living and Became Mixed-Up Zombies and a Great Deal More Besides"
    )
    typed = titles_typed.Titles([near, "ab" * 300])
    assert typed.match(near.replace("Strange", "Strnge")).near == [0]
    assert typed.match("ab" * 299 + "a").near == [] and typed.match("ab" * 300).item == 1
    assert typed.match("x" * 5000) == titles_typed.Match("x" * 5000, None, [], None)
    assert "did you mean 'title'" in nearest("titel", ["title", "x" * 100_000])
    assert len(nearest("titel", [f"{at}" for at in range(100_000)])) < 1000
