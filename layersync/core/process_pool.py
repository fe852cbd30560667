"""Runs of a comparison as processes: so many at once, each with its share of the machine, none outliving its parent."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from layersync.core import experiment_run
from layersync.core.device import usable_cores
from layersync.core.experiment_run import Assignment
from layersync.core.progress import progress
from layersync.core.results import duration
from layersync.core.signals import stops_by_signals

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
LAUNCHED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_", "MPI_LOCAL", "MV2_")
"""Variables, and how others begin, by which a launcher tells a process of others: a run is a process by itself."""
TAIL = 65_536
PATIENCE_SECONDS = 600
"""That a run which was told to stop has for its current step and for saving."""


@dataclass
class Task:
    """One run to be made, and after its end what became of it."""

    key: tuple[str, str, int]
    title: str
    assignment: Assignment
    steps: int
    seconds: float = 0.0
    error: str = ""


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    slot: int
    began: float
    log: Path
    stream: IO[bytes]

    def last_record(self) -> dict[str, Any]:
        """The newest line of the run's log; empty before the first."""
        path = Path(self.task.assignment.run) / "metrics.jsonl"
        if not path.is_file():
            return {}
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL))
            lines = [line for line in stream.read().splitlines(keepends=True) if line.endswith(b"}\n")]
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found


class ProcessPool:
    """At most ``jobs`` runs at a time. They share the cores; where there are GPUs, each has one of its own."""

    def __init__(self, jobs: int, tasks: Sequence[Task], *, shown: bool = False):
        self.jobs, self.shown = jobs, shown
        self.total = len(tasks)
        self.waiting = deque(tasks)
        """Those that have not begun, the next one first."""
        self._running: list[_Running] = []
        self._ended: list[Task] = []

    def run(self) -> Iterator[Task]:
        """Yield each task when its process has ended; ``error`` is empty where it ended well.

        Whatever ends the iteration ends the processes that still run: they are told to save their state and waited for.
        """
        try:
            with (
                stops_by_signals(),
                progress("runs", self.total, columns=("now", "left"), shown=self.shown) as advance,
            ):
                while self.waiting or self._running:
                    while self.waiting and len(self._running) < self.jobs:
                        self._running.append(self._start(self.waiting.popleft()))
                    time.sleep(POLL_SECONDS)
                    for running in [one for one in self._running if one.process.poll() is not None]:
                        yield self._end(running)
                        advance(1)
                    advance(0, now=self._now(), left=self._left())
        finally:
            self._stop()

    def _start(self, task: Task) -> _Running:
        slot = min(set(range(self.jobs)) - {running.slot for running in self._running})
        log = Path(f"{task.assignment.run}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open(
            "ab" if Path(task.assignment.result).is_file() else "wb"
        )  # a run that is done may draw samples
        assignment = dataclasses.replace(task.assignment, began=time.time())
        words = [sys.executable, "-P", "-m", experiment_run.MODULE, json.dumps(dataclasses.asdict(assignment))]
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            env=run_environment(
                os.environ,
                slot,
                self.jobs,
                gpus=torch.cuda.device_count(),
                cores=usable_cores(),
            ),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
        return _Running(task, process, slot, time.monotonic(), log, stream)

    def _end(self, running: _Running) -> Task:
        task, status = running.task, running.process.returncode
        self._running.remove(running)
        _close(running)
        task.seconds = time.monotonic() - running.began
        if status:
            lines = [line for line in running.log.read_text(errors="replace").splitlines() if line.strip()]
            last = lines[-1].strip() if lines else "no output"
            task.error = f"exit status {status}: {last.removeprefix('error: ')}"
        self._ended.append(task)
        how = f"failed, {task.error}; its log: {running.log}" if status else "done"
        left = self._left()
        logger.info(
            "%d of %d runs: %s %s in %s; %s left",
            len(self._ended),
            self.total,
            task.title,
            how,
            duration(task.seconds),
            left,
        )
        return task

    def _left(self) -> str:
        return duration(round(self.time_left())) if self._ended else "-"

    def time_left(self) -> float:
        """Seconds, from the runs that have ended well: those of the same domain where there are any."""
        well = [one for one in self._ended if not one.error] or self._ended
        now, rests = time.monotonic(), []
        for task, began in [*((one, now) for one in self.waiting), *((one.task, one.began) for one in self._running)]:
            alike = [one for one in well if one.key[0] == task.key[0]] or well
            rests.append(max(0.0, sum(one.seconds for one in alike) / len(alike) - (now - began)))
        return max(sum(rests) / min(self.jobs, len(rests)), *rests) if rests else 0.0

    def _now(self) -> str:
        """What runs, with the step and the loss of each."""
        found = []
        for running in self._running:
            record = running.last_record()
            loss = record.get("loss", record.get("held_out_loss"))
            state = f"{record['step']}/{running.task.steps} loss {loss:.3f}" if record else "starting"
            found.append(f"{running.task.key[1]} {state}")
        return ", ".join(found) or "-"

    def _stop(self) -> None:
        for running in self._running:
            running.process.send_signal(signal.SIGINT)
        for running in self._running:
            try:
                running.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                running.process.kill()
            _close(running)
        self._running.clear()


def run_environment(given: Mapping[str, str], slot: int, jobs: int, *, gpus: int, cores: int) -> dict[str, str]:
    """Variables of the process of a run, made of those of this process.

    A launcher's are left out, since a run is a process by itself. It has its share of the cores, and with GPUs it sees
    one of them, another than the other jobs here and in the other processes of the launch on this machine.

    Args:
        given: variables of this process.
        slot: which of the ``jobs`` that run at the same time it is, from 0.
        jobs: how many runs this process has at a time.
        gpus: how many GPUs this process sees.
        cores: how many cores it may use.
    """
    kept = {name: value for name, value in given.items() if name not in LAUNCHED and not name.startswith(LAUNCHERS)}
    if gpus:
        listed = (given.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
        visible = listed[:gpus]  # more may be listed than there are
        kept["CUDA_VISIBLE_DEVICES"] = visible[(int(given.get("LOCAL_RANK", "0")) * jobs + slot) % len(visible)]
    processes = int(given.get("LOCAL_WORLD_SIZE", "1"))
    share = max(1, cores // (jobs * processes))
    first = kept.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # others are of nested regions
    wanted = int(first) if first.isdecimal() and int(first) else share
    if processes > 1 and wanted == 1:
        wanted = share  # what launchers say where nobody has said anything
    kept["OMP_NUM_THREADS"] = str(min(share, wanted))
    return kept


def dealt(tasks: Sequence[Task], rank: int, count: int, variants: int) -> list[Task]:
    """Those of ``tasks`` that process ``rank`` of ``count`` makes; in all, as many each as can be.

    With 2 processes and 2 variants each variant comes to both processes in turn, so that a slower machine is not taken
    for a slower variant.
    """
    cycle = math.lcm(variants, count)
    return [task for number, task in enumerate(tasks) if (number + number // cycle) % count == rank]


def _close(running: _Running) -> None:
    assert running.process.stdin is not None
    running.process.stdin.close()
    running.stream.close()
