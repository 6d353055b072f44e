"""Cost of jobs: parsing benchmark files, finding jobs by manifests, sums by hand, and a plan that uses both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from langptune import benchmarks, cost, plan
from langptune.config.identity import identity
from langptune.config.rates import Rate, Rates
from langptune.config.sample import Sample
from langptune.figures.cost import draw
from langptune.figures.style import save
from langptune.markup import duration
from tests.conftest import ROOT, entry

CPU, GPU = "AMD EPYC", "NVIDIA H100 80GB HBM3"
DECODER = {"source": {"package": "d"}, "parameters": 23_000_000, "dimensions": 384}
NAMES = {identity(DECODER): "small"}
# 40 test sessions at 2 a second and 10 seconds to start: 30 seconds per job. All other jobs take 5 seconds.
SIZES = plan.Sizes({"toy": entry(published={"test sessions": {"users": 40}, "catalogue": {"items": 50}})}, Sample())
RATES = Rates(
    {
        "rank_texts": Rate(unit="texts", cpu={0.1: 2}, gpu={0.1: 4}, start={0.1: 10}, source="by hand"),
        "other": Rate(unit="jobs", cpu={0: 0.2}, source="by hand"),
    }
)


class Toy:
    """A results folder with the files that a run leaves."""

    def __init__(self, folder: Path):
        self.root = folder

    def path(self, name: str) -> str:
        return str(self.root / name)

    def ran(
        self, script: str, output: str, reads: tuple[str, ...] = (), wall=9.0, device=CPU, resumed=0, **spec
    ) -> dict:
        """Write an output with its manifest; return its spec."""
        spec = {**spec, "ranks_out": self.path(output)}
        if script == "rank_texts":
            spec |= {"decoder": DECODER, "evaluation_in": self.path("toy/data/evaluation.parquet")}
        file = Path(self.path(output))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 100)
        content = {
            **{"output": file.name, "script": f"scripts/{script}.py", "spec": spec, "notes": {"resumed": resumed}},
            **{"device": device, "host": "here", "wall_seconds": wall, "peak_memory_mb": 300.0},
            "inputs": {self.path(name): "hash" for name in reads},
        }
        file.with_name(f"{file.name}.manifest.json").write_text(json.dumps(content))
        return spec

    def took(self, rule: str, spec: dict, seconds: float, memory=200.0, threads=1, **resources) -> Path:
        """Write the job's benchmark file as Snakemake does."""
        content = {
            **{"rule_name": rule, "s": seconds, "max_rss": memory, "threads": threads, "cpu_time": 1.0, "jobid": 3},
            "params": {"spec": json.dumps(spec), "code": "abc"},
            "resources": {"_cores": threads, "_nodes": 1, "mem_mb": 1000, "tmpdir": "/tmp", **resources},
        }
        file = self.root / "benchmarks" / rule / f"{len(list(self.root.rglob('*.jsonl')))}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content) + "\n")
        return file

    def costs(self, *targets: str) -> pl.DataFrame:
        jobs, _ = cost.reached(self.path(name) for name in targets)
        seen = benchmarks.gather(benchmarks.files([self.root]))
        return cost.table(cost.spent(jobs, seen, self.path("toy"), SIZES, RATES, NAMES))


@pytest.fixture
def toy(tmp_path) -> Toy:
    return Toy(tmp_path)


# --- benchmark files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, None),
        ({"gpu": 0}, 0),
        ({"gpu": 2, "gpu_model": "a100", "nodes": 1}, 2),
        ({"gpu": "4"}, 4),
        ({"gpu": 8, "nodes": 2}, 8),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:2"}, 2),
        ({"gres": "gpu:a100:2"}, 2),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gpu:a100:2", "nodes": 3}, 6),
        ({"gres": "lustre:1,gpu:h100:4(S:0-1)"}, 4),
        ({"gres": "gpu:a100:1,gpu:h100:2"}, 3),
        ({"gres": "lustre:1"}, None),
        ({"gres": None}, None),
    ],
)
def test_gpus_granted(resources, expected):
    assert benchmarks.gpus(resources) == expected


def test_a_benchmark_file_is_read(toy):
    spec = {"a_out": ["r/b", "r/a"], "c_out": {"x": "r/c"}, "d_out": None, "e_in": "r/e", "f_out": "r/f"}
    found = benchmarks.read(toy.took("train", spec, 12.5, "NA", threads=4, gres="gpu:2"))
    assert found == benchmarks.Benchmark("train", ("r/a", "r/b", "r/c", "r/f"), 12.5, None, 4, 1000.0, 2)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"s": 1.0, "max_rss": 3.0}', '{"s": 1, "params": {"spec": "{"}}'])
def test_what_says_too_little_is_passed_over(tmp_path, text):
    file = tmp_path / "benchmarks" / "rule" / "a.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert benchmarks.read(file) is None and benchmarks.gather(benchmarks.files([tmp_path])) == {}


# --- the table -----------------------------------------------------------------------------------------------


def test_sums_by_hand(toy):
    for at, seconds in enumerate((10.0, 20.0, 60.0)):
        spec = toy.ran("rank_texts", f"toy/m/seed{at}/ranks.parquet", ("models/small",))
        toy.took("rank_profiles", spec, seconds, memory=[400.0, "NA", 1200.0][at], threads=2)
    toy.took("rank_profiles", {"ranks_out": toy.path("toy/m/seed9/ranks.parquet")}, 999.0)  # a job of an earlier config
    spec = toy.ran("evaluate", "toy/m/metrics.parquet", [f"toy/m/seed{at}/ranks.parquet" for at in range(3)])
    toy.took("evaluate", spec, 10.0)
    toy.took("prefetch_model", toy.ran("prefetch_model", "models/small", model=DECODER), 500.0)
    ranks, evaluate, shared = toy.costs("toy/m/metrics.parquet").iter_rows(named=True)
    assert ranks == {
        **{"rule": "rank_profiles", "model": "small", "device": "cpu", "shared": False},
        **{"jobs": 3, "missing": 0, "resumed": 0},
        **{"seconds": 90.0, "seconds_median": 20.0, "seconds_max": 60.0, "share": pytest.approx(0.9)},
        **{"core_hours": pytest.approx(90 * 2 / 3600), "gpu_hours": 0.0},
        # The second job was too short for a sample: its manifest has 300 MB.
        **{"peak_mb": pytest.approx(1200 * 1.048576), "requested_mb": 1000.0, "over_request": 1},
        **{"predicted_jobs": 3, "predicted_hours": pytest.approx(3 * 30 / 3600)},
        **{"measured_hours": pytest.approx(180 / 3600), "ratio": pytest.approx(2.0)},
    }
    assert (evaluate["rule"], evaluate["model"], evaluate["share"]) == ("evaluate", "", pytest.approx(0.1))
    assert (evaluate["predicted_hours"], evaluate["ratio"]) == (pytest.approx(5 / 3600), pytest.approx(2.0))
    assert (evaluate["peak_mb"], evaluate["over_request"]) == (pytest.approx(300 * 1.048576), 0)
    assert (shared["rule"], shared["shared"], shared["seconds"], shared["share"]) == ("prefetch_model", True, 500, None)
    assert shared["ratio"] is None, "no speed is stated"


def test_gpus_are_those_granted_or_one(toy):
    for at, resources in enumerate(({"gpu": 2}, {"gres": "gpu:a100:2", "nodes": 2}, {})):
        spec = toy.ran("rank_texts", f"toy/m/{at}.parquet", device=GPU)
        toy.took("rank_profiles", spec, 36.0, threads=4, **resources)
    # The GPU was granted but not used: it counts as spent, and the prediction is that of a job on a CPU.
    toy.took("rank_profiles", toy.ran("rank_texts", "toy/m/3.parquet", device=CPU), 36.0, gpu=1)
    found = {row["device"]: row for row in toy.costs(*(f"toy/m/{at}.parquet" for at in range(4))).iter_rows(named=True)}
    assert found["gpu"]["gpu_hours"] == pytest.approx((2 + 4 + 1) * 0.01)
    assert found["gpu"]["core_hours"] == pytest.approx(3 * 4 * 0.01)
    assert found["gpu"]["predicted_hours"] == pytest.approx(3 * (40 / 4 + 10) / 3600)
    assert found["gpu"]["ratio"] == pytest.approx(7 * 36 / (3 * 20))
    assert found["cpu"]["gpu_hours"] == pytest.approx(0.01) and found["cpu"]["ratio"] == pytest.approx(36 / 30)


def test_missing_and_resumed_are_counted_and_not_compared(toy):
    whole, part = toy.ran("rank_texts", "toy/m/0.parquet"), toy.ran("rank_texts", "toy/m/1.parquet", resumed=3)
    toy.ran("rank_texts", "toy/m/2.parquet")
    toy.took("rank_profiles", whole, 60.0)
    toy.took("rank_profiles", part, 6.0)
    costs = toy.costs("toy/m/0.parquet", "toy/m/1.parquet", "toy/m/2.parquet")
    found, blank = costs.iter_rows(named=True)
    assert (found["jobs"], found["resumed"], found["missing"], found["seconds"]) == (2, 1, 0, 66.0)
    assert (found["predicted_jobs"], found["ratio"]) == (1, pytest.approx(2.0))
    assert (blank["rule"], blank["jobs"], blank["missing"], blank["seconds"]) == ("rank_texts", 1, 1, 0.0)
    page = cost.page(costs, "A|B", ["here (AMD EPYC)"])
    assert "| 2 (1 resumed) |" in page and "| 1 (1 missing) |" in page and "# Cost: A\\|B" in page
    assert "Without a benchmark file: 1 of 3 jobs (rank_texts)" in page and "Resumed: 1 of 3 jobs" in page
    assert "| **total** |  | **3 (1 missing, 1 resumed)** | **1.1 min** |" in page


def test_jobs_are_found_from_the_results_back(toy):
    for name, reads in (("a", ("raw",)), ("b", ("a", "gone")), ("c", ("b", "a")), ("unused", ("a",)), ("noted", ())):
        toy.ran("evaluate", f"toy/{name}", tuple(f"toy/{read}" for read in reads))
    file = Path(toy.path("toy/c.manifest.json"))
    manifest = json.loads(file.read_text())
    # A comparison's manifest notes its runs; in other manifests the same key may hold a number.
    manifest["notes"] = {"runs": {toy.path("toy/noted"): "hash"}, "read": 17}
    file.write_text(json.dumps(manifest))
    jobs, lost = cost.reached([toy.path("toy/c"), str(file)])
    assert sorted(Path(*key).name for key in jobs) == ["a", "b", "c", "noted"]
    assert lost == 2, "raw and gone"
    assert "Without a manifest: 2 files" in cost.page(cost.table([]), "Toy", [], lost)


def test_manifests_of_other_versions_and_no_jobs_at_all(toy):
    spec = toy.ran("write_profiles", "toy/p.parquet", other="keys")
    toy.took("write_profiles", spec, 5.0)
    (row,) = toy.costs("toy/p.parquet").iter_rows(named=True)
    assert (row["seconds"], row["predicted_hours"], row["predicted_jobs"]) == (5.0, None, 0)
    empty = cost.table([])
    assert empty.columns == list(cost.SCHEMA) and "**total**" in cost.page(empty, "Toy", [])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.0, "59 s"),
        (90, "1.5 min"),
        (7560, "2.1 h"),
        (3.6e6, "1,000.0 h"),
    ],
)
def test_times_have_units(seconds, text):
    assert duration(seconds) == text


def test_figure_has_a_row_per_stage_and_a_panel_for_gpus_only_where_there_are_some(toy, tmp_path):
    assert len(draw(cost.table([])).axes) == 0
    toy.took("rank_profiles", toy.ran("rank_texts", "toy/m/0.parquet"), 60.0)
    toy.ran("evaluate", "toy/m/1.parquet")
    figure = draw(toy.costs("toy/m/0.parquet", "toy/m/1.parquet"))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Time, all jobs together",
        "Measured / predicted",
        "Memory, one job",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["rank profiles (small)"]
    toy.took("rank_profiles", toy.ran("rank_texts", "toy/m/2.parquet", device=GPU), 60.0)
    costs = toy.costs("toy/m/0.parquet", "toy/m/2.parquet")
    assert draw(costs).axes[1].get_title(loc="left") == "GPU time"
    for turn in "ab":
        save(draw(costs), tmp_path / f"{turn}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_script_writes_table_page_and_figure(toy):
    toy.took("evaluate", toy.ran("evaluate", "toy/m/metrics.parquet"), 10.0)
    spec = {
        **{"name": "toy", "dataset": entry().model_dump(mode="json"), "sample": {}, "folder": toy.path("toy")},
        **{"targets": [toy.path("toy/m/metrics.parquet")], "benchmarks": [toy.path("benchmarks")]},
        **{f"{key}_out": toy.path(f"cost.{end}") for key, end in (("table", "csv"), ("page", "md"))},
        "figure_out": [toy.path("cost.png"), toy.path("cost.pdf")],
        "inference_out": toy.path("inference.csv"),
        "runs": [{"method": "m", "title": "M", "models": "small", "ranks_path": toy.path("toy/m/none.parquet")}],
    }
    command = [sys.executable, str(ROOT / "scripts/cost.py"), "--spec", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "toy: 1 of 1 jobs, 10 s in all" in done.stderr, done.stderr
    (row,) = pl.read_csv(toy.path("cost.csv")).iter_rows(named=True)
    assert (row["rule"], row["seconds"], row["ratio"]) == ("evaluate", 10.0, pytest.approx(2.0))
    page = Path(toy.path("cost.md")).read_text()
    assert "here (AMD EPYC)" in page and "- Blank: made by a version that did not measure it (M)." in page
    assert pl.read_csv(toy.path("inference.csv"))["method"].to_list() == ["m"]
    assert json.loads(Path(toy.path("cost.csv.manifest.json")).read_text())["notes"]["jobs"] == 1


# --- the plan ------------------------------------------------------------------------------------------------


def test_plan_learns_from_benchmark_files_and_else_from_manifests(toy):
    for at, (device, resources) in enumerate(((GPU, {"gpu": 2}), (GPU, None), (CPU, {}), (CPU, None))):
        spec = toy.ran("rank_texts", f"toy/m/{at}.parquet", wall=9.0, device=device, threads=2)
        if resources is not None:
            toy.took("rank_profiles", spec, 10.0, memory=700.0, threads=4, **resources)
    seen = plan.measured(plan.manifests([toy.root]), SIZES, benchmarks.gather(benchmarks.files([toy.root])))
    gpu, cpu = (seen["rank_texts", identity(DECODER), device] for device in ("gpu", "cpu"))
    assert (gpu.jobs, gpu.seconds, gpu.peak) == (2, 10 * 2 + 9, pytest.approx(734.0032)), "GPU-seconds"
    assert (cpu.jobs, cpu.seconds, cpu.peak) == (2, 10 * 4 + 9 * 2, pytest.approx(734.0032)), "core-seconds; 700 MiB"
    job = plan.Job("rank_profiles", "toy", "rank_texts", spec, requested=2136)
    (line,) = plan.lines([job, job], SIZES, seen, RATES, "cpu", NAMES)
    assert (line.amount, line.hours) == (80, pytest.approx(58 / 3600))
    assert (line.peak, line.requested) == (pytest.approx(734.0032), 2136)
    assert "0.7 of 2.1 GB" in plan.table([line]) and "memory: the highest use" in plan.table([line])
    (line,) = plan.lines([job], SIZES, {}, RATES, "cpu", NAMES)
    assert "? of 2.1 GB" in plan.table([line])
