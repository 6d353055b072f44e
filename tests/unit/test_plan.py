"""The plan: work computed by hand, measured or stated speeds, and the same jobs as Snakemake's own dry run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from langptune import plan
from langptune.config.base import read_yaml
from langptune.config.datasets import Counts
from langptune.config.identity import identity
from langptune.config.sample import Sample
from langptune.errors import UserError
from langptune.workflow import amounts
from tests.conftest import ROOT, entry, snakemake

ENCODER = {"source": {"package": "e"}, "parameters": 135_000_000}
DECODER = {"source": {"package": "d"}, "parameters": 23_000_000, "dimensions": 384}
COUNTS = Counts(interactions=100, users=20, items=50)


def sizes(**changes) -> plan.Sizes:
    return plan.Sizes({"toy": entry(expect=COUNTS, **changes)}, Sample(train=30, val=8))


def writing(**changes) -> dict:
    spec = {"encoder": ENCODER, "evaluation_in": "r/toy/data/training.parquet", "split": "train", "samples": 2}
    return {**spec, "max_tokens": 10, "shards": 4, **changes}


WORK = {
    "write_profiles": (writing(), "profile tokens", 30 * 2 * 10 / 4),
    "train_encoder": (
        {
            "encoder": ENCODER,
            "training_in": "r/toy/data/training.parquet",
            "max_tokens": 16,
            "recipe": {
                **{"batches": 10, "sessions_per_batch": 3, "samples": 2},
                **{"max_tokens": None, "epochs": 4, "validate_every": 4},
            },
        },
        "profile tokens",
        10 * 3 * 2 * 16 * (1 + 4) + 4 * 8 * 16,
    ),
    "train_decoder": (
        {
            "decoder": DECODER,
            "items_in": "r/toy/data/items.parquet",
            "training_in": "r/toy/data/training.parquet",
            "recipe": {"batches": 10, "batch_size": 7, "uniform_negatives": 5, "validate_every": 10},
        },
        "texts",
        4 * 10 * (2 * 7 + 5) + 2 * (50 + 8),
    ),
    "embed_items": ({"decoder": DECODER, "items_in": "r/toy/data/items.parquet"}, "texts", 50),
    "choose_popularity": ({"decoder": DECODER, "training_in": "r/toy/data/training.parquet"}, "texts", 8),
    "rank_texts": ({"decoder": DECODER, "evaluation_in": "r/toy/data/evaluation.parquet"}, "texts", 20),
    "fit_baseline": (
        {"keys": {"model": "SASRec", "epochs": 3}, "sessions_in": "r/toy/data/sessions.parquet"},
        "session epochs",
        3 * 100,
    ),
    "prepare_data": ({"items_out": "r/toy/data/items.parquet"}, "interactions", 100),
    "prefetch_model": ({"model": ENCODER}, "weights", 135_000_000),
    "prefetch_data": ({}, "downloads", 1),
    "evaluate": ({}, "jobs", 1),
}


@pytest.mark.parametrize("script", WORK)
def test_work_by_hand(script):
    spec, unit, amount = WORK[script]
    found = plan.work(script, spec, sizes())
    assert (found.unit, found.amount) == (unit, pytest.approx(amount))


def test_scores_that_a_fusion_needs_count_as_texts_and_disk():
    """The scores have 20 test and 8 validation sessions, and 50 items of four bytes."""
    files = {f"{name}_in": f"r/toy/data/{name}.parquet" for name in ("items", "sessions", "evaluation", "training")}
    kept = {**files, "scores_out": "s", "val_scores_out": "v"}
    for script, own, amount in (("rank_texts", {"decoder": DECODER}, 28), ("fit_baseline", {"keys": {}}, 1)):
        found = plan.work(script, {**own, **kept}, sizes())
        assert (found.amount, found.disk) == (amount, 28 * 50 * 4)
        assert plan.work(script, {**own, **files}, sizes()).disk == amounts.SMALL


def test_work_follows_the_data_once_they_are_there(tmp_path):
    folder = tmp_path / "toy" / "data"
    folder.mkdir(parents=True)
    pl.DataFrame({"split": ["train"] * 5 + ["val"] * 2}).write_parquet(folder / "training.parquet")
    spec = writing(evaluation_in=str(folder / "training.parquet"))
    assert plan.work("write_profiles", spec, sizes()).amount == 5 * 2 * 10 / 4
    pl.DataFrame({"item": range(9)}).write_parquet(folder / "items.parquet")
    assert sizes().items(str(folder / "items.parquet")) == 9


def test_what_nobody_knows_yet_is_said_to_be_unknown():
    # For some users of a leave-one-out dataset, the number of train sessions is unknown until the files are read.
    spec = {"keys": {"model": "SASRec", "epochs": 3}, "sessions_in": "r/toy/data/sessions.parquet"}
    assert plan.work("fit_baseline", spec, sizes(users=5)).amount is None
    assert plan.work("fit_baseline", {"keys": {"scorer": "pop"}}, sizes()).unit == "jobs", "no epochs to count"
    assert plan.Sizes({"toy": entry()}, Sample()).sessions("r/toy/data/evaluation.parquet", "test") is None


def test_published_counts_stand_in_for_data_that_are_not_prepared():
    published = {"reviews": {"interactions": 900}, "test sessions": {"users": 12}, "catalogue": {"items": 40}}
    known = plan.Sizes({"toy": entry(published=published)}, Sample())
    assert known.sessions("r/toy/data/evaluation.parquet", "test") == 12
    assert known.items("r/toy/data/items.parquet") == 40
    assert known.interactions("r/toy/data/items.parquet") == 900


# --- speeds ------------------------------------------------------------------------------------------------


def ran(folder: Path, name: str, seconds: float, device="AMD EPYC", size=1000, **changes) -> None:
    """An output with a manifest, as ``provenance.Record`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x" * size)
    told = {
        "output": name,
        "script": "scripts/write_profiles.py",
        "spec": {**writing(), "threads": 2, "profiles_out": name},
        "notes": {"resumed": 0},
        "device": device,
        "wall_seconds": seconds,
        **changes,
    }
    (folder / f"{name}.manifest.json").write_text(json.dumps(told))


def test_speeds_are_those_of_earlier_jobs_of_the_same_script_model_and_device(tmp_path):
    ran(tmp_path / "a", "1.parquet", 10)
    ran(tmp_path / "a", "2.parquet", 20)
    ran(tmp_path / "a", "3.parquet", 5, device="NVIDIA H100 80GB HBM3")
    ran(tmp_path / "a", "part.parquet", 1, notes={"resumed": 7})
    ran(tmp_path / "a", "other.parquet", 1, spec={"of another": "version"})
    ran(tmp_path / "reference" / "a", "4.parquet", 1)
    (tmp_path / "a" / "broken.manifest.json").write_text("{")
    (tmp_path / "a" / "list.manifest.json").write_text("[]")
    seen = plan.measured(plan.manifests([tmp_path, tmp_path / "a"]), sizes())
    model = identity(ENCODER)
    cpu, gpu = seen["write_profiles", model, "cpu"], seen["write_profiles", model, "gpu"]
    assert (cpu.jobs, cpu.seconds, cpu.amount, cpu.disk) == (2, (10 + 20) * 2, 2 * 150, 2000), "core seconds"
    assert (gpu.jobs, gpu.seconds, gpu.names) == (1, 5, {"NVIDIA H100 80GB HBM3"})
    assert len(seen) == 2


def test_a_job_with_several_outputs_is_one_job(tmp_path):
    spec = {"decoder": DECODER, "items_in": "r/toy/data/items.parquet"}
    for name in ("a", "b"):
        ran(tmp_path, name, 10, script="scripts/embed_items.py", spec=spec)
    (seen,) = plan.measured(plan.manifests([tmp_path]), sizes()).values()
    assert (seen.jobs, seen.seconds, seen.amount, seen.disk) == (1, 10, 50, 2000)


def test_models_of_the_same_files_are_told_apart_by_their_use():
    entry = {"source": {"hub": "a/b"}, "role": "decoder", "padding": "right", "max_tokens": 512, "query_prefix": ""}
    same = {**entry, "title": "T", "url": "u", "licence": "MIT", "sha256": {"a": "b"}, "parameters": 3, "new": None}
    assert identity(entry) == identity(same)
    others = [{**entry, "padding": "left"}, {**entry, "max_tokens": 128}, {**entry, "query_prefix": "query: "}]
    assert len({identity(one) for one in [entry, *others]}) == 4
    server = {"source": {"endpoint": "https://e", "model": "m", "parallel": 4}, "role": "encoder"}
    faster = {**server, "source": {**server["source"], "parallel": 8, "input_price": 2}}
    assert identity(server) == identity(faster)
    fetched = [plan.work("prefetch_model", {"name": "x", "model": {**ENCODER, **one}}, sizes()).model for one in others]
    assert set(fetched) == {"x"}, "weights are the same for all"


RATES = plan.stated(ROOT / "config" / "rates.yaml", [path.stem for path in (ROOT / "scripts").glob("*.py")])


def planned(jobs, seen=None, device="cpu"):
    return plan.lines(jobs, sizes(), seen or {}, RATES, device, {identity(ENCODER): "small"})


def test_measured_goes_before_stated_and_unknown_stays_unknown():
    jobs = [
        plan.Job("write_profiles", "toy", "write_profiles", writing(), 4),
        plan.Job("fit_baseline", "toy", "fit_baseline", WORK["fit_baseline"][0]),
    ]
    rate = RATES.root["write_profiles"]
    (told, unknown) = planned(jobs)
    assert (told.model, told.jobs, told.amount, told.source) == ("small", 4, 600, "stated")
    assert told.hours == pytest.approx((600 / rate.cpu[0.2] + 4 * rate.start[0.2]) / 3600)
    assert (unknown.hours, unknown.rate, unknown.source) == (None, None, "unknown")
    assert planned(jobs, device="gpu")[0].rate == rate.gpu[1]
    seen = {("write_profiles", identity(ENCODER), "cpu"): plan.Seen(2, 60.0, 300.0, 2000, {"AMD EPYC"})}
    told = planned(jobs, seen)[0]
    assert (told.rate, told.disk, told.source) == (5.0, 4000, "measured: 2 jobs on AMD EPYC")
    assert told.hours == pytest.approx(600 / 5 / 3600)
    assert planned(jobs, seen, device="gpu")[0].source == "stated", "what a CPU took says nothing of a GPU"


def test_a_model_above_all_stated_sizes_has_no_speed():
    big = writing(encoder={**ENCODER, "parameters": 70_000_000_000})
    assert planned([plan.Job("write_profiles", "toy", "write_profiles", big)])[0].source == "unknown"


def test_totals_say_what_they_leave_out():
    known = plan.Line("a", "", "m", 2, "texts", 10, "gpu", 1.0, 3.0, 2e9, "stated")
    blank = plan.Line("b", "", "", 5, "texts", None, "cpu", None, None, None, "unknown")
    text = plan.table([known, known, blank])
    total = next(line for line in text.splitlines() if line.startswith("total")).split()
    assert total == ["total", "9", "6.00", "GPU", "4.0", "GB"]
    assert "Not in the hours: 5 jobs of unknown time (b)." in text and "unknown size (b)" in text
    assert "stated: from config/rates.yaml" in text


def test_stated_units_are_those_of_the_work():
    for script, (_, unit, _) in WORK.items():
        assert script not in RATES.root or RATES.root[script].unit == unit, script
    assert RATES.root["other"].unit == "jobs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(write_profile=d.pop("write_profiles")),
            "script 'write_profile'; did you mean 'write_profiles'",
        ),
        (lambda d: d.pop("other"), "key 'other' is missing"),
        (lambda d: d["other"].update(cpu={0: -1}), r"key 'other\.cpu.*\(found -1\)"),
        (lambda d: d["other"].pop("source"), r"key 'other\.source' is missing"),
    ],
)
def test_bad_files_of_speeds_are_named(tmp_path, change, message):
    data = read_yaml(ROOT / "config" / "rates.yaml")
    change(data)
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(data))
    scripts = set(read_yaml(ROOT / "config" / "rates.yaml"))
    with pytest.raises(UserError, match=message) as caught:
        plan.stated(tmp_path / "rates.yaml", scripts)
    assert "\n" not in str(caught.value)


def test_a_speed_in_another_unit_is_refused():
    odd = RATES.model_copy(update={"root": {**RATES.root, "write_profiles": RATES.root["embed_items"]}})
    with pytest.raises(UserError, match="unit 'texts': its work is counted in 'profile tokens'"):
        plan.lines([plan.Job("r", "toy", "write_profiles", writing())], sizes(), {}, odd, "cpu", {})


# --- jobs --------------------------------------------------------------------------------------------------


def run_plan(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "plan.py"), *args]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def counts(text: str, heading: str) -> dict[str, int]:
    """Rule -> number of jobs, from the plan's table or Snakemake's."""
    body = re.search(rf"^{heading} [^\n]*\n-[- ]+\n(.*?)^(?:total|-)", text, re.S | re.M)
    out: dict[str, int] = {}
    for line in body[1].splitlines():
        rule, jobs = line.split()[0], next(int(cell) for cell in line.split()[1:] if cell.isdigit())
        out[rule] = out.get(rule, 0) + jobs
    return {rule: jobs for rule, jobs in out.items() if rule != "all"}


@pytest.fixture
def config(tmp_path) -> Path:
    """The smoke run with separate folders and more shards."""
    told = read_yaml(ROOT / "config" / "smoke.yaml")
    told |= {"results": str(tmp_path / "r"), "models_dir": str(tmp_path / "m")}
    told["generation"]["shards"] = 3
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(told))
    return tmp_path / "c.yaml"


def same_jobs_as_snakemake(config: Path) -> dict[str, int]:
    done = run_plan("--config", str(config), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    dry = snakemake("-n", "--quiet", "rules", "--configfile", str(config))
    assert dry.returncode == 0, dry.stdout
    found = counts(done.stdout, "rule")
    assert found == counts(dry.stdout, "job")
    return found


def test_jobs_are_those_of_a_dry_run(config):
    found = same_jobs_as_snakemake(config)
    assert found["write_profiles"] == 5 * 3 and found["prefetch_model"] == 2


def test_shards_that_are_there_are_not_counted_again(config, tmp_path):
    data = tmp_path / "r" / "ml-100k-small" / "data"
    data.mkdir(parents=True)
    for model in ("smollm2-135m", "minilm-l6"):
        (tmp_path / "m" / model).mkdir(parents=True)
    for name in ("items", "sessions", "users", "evaluation", "training"):
        pl.DataFrame({"split": ["train", "val", "test"]}).write_parquet(data / f"{name}.parquet")
    (data / "funnel.csv").write_text("")
    job = re.search(
        rf"{tmp_path}/r/\S+/test/shards/1-of-3.parquet", snakemake("-n", "--configfile", str(config)).stdout
    )
    shards = Path(job[0]).parent
    shards.mkdir(parents=True)
    later = time.time() + 5
    for at in (2, 3):
        (shards / f"{at}-of-3.parquet").write_bytes(b"")
        os.utime(shards / f"{at}-of-3.parquet", (later, later))
    assert same_jobs_as_snakemake(config)["write_profiles"] == 5 * 3 - 2


def test_mistakes_are_one_line(tmp_path):
    for args, message in (
        (["--config", str(tmp_path / "none.yaml")], "no such config file"),
        (["--config", str(ROOT / "config" / "smoke.yaml"), "tabels"], "tabels"),
    ):
        done = run_plan(*args)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""
