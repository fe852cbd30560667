"""What the benchmarks of the Fréchet distance share: the features, the way of pytorch-fid, pairs that must agree.

The features are non-negative with variances that fall as a power of their rank, as pooled features of a network are;
what they hold has no part in the time, but decides how well a matrix square root can be taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Bar, Pairs, Result, interleaved, paired_result

WIDTH = 2048
Array = NDArray[np.float64]
Rows = NDArray[np.float32]
Distance = Callable[[Rows, Rows], float]


def features(count: int, seed: int, shift: float = 0.0) -> Rows:
    """(count, 2048) float32; sets of different ``shift`` differ in mean and covariance."""
    scales = (np.arange(1, WIDTH + 1) ** -0.5).astype(np.float32)
    mixing = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), dtype=np.float32)
    mixed = (np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32) * scales) @ mixing
    return np.maximum(mixed * (0.1 + 0.02 * shift) + 0.1 * shift, 0)


def sqrtm_distance(x: Array | Rows, y: Array | Rows) -> float:
    """The distance by scipy.linalg.sqrtm, with 1e-6 on the diagonals where that fails, as pytorch-fid takes it."""
    from scipy import linalg

    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, covariance_x = x.mean(axis=0), np.cov(x, rowvar=False)
    mean_y, covariance_y = y.mean(axis=0), np.cov(y, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", linalg.LinAlgWarning)
        root = linalg.sqrtm(covariance_x @ covariance_y)
        if not np.isfinite(root).all():
            offset = 1e-6 * np.eye(len(covariance_x))
            root = linalg.sqrtm((covariance_x + offset) @ (covariance_y + offset))
    difference = mean_x - mean_y
    traces = np.trace(covariance_x) + np.trace(covariance_y)
    return float(difference @ difference + traces - 2 * np.trace(root.real))


def measure_against(
    theirs: Distance, *, samples: int, pairs: int, bar: Bar, names: tuple[str, str], what: str
) -> Result:
    """Seconds of ``theirs`` over those of ``frechet_distance``, both from features, and how far the scores differ."""
    from layersync.metrics import frechet_distance

    found: dict[str, list[float]] = {name: [] for name in names}
    sets = [(features(samples, 2 * index), features(samples, 2 * index + 1, shift=1)) for index in range(pairs)]

    def timed(name: str, distance: Distance) -> Callable[[int], None]:
        return lambda index: found[name].append(distance(*sets[index]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for distance in (theirs, frechet_distance):
            distance(sets[0][0][:200, :64], sets[0][1][:200, :64])  # libraries loaded, threads started
        taken: Pairs = interleaved(
            timed(names[0], theirs), timed(names[1], frechet_distance), pairs=pairs, warmup=0, what=what
        )
    differences = [abs(a - b) / b for a, b in zip(found[names[0]], found[names[1]], strict=True)]
    scores = {"relative_difference": max(differences), "scores": found}
    return {**paired_result(taken, bar, names, "seconds"), **scores}
