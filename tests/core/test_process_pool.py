"""How the runs of a comparison are shared out over processes, cores and GPUs."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from layersync.core import process_pool
from layersync.core.device import usable_cores
from layersync.core.experiment_run import Assignment
from layersync.core.process_pool import ProcessPool, Task, dealt, run_environment

NOTHING = Assignment(recipe="", seed=0, run="", result="", path="")


@pytest.mark.parametrize(("variants", "count"), [(2, 1), (2, 2), (2, 4), (3, 2), (4, 2), (4, 6), (3, 3), (5, 4)])
def test_every_run_is_made_once_and_every_variant_by_every_process(variants: int, count: int) -> None:
    seeds = 12
    tasks = [Task(("d", f"v{number}", seed), "", NOTHING, 1) for seed in range(seeds) for number in range(variants)]
    shares = [dealt(tasks, rank, count, variants) for rank in range(count)]
    assert sorted(task.key for share in shares for task in share) == sorted(task.key for task in tasks)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for share in shares:
        each = Counter(task.key[1] for task in share)
        assert len(each) == variants and max(each.values()) - min(each.values()) <= 2


class Clock:
    """Time that passes while it is slept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.time = self.monotonic = lambda: self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Process:
    """A run that takes 100 seconds, or with seed 0 fails after one."""

    clock = Clock()

    def __init__(self, words: list[str], **_: object):
        failing = json.loads(words[-1])["seed"] == 0
        self.end, self.returncode = self.clock.now + (1 if failing else 100), int(failing)
        self.stdin = io.BytesIO()

    def poll(self) -> int | None:
        return self.returncode if self.clock.now >= self.end else None


def test_the_time_left_is_that_of_the_runs_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one run on two jobs its own; a failure within a second makes no run shorter."""
    monkeypatch.setattr(process_pool, "time", Process.clock)
    monkeypatch.setattr(subprocess, "Popen", Process)
    seeds = range(6)
    runs = [replace(NOTHING, seed=seed, run=str(tmp_path / str(seed))) for seed in seeds]
    pool = ProcessPool(2, [Task(("d", "v", seed), "", runs[seed], 1) for seed in seeds])
    left = {task.key[2]: (Process.clock.now, pool.time_left()) for task in pool.run()}
    end = left[5][0]
    assert left[4][1] == pytest.approx(end - left[4][0], abs=1)
    assert left[3][1] == pytest.approx(100, abs=1) and left[2][1] == pytest.approx(150, abs=1)
    assert left[5][1] == 0


@pytest.mark.parametrize(("jobs", "visible"), [(1, None), (2, None), (2, "4,5,6,7"), (1, "GPU-a,GPU-b")])
def test_every_run_of_a_launch_has_a_gpu_of_its_own(jobs: int, visible: str | None) -> None:
    names = visible.split(",") if visible else [str(number) for number in range(2 * jobs)]
    found = []
    for rank in range(2):
        given = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "HOME": "/h"}
        given |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        for slot in range(jobs):
            kept = run_environment(given, slot, jobs, gpus=len(names), cores=8)
            assert "RANK" not in kept and kept["HOME"] == "/h"
            assert kept["OMP_NUM_THREADS"] == str(8 // (2 * jobs)), "a share of the cores too"
            found.append(kept["CUDA_VISIBLE_DEVICES"])
    assert sorted(found) == sorted(names)


def test_gpus_that_are_listed_and_not_there_are_given_to_no_run() -> None:
    given = {"CUDA_VISIBLE_DEVICES": "2,3,8,9"}
    found = [run_environment(given, slot, 4, gpus=2, cores=8)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
    assert found == ["2", "3", "2", "3"]


@pytest.mark.parametrize(
    ("given", "jobs", "threads"),
    [
        ({}, 1, 16),
        ({}, 2, 8),
        ({}, 32, 1),
        ({"OMP_NUM_THREADS": "1"}, 2, 1),
        ({"OMP_NUM_THREADS": "4"}, 2, 4),
        ({"OMP_NUM_THREADS": "12"}, 2, 8),
        ({"OMP_NUM_THREADS": " 4,2"}, 2, 4),
        ({"OMP_NUM_THREADS": ""}, 2, 8),
        ({"OMP_NUM_THREADS": "all"}, 2, 8),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 1, 8),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 1, 3),
    ],
)
def test_runs_share_the_cores(given: dict[str, str], jobs: int, threads: int) -> None:
    """As far as nobody said another number; torchrun says 1 where nobody has."""
    assert run_environment(given, 0, jobs, gpus=0, cores=16)["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.parametrize(
    "given",
    ["RANK", "ACCELERATE_MIXED_PRECISION", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_RANK"],
)
def test_a_run_does_not_take_itself_for_one_of_several(given: str) -> None:
    assert given not in run_environment({given: "2", "HOME": "/h"}, 0, 1, gpus=0, cores=1)


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert usable_cores() == os.cpu_count()
