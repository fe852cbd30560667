"""``frechet-small``: with fewer samples than dimensions, at least 40 times as fast as by scipy.linalg.sqrtm.

2048 dimensions, 500 samples a side, both from features. The covariances are singular, so that the root may fail and is
taken again with 1e-6 on the diagonals, as pytorch-fid does; the difference of the scores is reported, not judged.
"""

from __future__ import annotations

from benchmarks.frechet import measure_against, sqrtm_distance
from benchmarks.measure import Bar, Result, main

NAME = "frechet-small"
BAR = Bar("at least", 40.0)


def measure(quick: bool) -> Result:
    return measure_against(
        sqrtm_distance, samples=500, pairs=1 if quick else 3, bar=BAR, names=("sqrtm", "ours"), what=NAME
    )


if __name__ == "__main__":
    main(NAME, BAR, measure)
