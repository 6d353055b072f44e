"""README and docs: numbers equal those of the reference results; links, commands and files exist."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests import readme_claims
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
SHOWN = {"ndcg@10": 4, "recall@10": 4, "log-rank": 2}
"""Metrics in the tables of the pages, and their numbers of digits."""
CELL = r"\| (\d\.\d+(?: \[[^]]+\])?|not run) "


def written(folder: str, metrics: tuple[str, ...]) -> dict[str, list[str]]:
    """Title of each method of a reference folder -> its cells in the format of a page."""
    rows = csv.DictReader((ROOT / "results/reference" / folder / "table_long.csv").open(encoding="utf-8"))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["metric"] in metrics:
            mean, low, high = (f"{float(row[key]):.{SHOWN[row['metric']]}f}" for key in ("mean", "low", "high"))
            cells.setdefault(row["title"], {})[row["metric"]] = f"{mean} [{low}, {high}]"
    return {title: [row[metric] for metric in metrics] for title, row in cells.items()}


def test_table_is_the_reference_table():
    """NDCG@10 with its interval and the mean log rank, of the demo and of all users."""
    demo, all_users = (written(folder, ("ndcg@10", "log-rank")) for folder in ("ml-100k-demo", "ml-100k"))
    shown = re.findall(rf"^\| ([^|]+) {CELL * 4}\|$", README, re.M)
    assert len(shown) == 8
    for title, *cells in shown:
        expected = demo[title] + all_users.get(title, ["not run", "not run"])
        assert cells == [expected[0], expected[1].split(" [")[0], expected[2], expected[3].split(" [")[0]], title


def test_the_full_table_is_the_reference_table():
    """The demo's table in docs/results.md has every method."""
    section = RESULTS.partition("\n## The default run")[2].partition("\n## ")[0]
    shown = re.findall(rf"^\| ([^|]+) {CELL * 3}\|$", section, re.M)
    assert {title: cells for title, *cells in shown} == written("ml-100k-demo", tuple(SHOWN))


REFERENCE = ROOT / "results/reference"
CLAIMED, NUMBERED = readme_claims.read(README)


def test_claims_hold_for_every_kind_of_cpu_and_for_several_seeds():
    assert [folder.name for folder in readme_claims.folders(REFERENCE, None)][-1] == readme_claims.SEEDS
    assert len(CLAIMED) > 9 and list(readme_claims.false_claims(CLAIMED, REFERENCE)) == []
    flat = " ".join(readme_claims.COMMENT.sub("", README).replace("**", "").split())
    assert [claim.words for claim in CLAIMED if claim.words not in flat] == []


def test_numbers_in_claims_are_those_of_comparisons_csv():
    assert len(NUMBERED) > 3 and list(readme_claims.false_numbers(NUMBERED, REFERENCE)) == []
    # Every such number in these paragraphs is checked.
    for paragraph in {numbers.paragraph for numbers in NUMBERED}:
        named = {cell for numbers in NUMBERED if numbers.paragraph == paragraph for cell in numbers.cells.values()}
        assert set(re.findall(r"(?<![\d.-])-?0\.\d{4}(?!\d)|(?<=p = )0\.\d+", paragraph)) <= named


def test_sentences_that_compare_are_claims():
    """Every sentence that compares methods, in a paragraph with such numbers, contains the words of a claim."""
    compares = r"\b(?:lowers?|lifts?|raises?|level with|measurabl[ey]|significant|ahead|better|worse|higher|chance)"
    paragraphs = {numbers.paragraph for numbers in NUMBERED}
    assert len(paragraphs) == 3
    for paragraph in paragraphs:
        flat = " ".join(paragraph.replace("**", "").split())
        for sentence in re.split(r"(?<=\.)\s(?=[A-Z-])", flat):
            if re.search(compares, sentence):
                assert any(claim.words in sentence for claim in CLAIMED), sentence


def test_each_folder_of_the_demo_is_of_another_kind_of_cpu():
    kinds = [readme_claims.kind(folder) for folder in readme_claims.folders(REFERENCE, readme_claims.DEMO)]
    assert kinds and all(kind["flags"] and kind["dtype"] for kind in kinds)
    assert len({json.dumps([kind["flags"], kind["dtype"]]) for kind in kinds}) == len(kinds)
    assert "avx512_bf16" in kinds[0]["flags"] and kinds[0]["dtype"] == "bfloat16"


def test_a_claim_that_another_cpu_does_not_bear_out_is_found(tmp_path):
    """A copy of the demo's folder with the numbers that another kind of CPU gave."""
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

    def failures(claim):
        return list(readme_claims.false_claims(readme_claims.read(f"<!-- claim: {claim} -->")[0], tmp_path))

    significant = 'langptune-cl > langptune-0, ndcg@10, holm: "lifts"'
    assert failures(significant) == [
        "'lifts' (langptune-cl > langptune-0) fails in ml-100k-demo-amx: difference 0.0126, p 0.3900 after Holm"
    ]
    assert failures(significant.replace("holm", "holm, in ml-100k-demo")) == []
    assert failures('langptune-0 < langptune-cl, ndcg@10, mean: "raises"') == []
    assert len(failures('langptune-cl ~ langptune-0, ndcg@10, holm: "equal"')) == 1
    assert len(failures('langptune-cl ~ langptune-0, ndcg@10, interval: "level"')) == 2
    assert len(failures('langptune-cl > random, ndcg@10, holm: "beats"')) == 2, "comparisons.csv has no such test"
    assert failures(significant.replace("holm", "holm, in ml-1m")) == [f"'lifts': no folder ml-1m in {tmp_path}"]
    page = "<!-- numbers: ml-100k-demo langptune-cl ndcg@10 mean=0.0230 p_permutation_holm=0.02 -->\n0.0230, p = 0.03."
    wrong = list(readme_claims.false_numbers(readme_claims.read(page)[1], tmp_path))
    assert len(wrong) == 2 and "is 0.033, README.md says 0.02" in wrong[0] and "not in its paragraph" in wrong[1]
    with pytest.raises(ValueError, match="cannot read the comment 'claim: CL is good'"):
        readme_claims.read("<!-- claim: CL is good -->")


def test_reference_results_are_traceable_and_name_no_machine_path():
    for folder in (p for p in (ROOT / "results" / "reference").iterdir() if p.is_dir()):
        made = [json.loads(file.read_text()) for file in folder.glob("*.manifest.json")]
        assert made, f"{folder}: nothing says what its files were made by"
        assert all(manifest["git"]["commit"] and manifest["code"] and manifest["lock"] for manifest in made)
        for file in folder.glob("*.json"):
            assert not re.search(r'"/(tmp|work|root|home)/', file.read_text()), file


WRITTEN_BY_READERS = {"config/mine.yaml", "scripts/count_sessions.py"}
"""Files that a page asks its reader to create."""


def test_adding_things_needs_no_tests():
    """The environment of the demo has only the library; the files that docs/extend.md names exist."""
    page = (ROOT / "docs" / "extend.md").read_text()
    assert "tests/" not in page
    for module in re.findall(r"python -m (langptune[\w.]*)", page):
        file = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        assert not re.search(r"^(from|import) (tests|pytest)\b", file.read_text(), re.M), file
    for file in re.findall(r"`((?:src|scripts|workflow|config)/[\w./-]+\.\w+)`", page):
        assert (ROOT / file).is_file() or file in WRITTEN_BY_READERS, file


PAGES = [
    *(ROOT / name for name in ("README.md", "config/README.md", "config/accelerate/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "results/reference").glob("*/README.md")),
]


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of the headings of a page: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    plain = (re.sub(r"[`*]|\]\([^)]*\)", "", heading) for heading in re.findall(r"^#+ (.+)$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in [*re.findall(r"\]\((?!http)([^)]+)\)", text), *re.findall(r'src="(?!http)([^"]+)"', text)]:
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_files_exist(page):
    """Make targets in command blocks and between backquotes, names of the library, and paths of files."""
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    blocks = "\n".join(re.findall(r"^ *```.*?^ *```", text, re.M | re.S))
    for target in [*re.findall(r"^ *make ([a-z-]+)", blocks, re.M), *re.findall(r"`make ([a-z-]+)", text)]:
        assert re.search(rf"^{target}:", makefile, re.M), target
    folders = "scripts|tests|docs|benchmarks|workflow|slurm|envs|src|config"
    for name in re.findall(r"`(langptune(?:\.\w+)+)", text):  # a module, or a name in a module
        path = ROOT / "src" / Path(*name.split("."))
        assert path.is_dir() or any(one.with_suffix(".py").is_file() for one in (path, path.parent)), name
    for file in re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]+\.(?:py|md|smk|sh|txt|yaml))\b", text):
        assert (ROOT / file).is_file() or file in WRITTEN_BY_READERS, file


def test_every_page_of_docs_is_in_the_readme():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert {Path(link).name for link in re.findall(r"\]\((docs/\w+\.md)\)", README)} == pages
