"""``frechet-vs-fidelity``: the Fréchet distance is at least 2.5 times as fast as torch-fidelity's.

2048 dimensions, from the statistics of 3,000 samples a side; gathering them is timed apart (``prepare_seconds``).
torch-fidelity takes eigenvalues of the covariances' product, which is not symmetric.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.frechet import Rows, measure_against
from benchmarks.measure import Bar, Result, main

NAME = "frechet-vs-fidelity"
BAR = Bar("at least", 2.5)


def fidelity_statistics(x: Rows) -> dict[str, Any]:
    """Mean and covariance by torch-fidelity, of float64."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    return fid_features_to_statistics(torch.from_numpy(x).double())


def fidelity_distance(x: dict[str, Any], y: dict[str, Any]) -> float:
    """FID by torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(x, y, verbose=False)[KEY_METRIC_FID])


def measure(quick: bool) -> Result:
    from layersync.metrics import GaussianStatistics, frechet_distance

    theirs, ours = (fidelity_statistics, fidelity_distance), (GaussianStatistics.of, frechet_distance)
    return measure_against("fidelity", theirs, ours, samples=3000, pairs=1 if quick else 5, bar=BAR, what=NAME)


if __name__ == "__main__":
    main(NAME, BAR, measure)
