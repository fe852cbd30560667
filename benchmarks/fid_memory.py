"""``fid-memory``: FID over 50,000 samples of 2048 features needs less than 500 MB above one batch.

Features come batch by batch, as an extractor gives them, into streamed statistics of both sides; then the distance is
taken. The value is what that adds to the peak of a process that has its libraries and one batch in memory, in MB
(10^6 bytes), each time in a fresh process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np

from benchmarks.measure import Bar, Result, main, median_interval, peak_memory_mib, say, side

NAME = "fid-memory"
BAR = Bar("below", 500.0)
ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
"""Scores of arrays are taken on the processor: resident memory counts, whatever else there is."""
SAMPLES, REFERENCE_SAMPLES, BATCH, WIDTH = 50_000, 5_000, 500, 2048


def added_memory() -> float:
    """MB that the statistics and the distance add to this process's peak."""
    from layersync.metrics import GaussianStatistics, frechet_distance

    random = np.random.default_rng(0)
    batch = np.empty((BATCH, WIDTH), dtype=np.float32)
    random.standard_normal(dtype=np.float32, out=batch)
    frechet_distance(batch[:, :100], batch[:, 100:200])  # libraries loaded, threads started
    before = peak_memory_mib()
    generated, reference = GaussianStatistics(), GaussianStatistics()
    for statistics, count in ((generated, SAMPLES), (reference, REFERENCE_SAMPLES)):
        for _ in range(0, count, BATCH):
            random.standard_normal(dtype=np.float32, out=batch)
            statistics.update(batch)
    assert frechet_distance(generated, reference) > 0
    return (peak_memory_mib() - before) * 2**20 / 1e6


def measure(quick: bool) -> Result:
    found = []
    for _ in range(1 if quick else 2):
        command = [sys.executable, "-m", "benchmarks.fid_memory", "--side"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ON_CPU)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        say(f"{NAME}: {found[-1]:.0f} MB")
    value, low, high = median_interval(found)
    return {
        "value": value,
        "bar": BAR.limit,
        "sense": BAR.sense,
        "holds": BAR.holds(value),
        "unit": "MB",
        "interval": [low, high],
        "repeats": len(found),
        "added": side(found, "mb"),
    }


if __name__ == "__main__":
    if "--side" in sys.argv:
        print(json.dumps(added_memory()))
    else:
        main(NAME, BAR, measure)
