"""The whole workflow on real data with the real models, in a copy of the repository: results, resume, exact reruns."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import polars as pl
import pytest
import yaml

from langptune import list_metrics
from langptune.metrics import from_ranks
from tests.conftest import AFTER_ALL, AFTER_RANKS, copy_of_run, jobs_of, snakemake

pytestmark = [pytest.mark.workflow, pytest.mark.models]
RESULTS = Path("results/smoke")
FINAL = [
    "table.csv",
    "table_long.csv",
    "table.md",
    "table.html",
    "table.tex",
    "comparisons.csv",
    "contrasts.csv",
    "lists.csv",
    "means.png",
    "ranks.pdf",
    "contrasts.pdf",
]


def smoke(repo: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return snakemake("--configfile", "config/smoke.yaml", *args, cwd=repo)


def planned(repo: Path, *args: str, config: str = "smoke") -> dict[str, int]:
    """Rule -> number of jobs that a run would execute."""
    done = snakemake("--configfile", f"config/{config}.yaml", "-n", *args, cwd=repo)
    assert done.returncode == 0, done.stdout
    return jobs_of(done.stdout)


def planned_with(repo: Path, change: dict) -> dict[str, int]:
    """The same with a changed config; ``change`` maps sections to the fields that it replaces."""
    config = yaml.safe_load((repo / "config/smoke.yaml").read_text())
    for key, fields in change.items():
        for name, value in fields.items():
            old = config[key].get(name)
            config[key][name] = {**old, **value} if isinstance(old, dict) else value
    (repo / "config/changed.yaml").write_text(yaml.safe_dump(config))
    return planned(repo, config="changed")


def finals(repo: Path) -> dict[str, bytes]:
    return {name: (repo / RESULTS / "ml-100k-small" / "comparison" / name).read_bytes() for name in FINAL}


@pytest.fixture(scope="module")
def repo(smoke_run, tmp_path_factory) -> Path:
    """A copy of the finished run, which these tests edit and delete parts of."""
    return copy_of_run(smoke_run, tmp_path_factory.mktemp("smoke") / "repo")


def test_every_run_has_ranks_metrics_and_manifests(repo):
    tables = pl.read_csv(repo / RESULTS / "ml-100k-small/comparison/table_long.csv")
    assert set(tables["method"]) == {
        *("langptune-0", "langptune-cl", "langptune", "history-cl"),
        *("shuffled-profiles", "history", "last-item", "pop", "ease", "sasrec", "random", "oracle"),
    }
    ranks = sorted((repo / RESULTS).glob("*/*/*/seed*/ranks.parquet"))
    assert len(ranks) == 20  # six methods with two seeds, six with one, and a study of two
    trained = sorted((repo / RESULTS).glob("*/phases/*/seed*/*/curve.jsonl"))
    assert len(trained) == 6  # cl on profiles, rlso after it, cl on histories
    for path in ranks:
        manifest = json.loads(path.with_name("ranks.parquet.manifest.json").read_text())
        assert manifest["output"] == "ranks.parquet" and manifest["lock"] and manifest["inputs"]
    oracle = pl.read_parquet(repo / RESULTS / "ml-100k-small/oracle/oracle/seed0/metrics.parquet")
    assert (oracle["ndcg@10"] == 1.0).all() and len(oracle) == 12


def test_table_is_the_mean_of_the_ranks(repo):
    long = pl.read_csv(repo / RESULTS / "ml-100k-small/comparison/table_long.csv")
    for method, models in (("ease", "EASE"), ("random", "random")):
        files = sorted((repo / RESULTS / "ml-100k-small" / method / models).glob("seed*/metrics.parquet"))
        ranks = pl.concat([pl.read_parquet(f) for f in files])["rank"].to_numpy()
        for metric in ("mrr", "recall@20"):
            shown = long.filter((pl.col("method") == method) & (pl.col("metric") == metric))["mean"].item()
            assert shown == pytest.approx(from_ranks(metric, ranks).mean(), abs=1e-9)


def test_the_report_of_tuning_has_the_choices_of_the_run(repo):
    folder = repo / RESULTS / "ml-100k-small"
    found = pl.read_csv(folder / "comparison/tuning.csv", infer_schema_length=None)
    best = json.loads((folder / "ease/EASE/tune/best.json").read_text())
    ease = found.row(by_predicate=(pl.col("methods") == "ease") & (pl.col("trials") > 0), named=True)
    assert ease["how"] == "grid" and ease["trials"] == 2 and ease["seconds"] > 0
    assert ease["score"] == best["val"]["ndcg@10"]
    assert ease["chosen"] == f"reg_weight {best['settings']['reg_weight']:g}"
    weights = found.filter((pl.col("choice") == "weight of popularity") & (pl.col("how") == "grid"))
    for row in weights.iter_rows(named=True):
        assert row["chosen"] == f"{json.loads((repo / row['source']).read_text())['weight']:g}"
    kept = found.filter(pl.col("choice").str.starts_with("state: "))
    assert len(weights) and len(kept) == 6, "three phases, two seeds"
    assert found["source"].null_count() == 0 and all((repo / source).is_file() for source in found["source"])


def test_every_value_of_the_checklist_is_where_it_says(repo):
    """The value stands in the file and under the keys that its line names."""
    lines = (repo / RESULTS / "ml-100k-small/comparison/checklist.md").read_text().splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    rows = [[cell.strip().replace("\\", "") for cell in row] for row in cells if "variable" not in row[0]]
    assert len(rows) > 80
    checked = 0
    for variable, value, source in rows:
        assert value, variable
        named = re.fullmatch(r"(\S+manifest\.json)(?: and \d+ more)?: (.*?)(?: and \d+ more)?", source)
        if named is None:
            continue
        manifest = json.loads((repo / named[1]).read_text())
        held = []
        for keys in named[2].split(", "):
            at = manifest
            for key in keys.split("."):
                at = at[int(key)] if isinstance(at, list) else (at or {}).get(key)
            held.append(at)
        assert any(one is not None for one in held), (variable, source)
        checked += 1
    assert checked > 50
    known = {name for name, value, _ in rows if value != "not recorded"}
    assert {"SHA-256 of the raw files", "ties in time", "tuning: number of trials", "commit of the code"} <= known


RANX = """
import sys
from pathlib import Path
import numpy as np, polars as pl
from ranx import Qrels, Run, evaluate

names = ["recall@1", "recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20"]
compared = 0
for path in sorted(Path(sys.argv[1]).glob("*/*/seed*/metrics.parquet")):
    ours = pl.read_parquet(path).sort("session")
    ranks = pl.read_parquet(path.with_name("ranks.parquet")).join(ours.select("session"), on="session").sort("session")
    qrels, run, kept = {}, {}, []
    for row in ranks.iter_rows(named=True):
        place = row["top"].index(row["target"]) + 1 if row["target"] in row["top"] else None
        # ranx breaks ties by order, but here each tied item counts half: only untied targets can be compared
        tied = place != row["rank"] if place else row["rank"] <= len(row["top"])
        kept.append(not tied)
        if not tied:
            qrels[str(row["session"])] = {str(row["target"]): 1}
            run[str(row["session"])] = {str(item): 1000.0 - at for at, item in enumerate(row["top"])}
    found = evaluate(Qrels(qrels), Run(run), names, return_mean=False)
    ids = sorted(qrels)  # ranx orders queries as text
    mine = ours.filter(pl.Series(kept)).with_columns(pl.col("session").cast(pl.String)).sort("session")
    assert mine["session"].to_list() == ids
    for name in names:
        assert np.abs(np.asarray(found[name]) - mine[name].to_numpy()).max() < 1e-9, (path, name)
    compared += len(ids)
print(compared)
"""


def test_metrics_agree_with_ranx_on_the_workflows_own_ranks(repo):
    done = subprocess.run(
        [sys.executable, "-c", RANX, str(repo / RESULTS / "ml-100k-small")],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},  # ranx without compilation, which takes a minute
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12 * 10


def test_metrics_of_lists_are_those_of_the_kept_lists(repo):
    """The table has all runs but the oracle's, over the compared sessions and all seeds."""
    folder = repo / RESULTS / "ml-100k-small"
    table = pl.read_csv(folder / "comparison/lists.csv")
    methods = set(pl.read_csv(folder / "comparison/table_long.csv")["method"])
    assert set(table["metric"]) == set(list_metrics.names()) and table["left_out"].null_count() == len(table)
    assert set(table["method"]) == methods - {"oracle"} and set(table["sessions"]) == {12}
    n_items = len(pl.read_parquet(folder / "data/items.parquet"))
    compared = pl.read_parquet(folder / "data/evaluation.parquet").filter(pl.col("split") == "test")
    for method, models in (("ease", "EASE"), ("random", "random")):
        shares = []
        for path in sorted((folder / method / models).glob("seed*/ranks.parquet")):
            tops = pl.read_parquet(path).join(compared, on="session", how="semi")["top"].list.head(10)
            shares.append(len(set(tops.explode())) / n_items)
        shown = table.filter((pl.col("method") == method) & (pl.col("metric") == "coverage"))["mean"].item()
        assert shown == pytest.approx(sum(shares) / len(shares), abs=1e-12)


def test_cost_is_that_of_the_benchmark_files(repo):
    """The table has the exact cost of every job but those after all results; shared models are listed separately."""
    costs = pl.read_csv(repo / RESULTS / "ml-100k-small/comparison/cost.csv")
    benchmarks = {path: json.loads(path.read_text()) for path in (repo / RESULTS / "benchmarks").glob("*/*.jsonl")}
    apart = {"cost", "fill_checklist", "prefetch_model", "compare_partial"}
    jobs = {path: job for path, job in benchmarks.items() if job["rule_name"] not in apart}
    own = costs.filter(~pl.col("shared"))
    assert own["jobs"].sum() == len(jobs) and own["missing"].sum() == own["resumed"].sum() == 0
    assert dict(own.group_by("rule").agg(pl.col("jobs").sum()).iter_rows()) == {
        rule: sum(job["rule_name"] == rule for job in jobs.values()) for rule in {path.parent.name for path in jobs}
    }
    assert own["seconds"].sum() == pytest.approx(sum(job["s"] for job in jobs.values()), abs=1e-6)
    assert own["core_hours"].sum() == pytest.approx(sum(j["s"] * j["threads"] for j in jobs.values()) / 3600, abs=1e-9)
    assert own["share"].sum() == pytest.approx(1)
    writing = own.filter(pl.col("rule") == "write_profiles").row(0, named=True)
    assert writing["model"] == "smollm2-135m" and writing["predicted_jobs"] == writing["jobs"] == 10
    assert writing["peak_mb"] > 100 and writing["requested_mb"] > writing["peak_mb"] and writing["ratio"] > 0
    page = (repo / RESULTS / "ml-100k-small/comparison/cost.md").read_text()
    assert "`write_profiles`" in page and "**total**" in page


def test_time_and_energy_per_user_are_known_for_every_method(repo):
    users = pl.read_csv(repo / RESULTS / "ml-100k-small/comparison/inference.csv")
    table = pl.read_csv(repo / RESULTS / "ml-100k-small/comparison/table.csv")
    assert users["method"].sort().to_list() == table["method"].unique().sort().to_list()
    assert set(users["why_not"]) == {""} and (users["ms"] > 0).all() and (users["joules"] > 0).all()
    writes = set(users.filter(pl.col("write_ms").is_not_null())["method"])
    assert writes == {"langptune-0", "langptune-cl", "langptune", "shuffled-profiles"}
    assert (users.filter(pl.col("write_ms").is_not_null())["write_ms"] > users["rank_ms"].min()).all()


def test_second_run_has_nothing_to_do(repo):
    assert planned(repo) == {}


after_cl = {"embed_phase_items": 2, "train_encoder": 2, "write_profiles": 4}
"""Jobs that depend on the trained decoder: its catalogue, and RLSO, which learns from it (two seeds)."""


ranked = {"rank_profiles": 7, "rank_history_text": 4}
"""Jobs that rank by a chosen weight of popularity: all but the two runs of the method whose weight is set."""


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("scripts/plot.py", {"plot": 8}),
        ("src/langptune/figures/style.py", {"plot": 8, "study": 2, "describe_data": 1}),
        ("src/langptune/figures/comparison/means.py", {"plot": 1}),
        ("src/langptune/comparison/slices.py", {"slice_metrics": 1, "plot": 1}),
        ("src/langptune/list_metrics/gini.py", {"list_metrics": 1}),
        ("src/langptune/figures/study.py", {"study": 2}),
        ("src/langptune/data/card.py", {"describe_data": 1}),
        (
            "src/langptune/comparison/pages.py",
            {"compare": 1, "report_tuning": 1, "plot": 3},
        ),  # the figures of means, gains and contrasts read its files
        ("scripts/show_profiles.py", {"show_profiles": 1}),
        ("src/langptune/baselines/recbole.py", {"try_baseline": 2, "select_baseline": 1, "fit_baseline": 3}),
        (
            "scripts/gather_profiles.py",
            {"gather_profiles": 5, "choose_popularity": 2, "rank_profiles": 7, "train_decoder": 2, **after_cl},
        ),
        (
            "scripts/choose_popularity.py",
            {"choose_popularity": 3, "train_encoder": 2, "write_profiles": 4, "gather_profiles": 2, **ranked},
        ),
        (
            "scripts/train_encoder.py",
            {"train_encoder": 2, "write_profiles": 4, "gather_profiles": 2, "rank_profiles": 2},
        ),
        ("README.md", {}),
    ],
)
def test_an_edit_reruns_what_depends_on_it_and_nothing_else(repo, file, expected):
    before = (repo / file).read_text()
    # In a script, only code that its job runs counts.
    edit = "assert True" if file.startswith("scripts/") else "EDITED = 1"
    try:
        (repo / file).write_text(f"{before}\n{edit}\n")
        found = planned(repo)
    finally:
        (repo / file).write_text(before)
    downstream = {
        *("evaluate", "compare", "slice_metrics", "list_metrics", "report_tuning", "plot"),
        *("show_profiles", "study", *AFTER_ALL),
    }
    assert {rule: n for rule, n in found.items() if rule not in downstream - set(expected)} == expected
    assert not expected or set(AFTER_ALL) <= set(found), "any new job updates cost and checklist"


def test_one_changed_key_reruns_one_branch(repo):
    found = planned(repo, "--config", 'overrides={"ease": {"tune": {"reg_weight": [100.0, 500.0, 900.0]}}}')
    # This setting also removes the file's other overrides, so only the jobs of EASE are compared.
    assert found["try_baseline"] >= 1 and "prepare_data" not in found and "embed_items" not in found


@pytest.mark.parametrize(
    ("change", "reruns", "spares"),
    [
        ({"sample": {"test": 11}}, {"draw_sample", "evaluate", "compare"}, {"draw_training_sample", "train_decoder"}),
        (
            {"sample": {"val": 7}},
            {"draw_training_sample", "train_decoder"},
            {"draw_sample", "fit_baseline", "embed_items"},
        ),
        (
            {"overrides": {"sasrec": {"epochs": 3}}},
            {"fit_baseline"},
            {"try_baseline", "write_profiles", "rank_profiles"},
        ),
        ({"comparison": {"bootstrap": 300}}, {"compare", "list_metrics", "study"}, {"evaluate", "describe_data"}),
        ({"recipe_overrides": {"cl": {"temperature": 0.2}}}, {"train_decoder", "train_encoder"}, {"embed_items"}),
    ],
)
def test_a_changed_setting_reruns_what_uses_it(repo, change, reruns, spares):
    found = planned_with(repo, change)
    assert reruns <= set(found) and not spares & set(found), found


def test_what_changes_no_result_reruns_nothing(repo):
    """All settings change at once: if no job runs again, none of them causes a rerun."""
    change = {
        "generation": {"threads": 2, "batch_size": 4},
        "training": {"threads": 2},
        "recipe_overrides": {"cl": {"micro_batch": 8}, "rlso": {"checkpoint_every": 2}},
    }
    assert planned_with(repo, change) == {}


def test_correcting_what_only_people_read_reruns_only_what_shows_it(repo):
    before = (repo / "config/models.yaml").read_text(), (repo / "config/datasets.yaml").read_text()
    try:
        (repo / "config/models.yaml").write_text(before[0].replace("title: all-MiniLM-L6-v2", "title: MiniLM"))
        (repo / "config/datasets.yaml").write_text(before[1].replace("url: https://grouplens", "url: http://grouplens"))
        assert planned(repo) == {"describe_data": 1, **AFTER_ALL}  # the dataset's card has the address
    finally:
        (repo / "config/models.yaml").write_text(before[0])
        (repo / "config/datasets.yaml").write_text(before[1])


@pytest.mark.slow
def test_deleting_a_method_reruns_it_and_the_tables(repo):
    before = finals(repo)
    shutil.rmtree(repo / RESULTS / "ml-100k-small" / "last-item")
    assert planned(repo) == {"rank_history_text": 1, "evaluate": 1, **AFTER_RANKS}
    assert smoke(repo).returncode == 0
    assert finals(repo) == before
    encoders = repo / RESULTS / "ml-100k-small" / "phases" / "smollm2-135m+minilm-l6"
    encoder = next(encoders.glob("seed1/cl+rlso-*"))
    encoder.rename(repo / "encoder-away")
    found = planned(repo)
    assert found["train_encoder"] == 1 and found["rank_profiles"] == 1 and "train_decoder" not in found
    (repo / "encoder-away").rename(encoder)
    assert planned(repo) == {}


def test_a_seed_more_keeps_the_others(repo):
    found = planned(repo, "--config", "seeds=[0,1,2]")
    assert found["fit_baseline"] == 2 and found["train_encoder"] == 1 and "try_baseline" not in found


@pytest.mark.slow
def test_killed_at_random_moments_then_rerun_gives_the_same_bytes(repo):
    """``KILLS=100`` kills a hundred times. Each run that finishes is compared, and then its results are deleted."""
    before = finals(repo)
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")))
    kills = int(os.environ.get("KILLS", "2"))
    # One seed's phases of LangPTune, and a tuned baseline: nearly every kind of job, in less time than the whole run.
    parts = ("phases/smollm2-135m+minilm-l6/seed1", "ease", "comparison")

    def remove() -> None:
        for part in parts:
            shutil.rmtree(repo / RESULTS / "ml-100k-small" / part)

    remove()
    killed, spent = 0, [0.0]  # seconds of each run until all was computed
    while killed < kills:
        command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "2", "--configfile", "config/smoke.yaml"]
        began = time.monotonic()
        child = subprocess.Popen(
            command, cwd=repo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = child.wait(rng.uniform(2, 40))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            killed += 1
        else:
            assert code == 0 and finals(repo) == before
            remove()
        spent[-1] += time.monotonic() - began
        if child.returncode == 0:
            spent.append(0.0)
    done = smoke(repo)
    assert done.returncode == 0, done.stdout[-5000:]
    assert finals(repo) == before
    if len(spent) > 1:  # one run without a kill, to measure how much time the kills cost
        remove()
        began = time.monotonic()
        assert smoke(repo).returncode == 0 and finals(repo) == before
        calm, disturbed = time.monotonic() - began, sum(spent[:-1]) / (len(spent) - 1)
        print(f"{kills} kills in {len(spent)} runs: {disturbed:.0f} s a run, {calm:.0f} s without kills", flush=True)


def test_partial_grid_marks_what_is_missing(repo):
    hidden = repo / RESULTS / "ml-100k-small" / "ease"
    shutil.move(hidden, repo / "ease-away")
    try:
        done = smoke(repo, "--forcerun", "compare_partial", "--", "partial")
        assert done.returncode == 0, done.stdout[-3000:]
        table = (repo / RESULTS / "ml-100k-small/partial/table.md").read_text()
        assert "missing" in table and "EASE" in table and "Oracle" in table
    finally:
        shutil.move(repo / "ease-away", hidden)
    assert planned(repo) == {}


def test_results_are_kept_and_seeds_of_another_machine_join(repo, tmp_path):
    """scripts/keep.py gives the same tables from the small files alone, and adds the seeds of a second folder."""
    own = copy_of_run(repo, tmp_path / "repo")
    data, kept = own / RESULTS / "ml-100k-small", own / "results/reference/smoke"
    environment = {**os.environ, "PYTHONPATH": str(own / "src")}

    def script(*command: str) -> subprocess.CompletedProcess[str]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run([sys.executable, *command], cwd=own, env=environment, text=True, **streams)

    def keep(config: str = "config/smoke.yaml") -> subprocess.CompletedProcess[str]:
        return script("scripts/keep.py", "--config", config, "--to", "results/reference/smoke")

    def parts(of: int) -> dict[str, list[str]]:
        """The runs of one seed, as a run with ``seeds: [of]`` would have left them."""
        out = {}
        drawn = [path.name for path in (data / "comparison").glob("*.png") if path.stem != "cost"]
        for name in ("table.csv", *drawn):
            path = data / "comparison" / f"{name}.manifest.json"
            out[name] = path.read_text()
            content = json.loads(out[name])
            content["spec"]["runs"] = [one for one in content["spec"]["runs"] if one["seed"] == of]
            path.write_text(json.dumps(content))
        return out

    whole = parts(0)
    assert (done := keep()).returncode == 0, done.stdout
    assert {path.parent.name for path in kept.rglob("metrics.parquet")} == {"seed0"}
    for name, text in whole.items():
        (data / "comparison" / f"{name}.manifest.json").write_text(text)
    parts(1)
    assert (done := keep()).returncode == 0, done.stdout
    assert {path.parent.name for path in kept.rglob("metrics.parquet")} == {"seed0", "seed1"}
    for name in ("table.csv", "table_long.csv", "comparisons.csv", "contrasts.csv"):
        assert (kept / name).read_bytes() == (data / "comparison" / name).read_bytes(), name
    # The kept files suffice: without the results, the spec among them recomputes the tables.
    shutil.rmtree(data)
    (kept / "table.csv").unlink()
    done = script("scripts/compare.py", "--spec", "results/reference/smoke/compare.json")
    assert done.returncode == 0 and (kept / "table.csv").is_file(), done.stdout

    (own / "config/other.yaml").write_text((own / "config/smoke.yaml").read_text().replace("test: 12", "test: 11"))
    shutil.copytree(repo / RESULTS / "ml-100k-small", data)
    done = keep("config/other.yaml")
    assert done.returncode == 2 and "key 'sample' is not that of" in done.stdout and "Traceback" not in done.stdout


def test_config_mistakes_stop_before_any_job(repo):
    done = smoke(repo, "--config", "seedz=[1]")
    assert done.returncode != 0 and "unknown key 'seedz'; did you mean 'seeds'?" in done.stdout
    assert "Traceback" not in done.stdout
    done = smoke(repo, "--config", 'comparison={"metrics": ["ndcg@5000"], "main_metric": "ndcg@5000"}')
    assert done.returncode != 0 and "larger than the catalogue of 1682 items" in done.stdout


def test_report_is_one_html_file(repo):
    done = smoke(repo, "--report", "results/smoke/report.html")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (repo / "results/smoke/report.html").stat().st_size > 200_000
    page = (repo / "results/smoke/report.html").read_text()
    described = json.loads(re.search(r"var workflow_desc = (.*);\n", page)[1])
    assert "ml-100k-small</h2>" in described and "data:image/png;base64," in described and "<table>" in described
    assert "ERROR/" not in done.stdout and "system-message" not in described
    assert "Which methods are ahead on ml-100k-small" in described, "the figure's caption, from its own file"


def test_report_is_an_archive(repo):
    """The report is made as Snakemake's workflow catalogue describes."""
    done = smoke(repo, "--report", "results/smoke/report.zip")
    assert done.returncode == 0, done.stdout[-3000:]
    names = zipfile.ZipFile(repo / "results/smoke/report.zip").namelist()
    assert "report/report.html" in names and any(name.endswith("/means.png") for name in names), names


def test_titles_of_a_config_are_no_script_of_the_report(repo):
    """Snakemake writes the params of jobs, which contain titles, into a script of the page."""
    config = yaml.safe_load((repo / "config/smoke.yaml").read_text())
    config["overrides"]["ease"]["title"] = "</script><script>alert(1)</script><!-- <script>"
    (repo / "config/hostile.yaml").write_text(yaml.safe_dump(config))
    report = repo / "results/hostile.html"
    done = snakemake("--configfile", "config/hostile.yaml", "--report", str(report), cwd=repo)
    assert done.returncode == 0, done.stdout[-3000:]
    page = report.read_text()
    assert "u003c/script>" in page and "alert(1)" in page
    assert "</script><script>alert(1)" not in page and "<!-- <script>" not in page
