"""Published numbers beside ours: the shipped file, the assignment of numbers to rows, and mistakes."""

from __future__ import annotations

import csv
import io

import pytest

from langptune.comparison import pages, tables
from langptune.comparison.grid import PublishedValue
from langptune.config.load import load
from langptune.config.published import NO_ENTRY, Published, read_published
from langptune.errors import UserError
from langptune.provenance import ROOT
from tests.compared import METRICS, made, runs_of

SHIPPED = ROOT / "results" / "reference" / "published.csv"
HEAD = ",".join(Published.model_fields)


@pytest.fixture
def runs(tmp_path):
    return runs_of(tmp_path)


def published_config(path, **more):
    """A config whose comparison includes the published numbers of a file."""
    return {
        "datasets": ["ml-100k"],
        "encoders": ["gemma-2b-it", "smollm2-135m"],
        "decoders": ["mxbai-embed-large-v1"],
        "methods": ["langptune-0", "history", "lightgcn", "ease"],
        "comparison": {"published": str(path), "metrics": ["ndcg@10", "ndcg@20", "mrr@20"], **more},
    }


def test_the_shipped_file_is_the_papers_table():
    known = load(published_config(SHIPPED), ROOT)
    rows = [row for row in known.published if row.dataset == "movies-tv"]
    main = {(p.method, p.encoder, p.metric): p.value for p in rows if not p.key}
    assert len(main) == 17 * 3 and len(rows) == 17 * 3 + 4 + 3 * 4
    assert main["langptune-paper", "llama-3-8b-instruct", "ndcg@20"] == 0.0494
    assert main["langptune-cl-paper", "gemma-2b-it", "recall@20"] == 0.0863
    assert main["history-cl-paper", "", "mrr@20"] == 0.0408
    assert {p.key: p.value_of_key for p in rows if p.value == 0.0319 and p.key} == {"max_tokens": "64"}
    assert {p.protocol for p in rows} == {"user-disjoint; the item after a user's first ten; full ranking"}
    # The last point of a study equals the number in the main table.
    assert {(p.method, p.value) for p in rows if p.value_of_key in ("1", "512")} <= {
        (p.method, p.value) for p in rows if not p.key and p.metric == "ndcg@20"
    }
    # No note may still say that there is no entry if there is one.
    assert not {p.method for p in rows if p.note.startswith(NO_ENTRY)} & set(known.methods)


def test_of_two_sources_the_first_is_shown_and_numbers_are_those_of_the_same_protocol():
    config = {
        "datasets": ["ml-1m-core5", "ml-1m-temporal-last"],
        "methods": ["sasrec", "bert4rec", "gru4rec", "pop"],
        "comparison": {"published": str(SHIPPED), "metrics": ["recall@10", "ndcg@10"]},
    }
    known = load(config, ROOT)
    protocols = [known.datasets[name].protocol for name in config["datasets"]]
    assert (protocols[0].core, protocols[1].target) == (5, "last")
    found = [{cell[0]: one.value for cell, one in known.published_of(name).items()} for name in config["datasets"]]
    assert found[0] == {"sasrec": 0.1821, "bert4rec": 0.1537, "gru4rec": 0.1679}
    assert found[1] == {"sasrec": 0.0948, "bert4rec": 0.0867, "gru4rec": 0.083}


def test_published_numbers_are_matched_by_dataset_method_models_and_metric():
    workflow = load(published_config(SHIPPED, published_as={"ml-100k": "movies-tv"}), ROOT)
    found = {cell: number.value for cell, number in workflow.published_of("ml-100k").items()}
    assert found == {
        ("langptune-0", "gemma-2b-it+mxbai-embed-large-v1", "ndcg@20"): 0.0289,
        ("langptune-0", "gemma-2b-it+mxbai-embed-large-v1", "mrr@20"): 0.0189,
        ("history", "mxbai-embed-large-v1", "ndcg@20"): 0.0372,
        ("history", "mxbai-embed-large-v1", "mrr@20"): 0.0261,
        ("lightgcn", "LightGCN", "ndcg@20"): 0.0525,
        ("lightgcn", "LightGCN", "mrr@20"): 0.0387,
    }
    assert load(published_config(SHIPPED), ROOT).published_of("ml-100k") == {}, "of another dataset"


GOOD = "d,,,ease,,,ndcg@20,0.5,paper,all,"
BAD = {
    "no number": (
        f"{HEAD}\nd,,,ease,,,ndcg@20,many,paper,all,",
        r"p\.csv: line 2: column 'value': 'many' is not a number",
    ),
    "above one": (f"{HEAD}\n{GOOD}\nd,,,pop,,,ndcg@20,5.2,paper,all,", r"line 3: key 'value': .*\(found 5\.2\)"),
    "not finite": (f"{HEAD}\nd,,,ease,,,ndcg@20,nan,paper,all,", r"line 2: key 'value': .*\(found nan\)"),
    "unknown method": (
        f"{HEAD}\nd,,,lightgnc,,,ndcg@20,0.5,paper,all,",
        r"unknown method 'lightgnc'; did you mean 'lightgcn'",
    ),
    "unknown encoder": (
        f"{HEAD}\nd,,,ease,gemma-2b,,ndcg@20,0.5,paper,all,",
        r"encoder 'gemma-2b'; did you mean 'gemma-2b-it'",
    ),
    "decoder as encoder": (
        f"{HEAD}\nd,,,ease,minilm-l6,,ndcg@20,0.5,paper,all,",
        r"line 2: unknown encoder 'minilm-l6'",
    ),
    "unknown metric": (f"{HEAD}\nd,,,ease,,,ngdc,0.5,paper,all,", r"line 2: column 'metric': unknown metric 'ngdc'"),
    "no source": (f"{HEAD}\nd,,,ease,,,ndcg@20,0.5,,all,", r"line 2: key 'source'"),
    "no protocol": (f"{HEAD}\nd,,,ease,,,ndcg@20,0.5,paper,,", r"line 2: key 'protocol'"),
    "twice": (f"{HEAD}\n{GOOD}\n{GOOD}", r"line 3: the same number is in line 2; keep one"),
    "short row": (f"{HEAD}\nd,,,ease", r"line 2: not 11 cells"),
    "long row": (f"{HEAD}\n{GOOD},more", r"line 2: not 11 cells; quote a cell that holds a comma"),
    "column missing": (HEAD.replace(",source", ""), r"column 'source' is missing"),
    "column unknown": (HEAD.replace("encoder", "encodr"), r"unknown column 'encodr'; did you mean 'encoder'\?"),
    "empty": ("", r"column 'dataset' is missing; found none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_of_published_numbers_are_named(tmp_path, name):
    text, message = BAD[name]
    (tmp_path / "p.csv").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load(published_config(tmp_path / "p.csv"), ROOT)
    assert "\n" not in str(caught.value) and str(tmp_path / "p.csv") in str(caught.value)


def test_a_published_method_without_an_entry_says_so_in_its_note(tmp_path):
    (tmp_path / "p.csv").write_text(f"{HEAD}\nd,,,mcl,,,ndcg@20,0.5,paper,all,{NO_ENTRY}: MCL\n", encoding="utf-8")
    assert [row.method for row in read_published(tmp_path / "p.csv", ["ease"], [], [])] == ["mcl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"published": "none.csv"}, r"none\.csv: No such file or directory; comparison\.published names"),
        ({"published": "README.md"}, r"README\.md: unknown column"),
        ({"published": "results/reference/ml-100k-demo/means.png"}, r"means\.png: not a CSV file in UTF-8"),
        ({"published": None, "published_as": {"ml-100k": "x"}}, r"published_as needs comparison\.published"),
        (
            {"published_as": {"ml-10k": "movies-tv"}},
            r"'ml-10k' is not among this run's datasets; did you mean 'ml-100k'",
        ),
        ({"published_as": {"ml-100k": "movie-tv"}}, r"has no dataset 'movie-tv'; did you mean 'movies-tv'"),
    ],
)
def test_mistakes_about_published_numbers_are_named(change, message):
    config = published_config("results/reference/published.csv")
    config["comparison"] |= change
    with pytest.raises(UserError, match=message) as caught:
        load(config, ROOT, "my.yaml")
    assert "\n" not in str(caught.value)


def test_published_numbers_are_beside_ours_in_every_table(runs):
    entries, absent = runs
    numbers = [
        PublishedValue(method="good", models="m", metric="ndcg@10", value=0.1234),
        PublishedValue(method="absent", models="m", metric="ndcg@10", value=0.05),
    ]
    plain, found = made(entries), made([*entries, absent], allow_missing=True, published=numbers)
    md = pages.to_markdown(found, "D", [])
    body = [line.replace(r"\|", "") for line in md.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in body} == {5 + len(METRICS) + 1 + 2}
    assert "| Recall@10 | NDCG@10 | Published |" in md and "Published: one number" in md
    cells = {line.split("|")[1].split("<")[0].strip(): [c.strip() for c in line.split("|")] for line in body}
    assert cells["GOOD"][8] == "0.1234" and cells["ORACLE"][8] == ""
    assert cells["Absent"][7:9] == ["missing", "0.0500"], "a published number stands in its own column alone"
    tex = pages.to_latex(found, "D", [], "d")
    rows = [line for line in tex.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {5 + len(METRICS) + 1}
    assert "& 0.1234 &" in tex and rf"\multicolumn{{{5 + len(METRICS) + 2}}}" in tex
    wide = {line["method"]: line for line in csv.DictReader(io.StringIO(tables.wide_csv(found)))}
    assert wide["good"]["ndcg@10_published"] == "0.1234" and wide["oracle"]["ndcg@10_published"] == ""
    assert "recall@10_published" not in wide["good"]
    long = list(csv.DictReader(io.StringIO(tables.long_csv(found))))
    assert [line["published"] for line in long if line["method"] == "good"] == ["", "0.1234"]
    # Without published numbers no page mentions them; with them, our numbers do not change.
    for text in (pages.to_markdown(plain, "D", []), tables.wide_csv(plain), tables.long_csv(plain)):
        assert "ublished" not in text
    assert [line.against for line in made(entries, published=numbers[:1]).lines] == [
        line.against for line in plain.lines
    ]
    with pytest.raises(UserError, match="metric 'mrr' is not among"):
        made(entries, published=[PublishedValue(method="good", models="m", metric="mrr", value=0.1)])
