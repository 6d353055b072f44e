"""Time and energy per user: sums by hand, over the steps of a method and its seeds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from langptune import inference
from langptune.inference import WATTS_PER_CORE, RankedRun
from langptune.meter import NOTE, Meter
from langptune.ranking import kept


def made(path: Path, script: str, measured: dict | None, device: str = "AMD EPYC", **spec) -> str:
    """Write an output with its manifest; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    notes = {} if measured is None else {NOTE: measured}
    manifest = {"script": f"scripts/{script}.py", "spec": spec, "notes": notes, "device": device}
    path.with_name(f"{path.name}.manifest.json").write_text(json.dumps(manifest))
    return str(path)


def took(sessions: float, seconds: float, cpu: float, gpu: float | None = None, **more) -> dict:
    return {"sessions": sessions, "seconds": seconds, "cpu_seconds": cpu, "gpu_joules": gpu, **more}


def run(folder: Path, shards: list[dict | None], ranking: dict | None, method: str = "m") -> RankedRun:
    """A run: ranks by profiles that were written in shards."""
    parts = [made(folder / f"{n}.parquet", "write_profiles", note) for n, note in enumerate(shards)]
    profiles = made(folder / "test.parquet", "gather_profiles", None, shards_in=parts)
    ranks = made(folder / "ranks.parquet", "rank_texts", ranking, profiles_in=profiles)
    return RankedRun(method=method, title=method.upper(), models="a+b", ranks_path=ranks)


def test_steps_shards_and_seeds_are_added_up_by_user(tmp_path):
    one = run(tmp_path / "0", [took(30, 3.0, 6.0), took(10, 2.0, 3.0)], took(40, 0.4, 0.8))
    two = run(tmp_path / "1", [took(40, 7.0, 9.0)], took(40, 0.6, 0.8))
    (row,) = inference.table([one, two]).to_dicts()
    assert (row["runs"], row["users"], row["device"], row["why_not"]) == (2, 80, "AMD EPYC", "")
    assert row["write_ms"] == pytest.approx(1000 * 12 / 80) and row["rank_ms"] == pytest.approx(1000 * 1.0 / 80)
    assert row["ms"] == pytest.approx(row["write_ms"] + row["rank_ms"])
    assert row["joules"] == pytest.approx(WATTS_PER_CORE * (18 / 80 + 1.6 / 80)) and row["energy_from"] == "CPU time"


def test_a_method_without_profiles_only_ranks(tmp_path):
    ranks = made(tmp_path / "ranks.parquet", "fit_baseline", took(10, 0.5, 0.5), seed=0)
    (row,) = inference.table([RankedRun(method="ease", title="EASE", models="EASE", ranks_path=ranks)]).to_dicts()
    assert row["write_ms"] is None and row["ms"] == row["rank_ms"] == pytest.approx(50)


def test_a_fusion_takes_what_its_methods_take_and_its_own_time(tmp_path):
    text = run(tmp_path / "text", [took(10, 2.0, 1.0)], took(10, 0.1, 0.1)).ranks_path
    other = made(tmp_path / "other.parquet", "fit_baseline", took(40, 0.4, 0.4))
    ranks = made(tmp_path / "fused.parquet", "fuse", took(10, 0.05, 0.05), scores_in=[other, text])
    (row,) = inference.table([RankedRun(method="f", title="F", models="a+b", ranks_path=ranks)]).to_dicts()
    assert row["users"] == 10 and row["write_ms"] == pytest.approx(200)
    assert row["rank_ms"] == pytest.approx(10 + 10 + 5) and row["ms"] == pytest.approx(225)
    assert row["joules"] == pytest.approx(WATTS_PER_CORE * (0.1 + 0.01 + 0.01 + 0.005))


def test_the_counter_of_a_gpu_comes_on_top_of_cpu_time(tmp_path):
    (row,) = inference.table([run(tmp_path, [took(10, 1.0, 1.0, gpu=300.0)], took(10, 0.1, 0.2))]).to_dicts()
    assert row["joules"] == pytest.approx((300 + WATTS_PER_CORE * 1.2) / 10)
    assert row["energy_from"] == "CPU time and NVML"
    page = inference.section(inference.table([run(tmp_path, [took(10, 1.0, 1.0, gpu=300.0)], took(10, 0.1, 0.2))]))
    assert "which includes what else runs on that GPU" in page and "30.6" in page


@pytest.mark.parametrize(
    ("shards", "ranking", "why", "timed"),
    [
        ([took(0, 0.0, 0.0)], took(10, 1.0, 1.0), "finished earlier batches were reused", False),
        ([took(10, 9.0, 0.1, remote=True)], took(10, 1.0, 1.0), "the energy of a remote model is not known", True),
        ([None], took(10, 1.0, 1.0), "made by a version that did not measure it", False),
        ([took(10, 1.0, 1.0)], None, "made by a version that did not measure it", False),
    ],
)
def test_what_is_not_known_is_blank_with_the_reason(tmp_path, shards, ranking, why, timed):
    rows = inference.table([run(tmp_path, shards, ranking)])
    (row,) = rows.to_dicts()
    assert why in row["why_not"] and row["joules"] is None and (row["ms"] is not None) == timed
    assert f"- Blank: {why}" in inference.section(rows) and "(M)" in inference.section(rows)


def test_a_seed_that_was_not_measured_leaves_the_others(tmp_path):
    measured = run(tmp_path / "a", [took(10, 1.0, 1.0)], took(10, 0.1, 0.2))
    (row,) = inference.table([measured, run(tmp_path / "b", [None], took(10, 0.1, 0.2))]).to_dicts()
    assert row["runs"] == 1 and row["ms"] == pytest.approx(110) and row["why_not"] == ""


def test_files_that_are_gone_are_named_and_nothing_fails(tmp_path):
    gone = RankedRun(method="m", title="M", models="", ranks_path=str(tmp_path / "none.parquet"))
    assert inference.table([gone])["why_not"].to_list() == ["made by a version that did not measure it"]


def test_a_meter_counts_what_runs_inside_it():
    meter = Meter()
    time.sleep(0.05)
    for _ in range(2):
        with meter.running():
            time.sleep(0.02)
            until = time.process_time() + 0.02
            while time.process_time() < until:
                pass
    note = meter.note(4)[NOTE]
    assert note["sessions"] == 4 and note["seconds"] >= 0.08
    assert 0.04 <= note["cpu_seconds"] < note["seconds"]


def test_what_a_pause_holds_is_not_counted():
    meter = Meter()
    with meter.running():
        time.sleep(0.02)
        with meter.paused():
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass
    note = meter.note(1)[NOTE]
    assert 0.02 <= note["seconds"] < 0.1 > note["cpu_seconds"]


def test_writing_scores_for_a_fusion_is_not_inference(tmp_path):
    class Counted(Meter):
        pauses = 0

        def paused(self):
            self.pauses += 1
            return super().paused()

    meter, table = Counted(), pl.DataFrame({"session": range(4), "target": [0] * 4})
    with kept.keeping(tmp_path / "s.parquet", meter=meter) as keep, meter.running():
        list(keep(table, iter([np.zeros((2, 3)), np.ones((2, 3))])))
    assert meter.pauses == 2, "one for each block"
