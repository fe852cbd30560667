"""How every benchmark measures: interleaved pairs, their median with an interval, one JSON line.

Times on a shared machine drift by more than the differences looked for. So two sides are never timed one after the
other but in pairs, side by side, the order swapped from pair to pair; the value is the median over pairs of the
pair's ratio, and its interval the central 95 % of that median over bootstrap resamples of the pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

RESAMPLES = 10_000
DIGITS = 5
"""Significant digits of the numbers printed."""

Result = dict[str, Any]


class SkippedError(Exception):
    """The benchmark cannot run here; the message says why."""


@dataclass(frozen=True)
class Bar:
    """What a value has to reach: ``at most``, ``at least`` or ``below`` the limit."""

    sense: Literal["at most", "at least", "below"]
    limit: float

    def holds(self, value: float) -> bool:
        """Whether ``value`` reaches it."""
        if self.sense == "at least":
            return value >= self.limit
        return value <= self.limit if self.sense == "at most" else value < self.limit


@dataclass
class Pairs:
    """Measurements of two sides, entry ``i`` of both taken side by side."""

    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def ratios(self) -> list[float]:
        """First over second, pair by pair."""
        return [a / b for a, b in zip(self.first, self.second, strict=True)]


def synchronize() -> None:
    """Wait for an accelerator to finish what it was given; nothing on a CPU."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one call."""
    synchronize()
    start = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - start


def interleaved(
    first: Callable[[int], Any], second: Callable[[int], Any], *, pairs: int, warmup: int, what: str
) -> Pairs:
    """Seconds of ``first(i)`` and ``second(i)``, ``i`` counting pairs from 0, after ``warmup`` pairs untimed.

    Which of them goes first changes from pair to pair.
    """
    found = Pairs()
    for index in range(warmup + pairs):
        order = (first, second) if index % 2 == 0 else (second, first)
        taken = {action: seconds(partial(action, index)) for action in order}
        if index >= warmup:
            found.first.append(taken[first])
            found.second.append(taken[second])
        say(f"{what}: pair {index + 1} of {warmup + pairs}, {taken[first]:.3f} s and {taken[second]:.3f} s")
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the bootstrap interval (95 %) of it."""
    data = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(0).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(np.median(data[chosen], axis=1), [0.025, 0.975])
    return float(np.median(data)), float(low), float(high)


def side(values: Sequence[float], unit: str) -> Result:
    """One raw side: its median and every measurement."""
    return {f"median_{unit}": statistics.median(values), f"all_{unit}": list(values)}


def paired_result(pairs: Pairs, bar: Bar, names: tuple[str, str], unit: str) -> Result:
    """A result whose value is the median ratio of first over second."""
    value, low, high = median_interval(pairs.ratios)
    return {
        "value": value,
        "bar": bar.limit,
        "sense": bar.sense,
        "holds": bar.holds(value),
        "unit": f"{names[0]} / {names[1]}",
        "interval": [low, high],
        "pairs": len(pairs),
        names[0]: side(pairs.first, unit),
        names[1]: side(pairs.second, unit),
    }


def peak_memory_mib() -> float:
    """Highest memory of this process so far: allocated on a CUDA device if there is one, else resident.

    ``VmHWM`` starts at 0 in a new program; ``ru_maxrss``, where there is no /proc, begins with what the parent held.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def rounded(value: Any) -> Any:
    """``value`` with its floats at :data:`DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send what libraries print on stdout, from C too, to stderr: stdout carries the JSON line alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def main(name: str, bar: Bar, measure: Callable[[bool], Result]) -> None:
    """Command line of one benchmark file: measure, print the JSON line. Exit status 0 unless ``measure`` fails."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name.replace('-', '_')}")
    parser.add_argument("--quick", action="store_true", help="few repeats: shows that it works, not what it measures")
    quick = parser.parse_args().quick
    start = time.perf_counter()
    try:
        with stdout_kept_clean():
            result = measure(quick)
    except SkippedError as reason:
        result = failed(bar, f"skipped: {reason}")
    extra: Result = {"quick": True} if quick else {}
    print(json.dumps(rounded({"name": name, **result, **extra, "total_seconds": time.perf_counter() - start})))


def failed(bar: Bar | None, reason: str) -> Result:
    """The result of a benchmark that gave no value."""
    limit, sense = (bar.limit, bar.sense) if bar else (None, None)
    return {"value": None, "bar": limit, "sense": sense, "holds": False, "reason": reason}
