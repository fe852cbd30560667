"""``compare-jobs``: runs an hour of ``layersync compare --jobs 2`` over those of one run after the other.

Two trainings of the ``quick`` image recipe: one at a time has all cores, two at a time share them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import layersync
from benchmarks.measure import Bar, Result, SkippedError, interleaved, main, paired_result

NAME = "compare-jobs"
BAR = Bar("at least", 1.3)
SETS = ("evaluate.every=null", "evaluate.metrics=[fd-classifier]", "train.precision=float32")


def measure(quick: bool) -> Result:
    if torch.accelerator.is_available():
        raise SkippedError("is about the cores of a CPU, and there is an accelerator")
    steps = 20 if quick else 180
    with tempfile.TemporaryDirectory() as scratch:

        def compare(jobs: int, number: int) -> None:
            out = Path(scratch) / f"{jobs}-{number}"
            layersync.compare(["image/quick"], seeds=1, out=out, overrides=[*SETS, f"train.steps={steps}"], jobs=jobs)

        compare(2, -1)  # once untimed: latents and classifier are cached
        pairs = interleaved(
            lambda number: compare(1, number),
            lambda number: compare(2, number),
            pairs=1 if quick else 2,
            warmup=0,
            what=NAME,
        )
    return paired_result(pairs, BAR, ("one_at_a_time", "two_at_a_time"), "seconds")


if __name__ == "__main__":
    main(NAME, BAR, measure)
