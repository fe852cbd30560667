"""``regularizer-memory``: training with LayerSync needs at most 1.02 times the memory of training without.

Each side trains in fresh processes of its own, because a process never gives back its peak. The value is the ratio of
whole peaks, the program and its libraries included, as a user's machine has to hold them; what the training added to
the memory held just before the first trainer was made is reported beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.measure import Bar, Pairs, Result, main, median_interval, paired_result, peak_memory_mib, say
from benchmarks.workload import random_parts, sit_recipe

NAME = "regularizer-memory"
BAR = Bar("at most", 1.02)
STEPS = 3
FIXED = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
REGULARIZERS = {"on": "layersync", "off": "none"}


def train(which: str) -> dict[str, float]:
    """Peak memory in MiB of this process before and after a few steps with LayerSync ``on`` or ``off``."""
    from accelerate import Accelerator  # noqa: F401  imported here so that it is counted as program, not as training

    from layersync.core.trainer import Trainer

    with random_parts() as parts:
        before = peak_memory_mib()
        trainer = Trainer(sit_recipe(regularizer={"name": REGULARIZERS[which]}), parts)
        for step in range(STEPS):
            trainer.train_step(step)
        return {"before": before, "peak": peak_memory_mib()}


def in_fresh_process(which: str, environment: dict[str, str]) -> dict[str, float]:
    """:func:`train` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.regularizer_memory", "--side", which]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    found = json.loads(done.stdout.splitlines()[-1])
    say(f"{NAME}: {which}, peak {found['peak']:.0f} MiB, {found['peak'] - found['before']:.0f} of it training")
    return found


def measure_pairs(count: int, environment: dict[str, str]) -> tuple[Pairs, Pairs]:
    """Peaks of both sides in MiB, and how much of them the training added."""
    peaks, added = Pairs(), Pairs()
    for index in range(count):
        order = ("on", "off") if index % 2 == 0 else ("off", "on")
        found = {which: in_fresh_process(which, environment) for which in order}
        for which, in_peaks, in_added in (("on", peaks.first, added.first), ("off", peaks.second, added.second)):
            in_peaks.append(found[which]["peak"])
            in_added.append(found[which]["peak"] - found[which]["before"])
    return peaks, added


def ratio(pairs: Pairs) -> Result:
    """Median ratio of on over off with its interval, and the measurements."""
    value, low, high = median_interval(pairs.ratios)
    return {"value": value, "interval": [low, high], "on_mib": pairs.first, "off_mib": pairs.second}


def measure(quick: bool) -> Result:
    count = 1 if quick else 2
    peaks, added = measure_pairs(count, FIXED)
    default, _ = measure_pairs(1, {})
    return {
        **paired_result(peaks, BAR, ("on", "off"), "mib"),
        "training_alone": ratio(added),
        "default_allocator": ratio(default),
    }


if __name__ == "__main__":
    if "--side" in sys.argv:
        print(json.dumps(train(sys.argv[-1])))
    else:
        main(NAME, BAR, measure)
