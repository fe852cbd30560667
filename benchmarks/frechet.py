"""What the benchmarks of the Fréchet distance share: the features, the way of pytorch-fid, pairs that must agree.

The features are non-negative with variances that fall as a power of their rank, as pooled features of a network are;
what they hold has no part in the time, but decides how well a matrix square root can be taken.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Bar, Result, interleaved, paired_result

WIDTH = 2048
Array = NDArray[np.float64]
Rows = NDArray[np.float32]
Distance = Callable[[Any, Any], float]
Prepared = Callable[[Rows], Any]


def features(count: int, seed: int, shift: float = 0.0) -> Rows:
    """(count, 2048) float32; sets of different ``shift`` differ in mean and covariance."""
    scales = (np.arange(1, WIDTH + 1) ** -0.5).astype(np.float32)
    mixing = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), dtype=np.float32)
    mixed = (np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32) * scales) @ mixing
    return np.maximum(mixed * (0.1 + 0.02 * shift) + 0.1 * shift, 0)


def statistics(x: Rows) -> tuple[Array, Array]:
    """Mean and covariance as pytorch-fid takes them, in float64."""
    wide = x.astype(np.float64)
    return wide.mean(axis=0), np.cov(wide, rowvar=False)


def sqrtm_distance(x: tuple[Array, Array], y: tuple[Array, Array]) -> float:
    """The distance by scipy.linalg.sqrtm, with 1e-6 on the diagonals where that fails, as pytorch-fid takes it."""
    from scipy import linalg

    (mean_x, covariance_x), (mean_y, covariance_y) = x, y
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
    name: str,
    theirs: tuple[Prepared, Distance],
    ours: tuple[Prepared, Distance],
    *,
    samples: int,
    pairs: int,
    bar: Bar,
    what: str,
) -> Result:
    """Seconds of their distance over ours on the same features, and how far the scores differ.

    Each side is what it makes of features beforehand, untimed but reported as ``prepare_seconds``, and its distance.
    """
    sides = {name: theirs, "ours": ours}
    found: dict[str, list[float]] = {side: [] for side in sides}
    prepare: dict[str, list[float]] = {side: [] for side in sides}
    sets: dict[str, list[tuple[Any, Any]]] = {side: [] for side in sides}
    small = features(200, 0)[:, :64]
    for prepared, distance in sides.values():
        distance(prepared(small), prepared(small + 1))  # libraries loaded, threads started
    for index in range(pairs):
        x, y = features(samples, 2 * index), features(samples, 2 * index + 1, shift=1)
        for side, (prepared, _) in sides.items():
            start = time.perf_counter()
            sets[side].append((prepared(x), prepared(y)))
            prepare[side].append(time.perf_counter() - start)

    def timed(side: str) -> Callable[[int], None]:
        return lambda index: found[side].append(sides[side][1](*sets[side][index]))

    taken = interleaved(timed(name), timed("ours"), pairs=pairs, warmup=0, what=what)
    differences = [abs(a - b) / b for a, b in zip(found[name], found["ours"], strict=True)]
    return {
        **paired_result(taken, bar, (name, "ours"), "seconds"),
        "prepare_seconds": prepare,
        "relative_difference": max(differences),
        "scores": found,
    }
