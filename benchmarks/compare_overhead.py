"""``compare-overhead``: what ``layersync compare`` takes beside its runs: plan, checks, statistics, report.

Measured on short runs, one at a time, and set against runs of five minutes, the shortest that the bar is about: the
time beside the runs does not grow with their length. Start and imports of a run's process count as the run's; drawing
samples for the page, once it is scored, does not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import layersync
from benchmarks.measure import Bar, Result, main, seconds
from layersync.core.results import read_comparison
from layersync.report import write_report

NAME = "compare-overhead"
BAR = Bar("at most", 0.02)
RUN_SECONDS = 300
SETS = ("train.steps=20", "evaluate.num_samples=64", "evaluate.every=null")


def measure(quick: bool) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        compare(1, Path(scratch) / "warm")  # once untimed: latents and classifier are cached
        out = Path(scratch) / "timed"
        wall = seconds(lambda: compare(1 if quick else 2, out))
        runs = read_comparison(out).runs("finished")
    inside = [run.process_seconds or 0.0 for run in runs]
    beside = (wall - sum(inside)) / len(inside)
    value = beside / RUN_SECONDS
    return {
        "value": value,
        "bar": BAR.limit,
        "sense": BAR.sense,
        "holds": BAR.holds(value),
        "unit": f"seconds beside a run / {RUN_SECONDS}",
        "runs": len(runs),
        "seconds_beside_a_run": beside,
        "seconds_of_a_run": sum(inside) / len(inside),
    }


def compare(seeds: int, out: Path) -> None:
    layersync.compare(["image/quick"], seeds=seeds, out=out, overrides=SETS, jobs=1)
    write_report(out)


if __name__ == "__main__":
    main(NAME, BAR, measure)
