"""``frechet-small``: with fewer samples than dimensions, at least 40 times as fast as by scipy.linalg.sqrtm.

2048 dimensions, 500 samples a side, both from features, because the gain is that no covariance is formed. The
covariances are singular, so that the root may fail and is taken again with 1e-6 on the diagonals, as pytorch-fid does;
the difference of the scores is reported, not judged.
"""

from __future__ import annotations

import warnings

from benchmarks.frechet import Rows, measure_against, sqrtm_distance, statistics
from benchmarks.measure import Bar, Result, main

NAME = "frechet-small"
BAR = Bar("at least", 40.0)


def unchanged(x: Rows) -> Rows:
    """Features as they are."""
    return x


def from_features(x: Rows, y: Rows) -> float:
    """The distance by scipy.linalg.sqrtm, statistics included."""
    return sqrtm_distance(statistics(x), statistics(y))


def measure(quick: bool) -> Result:
    from layersync.metrics import frechet_distance

    theirs, ours = (unchanged, from_features), (unchanged, frechet_distance)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*covariance is singular", category=UserWarning)
        return measure_against("sqrtm", theirs, ours, samples=500, pairs=1 if quick else 2, bar=BAR, what=NAME)


if __name__ == "__main__":
    main(NAME, BAR, measure)
