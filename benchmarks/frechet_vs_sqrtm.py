"""``frechet-vs-sqrtm``: the Fréchet distance is at least 8 times as fast as by scipy.linalg.sqrtm, to 1e-6.

2048 dimensions, from the statistics of 3,000 samples a side, as pytorch-fid takes the root of the covariances' product.
Gathering the statistics is timed apart (``prepare_seconds``). The bar has two conditions, speed and a relative
difference of at most 1e-6.
"""

from __future__ import annotations

from benchmarks.frechet import measure_against, sqrtm_distance, statistics
from benchmarks.measure import Bar, Result, main

NAME = "frechet-vs-sqrtm"
BAR = Bar("at least", 8.0)
AGREEMENT = Bar("at most", 1e-6)


def measure(quick: bool) -> Result:
    from layersync.metrics import GaussianStatistics, frechet_distance

    theirs, ours = (statistics, sqrtm_distance), (GaussianStatistics.of, frechet_distance)
    result = measure_against("sqrtm", theirs, ours, samples=3000, pairs=1 if quick else 3, bar=BAR, what=NAME)
    agrees = AGREEMENT.holds(result["relative_difference"])
    return {**result, "relative_difference_bar": AGREEMENT.limit, "holds": result["holds"] and agrees}


if __name__ == "__main__":
    main(NAME, BAR, measure)
