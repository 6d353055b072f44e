"""The README does not lie: its numbers are those of the reference results, its links lead somewhere."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests import readme_claims
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
SHOWN = {"ndcg@10": 4, "recall@10": 4, "log-rank": 2}
"""Columns of the README's table, and their digits."""


def test_table_is_the_reference_table():
    reference = ROOT / "results/reference/ml-100k-demo/table_long.csv"
    rows = {(row["title"], row["metric"]): row for row in csv.DictReader(reference.open(encoding="utf-8"))}
    shown = re.findall(
        r"^\| ([^|]+) \| ([\d.]+ \[[^]]+\]) \| ([\d.]+ \[[^]]+\]) \| ([\d.]+ \[[^]]+\]) \|$", README, re.M
    )
    assert {title for title, *_ in shown} == {title for title, _ in rows}
    for title, *cells in shown:
        for (metric, digits), cell in zip(SHOWN.items(), cells, strict=True):
            mean, low, high = (f"{float(rows[title, metric][key]):.{digits}f}" for key in ("mean", "low", "high"))
            assert cell == f"{mean} [{low}, {high}]", title


REFERENCE = ROOT / "results/reference"
CLAIMED, NUMBERED = readme_claims.read(README)


def test_claims_hold_for_every_kind_of_cpu_and_for_several_seeds():
    assert [folder.name for folder in readme_claims.folders(REFERENCE, None)][-1] == readme_claims.SEEDS
    assert len(CLAIMED) > 9 and list(readme_claims.false_claims(CLAIMED, REFERENCE)) == []
    flat = " ".join(readme_claims.COMMENT.sub("", README).replace("**", "").split())
    assert [claim.words for claim in CLAIMED if claim.words not in flat] == []


def test_numbers_in_claims_are_those_of_comparisons_csv():
    assert len(NUMBERED) > 3 and list(readme_claims.false_numbers(NUMBERED, REFERENCE)) == []
    # Nothing of that kind stands there unchecked.
    for paragraph in {told.paragraph for told in NUMBERED}:
        named = {value for told in NUMBERED if told.paragraph == paragraph for value in told.cells.values()}
        assert set(re.findall(r"(?<![\d.])0\.\d{4}(?!\d)|(?<=p = )0\.\d+", paragraph)) <= named


def test_sentences_that_compare_are_claims():
    """A sentence of the paragraph that compares methods holds the words of a claim."""
    (paragraph,) = {told.paragraph for told in NUMBERED}
    flat = " ".join(paragraph.replace("**", "").split())
    compares = r"\b(?:lifts?|raises?|level with|measurabl[ey]|ahead|better|worse|higher|chance|told apart)\b"
    for sentence in re.split(r"(?<=\.)\s(?=[A-Z*])", flat):
        if re.search(compares, sentence):
            assert any(claim.words in sentence for claim in CLAIMED), sentence


def test_each_folder_of_the_demo_is_of_another_kind_of_cpu():
    kinds = [readme_claims.kind(folder) for folder in readme_claims.folders(REFERENCE, readme_claims.DEMO)]
    assert kinds and all(kind["flags"] and kind["dtype"] for kind in kinds)
    assert len({json.dumps([kind["flags"], kind["dtype"]]) for kind in kinds}) == len(kinds)
    assert "avx512_bf16" in kinds[0]["flags"] and kinds[0]["dtype"] == "bfloat16"


def test_a_claim_that_another_cpu_does_not_bear_out_is_found(tmp_path):
    """The demo's folder once more, with the numbers that another kind of CPU gave."""
    for name, zero, trained, p in (("ml-100k-demo", 0.0058, 0.0230, 0.033), ("ml-100k-demo-amx", 0.0088, 0.0214, 0.39)):
        folder = tmp_path / name
        folder.mkdir()
        head = "method,metric,reference,difference,p_permutation_holm,mean"
        (folder / "comparisons.csv").write_text(
            f"{head}\nlangptune-cl,ndcg@10,langptune-0,{trained - zero},{p},{trained}\n"
        )
        rows = [("langptune-0", zero, 0.0, 0.02), ("langptune-cl", trained, 0.01, 0.04)]
        lines = [f"{method},ndcg@10,{mean},{low},{high}" for method, mean, low, high in rows]
        (folder / "table_long.csv").write_text("method,metric,mean,low,high\n" + "\n".join(lines) + "\n")

    def told(claim):
        return list(readme_claims.false_claims(readme_claims.read(f"<!-- claim: {claim} -->")[0], tmp_path))

    significant = 'langptune-cl > langptune-0, ndcg@10, holm: "lifts"'
    assert told(significant) == [
        "'lifts' (langptune-cl > langptune-0) fails in ml-100k-demo-amx: difference 0.0126, p 0.3900 after Holm"
    ]
    assert told(significant.replace("holm", "holm, in ml-100k-demo")) == []
    assert told('langptune-0 < langptune-cl, ndcg@10, mean: "raises"') == []
    assert len(told('langptune-cl ~ langptune-0, ndcg@10, holm: "equal"')) == 1
    assert len(told('langptune-cl ~ langptune-0, ndcg@10, interval: "level"')) == 2
    assert len(told('langptune-cl > random, ndcg@10, holm: "beats"')) == 2, "comparisons.csv has no such test"
    assert told(significant.replace("holm", "holm, in ml-1m")) == [f"'lifts': no folder ml-1m in {tmp_path}"]
    page = "<!-- numbers: ml-100k-demo langptune-cl ndcg@10 mean=0.0230 p_permutation_holm=0.02 -->\n0.0230, p = 0.03."
    wrong = list(readme_claims.false_numbers(readme_claims.read(page)[1], tmp_path))
    assert len(wrong) == 2 and "is 0.033, README.md says 0.02" in wrong[0] and "not in its paragraph" in wrong[1]
    with pytest.raises(ValueError, match="cannot read the comment 'claim: CL is good'"):
        readme_claims.read("<!-- claim: CL is good -->")


def test_reference_results_are_traceable_and_name_no_machine_path():
    for folder in (p for p in (ROOT / "results" / "reference").iterdir() if p.is_dir()):
        made = [json.loads(file.read_text()) for file in folder.glob("*.manifest.json")]
        assert made, f"{folder}: nothing says what its files were made by"
        assert all(told["git"]["commit"] and told["code"] and told["lock"] for told in made)
        for file in folder.glob("*.json"):
            assert not re.search(r'"/(tmp|work|root|home)/', file.read_text()), file


def test_adding_things_needs_no_tests():
    """The environment of the demo has the library alone; what docs/extend.md names is there."""
    page = (ROOT / "docs" / "extend.md").read_text()
    assert "tests/" not in page
    for module in re.findall(r"python -m (langptune[\w.]*)", page):
        file = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        assert not re.search(r"^(from|import) (tests|pytest)\b", file.read_text(), re.M), file
    for file in re.findall(r"`((?:src|scripts|workflow|config)/[\w./-]+\.\w+)`", page):
        assert (ROOT / file).is_file(), file


def test_links_and_commands_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert "@@" not in README
