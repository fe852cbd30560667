"""``precision-recall``: at least as fast as torch-fidelity, in less than 2 GB.

10,000 samples a side in 2048 dimensions, k = 3. The bar has two conditions: the ratio of seconds, and the whole peak of
a fresh process that holds the features and takes the two scores, libraries included, in GB (10^9 bytes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from benchmarks.frechet import Rows, features
from benchmarks.measure import Bar, Result, interleaved, main, paired_result, peak_memory_mib, say

NAME = "precision-recall"
BAR = Bar("at least", 1.0)
MEMORY = Bar("below", 2.0)
ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
"""Scores of arrays are taken on the processor: resident memory counts, whatever else there is."""
SAMPLES = 10_000
Pair = tuple[float, float]


def both_sets() -> tuple[Rows, Rows]:
    """Generated and real features."""
    return features(SAMPLES, 0, shift=0.2), features(SAMPLES, 1)


def ours(generated: Rows, real: Rows) -> Pair:
    from layersync.metrics import precision_recall

    return precision_recall(generated, real)


def fidelity(generated: Rows, real: Rows) -> Pair:
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    found = prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), verbose=False)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def peak_gb() -> float:
    """Peak of this process over our scores."""
    ours(*both_sets())
    return peak_memory_mib() * 2**20 / 1e9


def measure(quick: bool) -> Result:
    command = [sys.executable, "-m", "benchmarks.precision_recall", "--side"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ON_CPU)
    peak = json.loads(done.stdout.splitlines()[-1])
    say(f"{NAME}: peak {peak:.2f} GB")
    sets = both_sets()
    for score in (fidelity, ours):
        score(sets[0][:500], sets[1][:500])  # libraries loaded, threads started
    scores: dict[str, Pair] = {}
    pairs = interleaved(
        lambda _: scores.update(fidelity=fidelity(*sets)),
        lambda _: scores.update(ours=ours(*sets)),
        pairs=1 if quick else 2,
        warmup=0,
        what=NAME,
    )
    result = paired_result(pairs, BAR, ("fidelity", "ours"), "seconds")
    return {
        **result,
        "holds": result["holds"] and MEMORY.holds(peak),
        "peak_gb": peak,
        "peak_gb_bar": MEMORY.limit,
        "scores": scores,
    }


if __name__ == "__main__":
    if "--side" in sys.argv:
        print(json.dumps(peak_gb()))
    else:
        main(NAME, BAR, measure)
