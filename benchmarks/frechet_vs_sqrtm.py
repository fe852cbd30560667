"""``frechet-vs-sqrtm``: the Fréchet distance is at least 8 times as fast as by scipy.linalg.sqrtm, to 1e-6.

2048 dimensions, 3,000 samples a side, both from features: means and covariances, then the root of the covariances'
product as pytorch-fid takes it. The bar has two conditions, speed and a relative difference of at most 1e-6.
"""

from __future__ import annotations

from benchmarks.frechet import measure_against, sqrtm_distance
from benchmarks.measure import Bar, Result, main

NAME = "frechet-vs-sqrtm"
BAR = Bar("at least", 8.0)
AGREEMENT = Bar("at most", 1e-6)


def measure(quick: bool) -> Result:
    result = measure_against(
        sqrtm_distance, samples=3000, pairs=1 if quick else 3, bar=BAR, names=("sqrtm", "ours"), what=NAME
    )
    agrees = AGREEMENT.holds(result["relative_difference"])
    return {**result, "relative_difference_bar": AGREEMENT.limit, "holds": result["holds"] and agrees}


if __name__ == "__main__":
    main(NAME, BAR, measure)
