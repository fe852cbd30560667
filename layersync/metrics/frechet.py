"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al., arXiv 1706.08500).

|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), which FID, FAD and motion FID are on features of their own.

With C_x = F_x F_x^T, the eigenvalues of C_x C_y are those of the symmetric F_x^T C_y F_x, and their roots the singular
values of F_x^T F_y: real, so that the score is never imaginary. F is Cholesky's factor, or the samples themselves where
they are fewer than features, which makes the problem as small as the smaller side.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from scipy.special import stdtrit

from layersync.metrics.arrays import Features, Floats, checked, same_width
from layersync.metrics.gaussian import EPS, Fitted, GaussianStatistics, fitted
from layersync.metrics.replication import bootstrap

Gaussian = Features | tuple[ArrayLike, ArrayLike, int | None] | GaussianStatistics
SMALL = 1024
"""Size up to which singular values of F_x^T F_y are taken: they lose no digits, but cost several times as much."""
TOLERANCE = 1e-7
"""Relative error of a distance up to which eigenvalues of the product are good enough beyond that size."""
RESAMPLES = 100
BOOTSTRAP_LIMIT = 256
"""Size up to which a hundred distances are cheap."""


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """Fréchet distance between ``x`` and ``y``, at least 0.

    Each is features (n, d), a tuple ``(mean (d,), covariance (d, d), count or None)``, or
    :class:`GaussianStatistics`, which is factored once however often it is compared.

    Warns where samples are not more than features: the covariance is singular, and the score biased upwards.
    Raises ValueError for values that are not finite, fewer than 2 samples, shapes that do not fit.
    """
    first, second = _given(x, "x"), _given(y, "y")
    for found, name in ((first, "x"), (second, "y")):
        _warn_if_singular(found, name)
    return between(first, second)


def _given(x: Gaussian, name: str) -> Fitted:
    """``x`` in the form for :func:`between`."""
    if isinstance(x, GaussianStatistics):
        return x.fitted
    if isinstance(x, tuple):
        if len(x) != 3:
            raise ValueError(f"statistics {name} must be (mean, covariance, count), not a tuple of {len(x)}")
        return GaussianStatistics(*x).fitted
    return fitted(checked(x, name))


def _warn_if_singular(found: Fitted, name: str) -> None:
    width = len(found.mean)
    if found.count is not None and found.count <= width:
        warnings.warn(
            f"{name} has {found.count} samples of {width} features: its covariance is singular and the score biased "
            f"upwards; more than {width} samples are needed",
            UserWarning,
            stacklevel=3,
        )


def between(x: Fitted, y: Fitted) -> float:
    """The distance between two Gaussians as fitted; ``y`` is the one to be factored where it does not matter."""
    same_width(len(x.mean), len(y.mean))
    difference = x.mean - y.mean
    distance = float(difference @ difference) + x.trace + y.trace
    left, right = (x, y) if x.rank < y.rank else (y, x)
    if left.rank > SMALL:
        # One library for all of it: threads of another one's BLAS go on spinning and halve the speed of the next.
        squares = linalg.eigvalsh(right.within(left), driver="evd", check_finite=False, overwrite_a=True)
        roots = np.sqrt(squares.clip(min=0))
        # Eigenvalues have an absolute error, which their roots magnify where they are small.
        noise = EPS * left.norm * right.norm
        error = float((noise / (2 * roots).clip(min=max(noise**0.5, EPS))).sum())
        result = distance - 2 * float(roots.sum())
        if 2 * error <= TOLERANCE * result:
            return result
    return max(0.0, distance - 2 * float(np.linalg.svd(left.factor.T @ right.factor, compute_uv=False).sum()))


@dataclass(frozen=True)
class FrechetInfinity:
    """Extrapolation of the distance to infinitely many generated samples."""

    value: float
    slope: float
    """Of the distance over 1 / n."""
    r_squared: float
    """Share of the distances' variance that the line explains; low: do not trust ``value``."""
    sizes: tuple[int, ...]
    """Number of samples of every draw."""
    distances: tuple[float, ...]
    """Distance of every draw."""

    def __float__(self) -> float:
        return self.value


def frechet_infinity(
    generated: Features,
    reference: Gaussian,
    *,
    sizes: int = 25,
    smallest: int = 500,
    replacement: bool = True,
    seed: int = 0,
) -> FrechetInfinity:
    """Distance extrapolated over the number of generated samples: FAD-infinity (Gui et al., arXiv 2311.01616).

    As in fadtk: ``sizes`` numbers of samples from ``smallest`` to all, evenly spaced; that many drawn with
    replacement; the intercept of a line fitted to the distances over 1 / n. Here the draws are seeded.

    Drawn with replacement, samples stand for the set given, and the intercept comes close to the distance of all of
    it, with its bias. Without ``replacement`` they stand for what the set was drawn from, as in FID-infinity (Chong and
    Forsyth, arXiv 1911.07023), and the bias goes. That of the reference stays either way.

    Raises ValueError where there are not more than ``smallest`` generated samples.
    """
    x = checked(generated, "generated")
    if smallest < 2 or sizes < 3:
        raise ValueError(f"smallest is {smallest} and sizes {sizes}; at least 2 samples and 3 sizes are needed")
    if len(x) <= smallest:
        raise ValueError(
            f"extrapolation from {smallest} samples up needs more than {smallest} generated samples, not {len(x)}; "
            f"give a smaller number as smallest"
        )
    y = _given(reference, "reference")
    _warn_if_singular(y, "reference")
    random = np.random.default_rng(seed)
    counts = [int(count) for count in np.linspace(smallest, len(x), sizes)]
    draws = (random.choice(len(x), count, replace=replacement) for count in counts)
    scores = np.array([between(fitted(x[rows]), y) for rows in draws])
    inverse = 1 / np.array(counts)
    slope, intercept = np.polyfit(inverse, scores, 1)
    residual, spread = scores - (slope * inverse + intercept), scores - scores.mean()
    r_squared = 1 - (residual @ residual) / (spread @ spread) if spread.any() else 1.0
    return FrechetInfinity(float(intercept), float(slope), float(r_squared), tuple(counts), tuple(scores.tolist()))


class FrechetInterval(NamedTuple):
    """95 % interval of a distance over the draw of the generated samples; the reference is taken as it is."""

    interval: tuple[float, float]
    method: str
    """``bootstrap`` or ``jackknife``."""


def frechet_interval(
    generated: Features, reference: Gaussian, *, groups: ArrayLike | None = None, seed: int = 0
) -> FrechetInterval:
    """Where the distance between generated features (n, d) and a reference lies.

    Where the smaller of n and d is at most 256: 100 bootstrap resamples. Resamples repeat samples and so lie further
    away than the samples do: the spread about their mean is taken, not their level. Else :func:`jackknife_frechet`.

    ``groups`` (n,) numbers the sample that each row is of, where a sample has several, such as the windows of a sound:
    samples are drawn then, with all their rows.
    """
    x = checked(generated, "generated")
    if min(x.shape) > BOOTSTRAP_LIMIT:
        return FrechetInterval(jackknife_frechet(x, reference, groups=groups, seed=seed), "jackknife")
    return mean_frechet_interval([x], [reference], groups=groups, seed=seed)


def mean_frechet_interval(
    generated: Sequence[Features], references: Sequence[Gaussian], *, groups: ArrayLike | None = None, seed: int = 0
) -> FrechetInterval:
    """Where the mean of several distances lies: of the same samples by features (n, d) of several networks.

    Each has a reference of its own. Bootstrapped as by :func:`frechet_interval`, with the same resamples for all,
    however wide the features are.

    Raises ValueError for sets of different lengths.
    """
    sets = [checked(x, "generated") for x in generated]
    if len({len(x) for x in sets}) != 1:
        raise ValueError(f"generated features must be of the same samples, not of {sorted({len(x) for x in sets})}")
    targets, samples = [_given(y, "reference") for y in references], _Samples(groups, len(sets[0]))

    def mean(chosen: NDArray[np.int64]) -> float:
        rows = samples.rows(chosen)
        return float(np.mean([between(fitted(x[rows]), y) for x, y in zip(sets, targets, strict=True)]))

    found = bootstrap(mean, samples.numbers, resamples=RESAMPLES, seed=seed)
    low, high = found.value + np.quantile(found.draws - found.draws.mean(), [0.025, 0.975])
    return FrechetInterval((max(0.0, float(low)), float(high)), "bootstrap")


def jackknife_frechet(
    generated: Features, reference: Gaussian, *, blocks: int = 10, groups: ArrayLike | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the distance by the delete-one-block jackknife, for features too wide to bootstrap.

    The samples are dealt into blocks at random (those of one class often follow each other) and each block is left out
    once; what is left comes from merging the others' statistics, so that a block costs one eigenvalue problem. The
    interval is the distance -+ Student's t with ``blocks`` - 1 degrees of freedom times the jackknife's standard error.
    ``groups`` as in :func:`frechet_interval`; with fewer samples than ``blocks``, each is a block.

    Raises ValueError for fewer than 2 blocks or 2 samples.
    """
    x = checked(generated, "generated")
    y, samples = _given(reference, "reference"), _Samples(groups, len(x))
    blocks = min(blocks, len(samples.numbers))
    if blocks < 2:
        raise ValueError(f"{len(samples.numbers)} samples in {blocks} blocks; at least 2 of each are needed")
    order = np.random.default_rng(seed).permutation(samples.numbers)
    parts = [samples.rows(chosen) for chosen in np.array_split(order, blocks)]
    scores = np.array([between(rest, y) for rest in _left_out(x, parts)])
    error = np.sqrt((blocks - 1) / blocks * ((scores - scores.mean()) ** 2).sum())
    value, half = between(fitted(x), y), float(stdtrit(blocks - 1, 0.975) * error)
    return max(0.0, value - half), value + half


class _Samples:
    """Which rows belong to which sample."""

    def __init__(self, groups: ArrayLike | None, count: int) -> None:
        owner = np.arange(count) if groups is None else np.asarray(groups)
        if owner.shape != (count,):
            raise ValueError(f"groups must number the sample of each of {count} rows, not be {list(owner.shape)}")
        self._order = np.argsort(owner, kind="stable")
        _, self._starts, self._counts = np.unique(owner[self._order], return_index=True, return_counts=True)
        self.numbers = np.arange(len(self._counts))

    def rows(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the samples ``chosen``, all of each, as often as it is chosen."""
        counts = self._counts[chosen]
        before = np.cumsum(counts) - counts
        return self._order[np.repeat(self._starts[chosen] - before, counts) + np.arange(counts.sum())]


def _left_out(x: Floats, parts: Sequence[NDArray[np.int64]]) -> Iterator[Fitted]:
    """``x`` without each of the parts."""
    if len(x) - max(map(len, parts)) <= x.shape[1]:
        for number in range(len(parts)):
            yield fitted(x[np.concatenate([*parts[:number], *parts[number + 1 :]])])
        return
    statistics = []
    for part in parts:
        statistics.append(GaussianStatistics())
        statistics[-1].update(x[part])
    for left in statistics:
        rest = GaussianStatistics()
        for other in statistics:
            if other is not left:
                rest.merge(other)
        yield rest.fitted
