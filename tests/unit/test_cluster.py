"""slurm/cluster.yaml and the requests of jobs that follow from it."""

from __future__ import annotations

import pytest

from langptune.config.base import read_yaml, validate
from langptune.config.cluster import DRIVER_MB, Cluster, Demand, resources, sized
from langptune.errors import UserError
from tests.conftest import ROOT

BIG = 8 * 10**9


def site(**keys) -> Cluster:
    return validate(Cluster, keys, "cluster.yaml")


def test_shipped_file_asks_for_nothing_by_name():
    shipped = validate(Cluster, read_yaml(ROOT / "slurm" / "cluster.yaml"), "cluster.yaml")
    asked = resources(shipped, Demand(memory=1000, minutes=30, gpus=1), attempt=1)
    assert asked == {
        "mem_mb": 1000 + DRIVER_MB,
        "runtime": 30,
        "slurm_extra": "--signal=TERM@120",
        "gpu": 1,
        "cpus_per_gpu": 4,
    }


def test_memory_and_time_grow_with_the_attempt_up_to_the_limits():
    one = site(limits={"hours": 1, "memory_mb": 2200}, warn_seconds=0)
    demand = Demand(memory=1000, minutes=25)
    grown = [(asked["mem_mb"], asked["runtime"]) for asked in (resources(one, demand, n) for n in (1, 2, 3, 4))]
    assert grown == [(1500, 25), (2000, 50), (2200, 60), (2200, 60)]


def test_site_factors():
    asked = resources(site(time_factor=2, memory_factor=0.5), Demand(memory=1000, minutes=30), attempt=2)
    assert asked["runtime"] == 120 and asked["mem_mb"] == 750 + DRIVER_MB


def test_values_by_size():
    types = {3.0: "a6000", 80.0: "h100"}
    assert [sized(types, weights) for weights in (0, 3 * 10**9, BIG, 10**12)] == ["a6000", "a6000", "h100", "h100"]
    assert sized("a100", BIG) == "a100" and sized(None, BIG) is None


def test_cpu_and_gpu_jobs_go_where_they_belong():
    one = site(
        account="lab",
        partition={"cpu": "short", "gpu": {3: "gpu", 80: "big"}},
        qos={"gpu": "long"},
        constraint={"cpu": "avx512"},
        extra="--nice=10",
    )
    cpu = resources(one, Demand(memory=100, minutes=5, weights=BIG), attempt=1)
    gpu = resources(one, Demand(memory=100, minutes=5, weights=BIG, gpus=1), attempt=1)
    assert cpu["slurm_partition"] == "short" and cpu["constraint"] == "avx512" and "qos" not in cpu
    assert gpu["slurm_partition"] == "big" and gpu["qos"] == "long" and "constraint" not in gpu
    assert {asked["slurm_account"] for asked in (cpu, gpu)} == {"lab"}
    assert cpu["slurm_extra"] == "--signal=TERM@120 --nice=10"


@pytest.mark.parametrize(
    ("gpus", "wanted"),
    [
        ({"request": "gpu"}, {"gpu": 4}),
        ({"request": "gpu", "type": "a100"}, {"gpu": 4, "gpu_model": "a100"}),
        ({"request": "gres"}, {"gres": "gpu:4"}),
        ({"request": "gres", "type": {3: "v100", 9: "a100"}}, {"gres": "gpu:a100:4"}),
        ({"request": "none"}, {}),
    ],
)
def test_ways_to_ask_for_gpus(gpus, wanted):
    asked = resources(site(gpus=gpus, partition={"gpu": "g"}), Demand(100, 5, weights=BIG, gpus=4), attempt=1)
    assert {key: asked[key] for key in ("gpu", "gpu_model", "gres") if key in asked} == wanted
    assert ("slurm_partition" in asked) == bool(wanted)


def test_several_nodes():
    asked = resources(site(), Demand(memory=100, minutes=5, gpus=8, machines=2), attempt=1)
    found = {key: asked.get(key) for key in ("gres", "gpu", "nodes", "tasks", "tasks_per_gpu", "mpi")}
    assert found == {"gres": "gpu:4", "gpu": None, "nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"acount": "x"}, "acount"),
        ({"gpus": {"request": "gpus"}}, "gpus.request"),
        ({"limits": {"hours": 0}}, "limits.hours"),
        ({"partition": "gpu"}, "partition"),
    ],
)
def test_a_slip_is_named(keys, message):
    with pytest.raises(UserError, match=rf"cluster\.yaml.*{message}"):
        site(**keys)
