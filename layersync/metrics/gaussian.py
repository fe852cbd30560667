"""The Gaussian fitted to a set of features: gathered in one pass, and factored for the Fréchet distance.

Shape suffixes: N samples, D features, R columns of another's factor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from scipy.linalg import blas, lapack

from layersync.metrics.arrays import Features, Floats, blocks, checked, same_width

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
MIRRORED = 256
"""Rows of a triangle that are copied to the other side at once, so that they stay in a processor's cache."""
INDEFINITE = 1e-3
"""How far below 0 an eigenvalue of a covariance may lie, relative to the largest: float32 statistics need some."""


class GaussianStatistics:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), in float64.

    ``GaussianStatistics()`` is empty and gathers: :meth:`update` takes a batch of features, :meth:`merge` what another
    one gathered. No features are kept. Each batch is centred before it is squared (Chan, Golub and LeVeque, 1983), so
    that a large mean costs no digits, and the split into batches changes nothing but rounding.

    ``GaussianStatistics(mean, covariance, count)`` is what somebody stored. Without a count nothing can be added.
    Raises ValueError for shapes that do not fit, values that are not finite, or a covariance that is not symmetric.
    """

    def __init__(
        self, mean: ArrayLike | None = None, covariance: ArrayLike | None = None, count: int | None = None
    ) -> None:
        self._count: int | None = 0
        self._mean: Array | None = None
        self._fitted: Fitted | None = None
        if mean is not None and covariance is not None:
            self._mean, self._scatter = _stored(mean, covariance)
            self._count, self._divisor = count, 1.0
            if count is not None and count < 2:
                raise ValueError(f"statistics of {count} samples; at least 2 are needed")
        elif mean is not None or covariance is not None:
            raise ValueError("statistics need a mean and a covariance")

    @classmethod
    def of(cls, features: Features) -> GaussianStatistics:
        """Statistics of features (n, d). Raises ValueError for fewer than 2 samples, or values that are not finite."""
        x = checked(features, "features")
        found = cls()
        found.update(x)
        if len(x) <= x.shape[1]:
            found._fitted = FittedSamples(x)
        return found

    @property
    def count(self) -> int | None:
        """Number of samples; ``None`` where it is not known."""
        return self._count

    @property
    def mean(self) -> Array:
        """(d,)."""
        return self._need_two().copy()

    @property
    def covariance(self) -> Array:
        """(d, d), the sum of products divided by n - 1."""
        self._need_two()
        whole = self._scatter / self._divisor  # its lower triangle is what was gathered
        for first in range(0, len(whole), MIRRORED):
            stop = first + MIRRORED
            corner = np.tril(whole[first:stop, first:stop])
            whole[first:stop, first:stop] = corner + np.tril(corner, -1).T
            whole[first:stop, stop:] = whole[stop:, first:stop].T
        return whole

    @property
    def fitted(self) -> Fitted:
        """The form that the Fréchet distance takes, made once. Raises ValueError for fewer than 2 samples."""
        if self._fitted is None:
            self._fitted = FittedCovariance(self._need_two(), self.covariance, self._count)
        return self._fitted

    def update(self, features: Features) -> None:
        """Add a batch of features (n, d), of one row or more."""
        for block in blocks(checked(features, "features", least=1)):
            x_ND = np.array(block, dtype=np.float64, order="C")
            mean = x_ND.mean(axis=0)
            x_ND -= mean
            self._move(mean, len(x_ND))
            self._scatter = blas.dsyrk(1.0, x_ND.T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1)

    def merge(self, other: GaussianStatistics) -> None:
        """Add what ``other`` gathered; ``other`` stays as it is."""
        if other._count is None:
            raise ValueError("statistics without a count cannot be merged")
        if other._mean is None:
            return
        scatter = other._scatter * other._rescaling()
        self._move(other._mean, other._count)
        self._scatter += scatter

    def _need_two(self) -> Array:
        """The mean. Raises ValueError where it is not that of two samples or more."""
        if self._mean is None or (self._count is not None and self._count < 2):
            raise ValueError(f"statistics of {self._count} samples; at least 2 are needed")
        return self._mean

    def _rescaling(self) -> float:
        """What makes the stored matrix the sum of products: 1 for gathered statistics."""
        assert self._count is not None
        return 1.0 if self._divisor == self._count - 1 else (self._count - 1) / self._divisor

    def _move(self, mean: Array, count: int) -> None:
        """Count ``count`` more samples of mean ``mean``; their own products are left to the caller."""
        if self._count is None:
            raise ValueError("statistics without a count cannot be added to")
        self._fitted = None
        total = self._count + count
        if self._mean is None:
            self._mean, self._scatter = mean, np.zeros((len(mean), len(mean)), order="F")
        else:
            same_width(len(self._mean), len(mean))
            self._scatter *= self._rescaling()
            difference = mean - self._mean
            weight = self._count * count / total
            self._scatter = blas.dsyr(weight, difference, a=self._scatter, lower=1, overwrite_a=1)
            self._mean = self._mean + difference * (count / total)
        self._count, self._divisor = total, float(total - 1)


def _stored(mean: ArrayLike, covariance: ArrayLike) -> tuple[Array, Array]:
    """Copies of both as float64, the covariance by column, checked."""
    first, second = np.array(mean, dtype=np.float64), np.array(covariance, dtype=np.float64, order="F")
    if first.ndim != 1 or second.shape != (len(first), len(first)):
        raise ValueError(
            f"statistics must be a mean (d,) and a covariance (d, d), not {list(first.shape)} and {list(second.shape)}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("statistics have values that are not finite")
    if abs(second - second.T).max() > INDEFINITE * abs(second).max():
        raise ValueError("statistics have a covariance that is not symmetric")
    return first, second


@dataclass
class Fitted(ABC):
    """A Gaussian in the form that the Fréchet distance takes.

    Mean (d,), number of samples if known, trace and Frobenius norm of the covariance, and a bound of its rank.
    """

    mean: Array
    count: int | None
    trace: float
    norm: float
    rank: int

    @property
    @abstractmethod
    def factor(self) -> Array:
        """F (d, r) with covariance = F F^T; r is at most :attr:`rank`."""

    @abstractmethod
    def within(self, other: Fitted) -> Array:
        """F^T covariance F, (r, r), F the factor of ``other``."""


class FittedSamples(Fitted):
    """Fewer samples than features: the centred samples over sqrt(n - 1) are the factor, no covariance is formed."""

    def __init__(self, features: Floats) -> None:
        x_ND = np.array(features, dtype=np.float64)
        mean = x_ND.mean(axis=0)
        x_ND -= mean
        x_ND /= math.sqrt(len(x_ND) - 1)
        self._rows_ND = x_ND
        gram_NN = x_ND @ x_ND.T
        super().__init__(mean, len(x_ND), float(gram_NN.trace()), float(np.linalg.norm(gram_NN)), len(x_ND))

    @property
    def factor(self) -> Array:
        """(d, n)."""
        return self._rows_ND.T

    def within(self, other: Fitted) -> Array:
        """(r, r), as a product with its own transpose."""
        product_NR = self._rows_ND @ other.factor
        return product_NR.T @ product_NR


class FittedCovariance(Fitted):
    """A covariance (d, d). Its factor is Cholesky's where it has full rank, else of its eigenvectors."""

    def __init__(self, mean: Array, covariance: Array, count: int | None) -> None:
        rank = len(mean) if count is None else min(len(mean), count - 1)
        super().__init__(mean, count, float(covariance.trace()), float(np.linalg.norm(covariance)), rank)
        self._covariance = covariance

    @property
    def factor(self) -> Array:
        """(d, r), made once."""
        return self._factored[0]

    @cached_property
    def _factored(self) -> tuple[Array, bool]:
        """The factor, and whether it is Cholesky's: not where rounding may have made its smallest directions."""
        width = len(self.mean)
        lost = max(width, 100) * EPS
        if self.rank == width:
            factor, failed = lapack.dpotrf(self._covariance, lower=1)
            if not failed:
                inverse_condition, _ = lapack.dpocon(factor, np.linalg.norm(self._covariance, 1), uplo="L")
                if inverse_condition > lost:
                    return factor, True
        values, vectors = linalg.eigh(self._covariance, driver="evd", check_finite=False)
        if values[0] < -INDEFINITE * max(values[-1], 0.0):
            raise ValueError(f"statistics have no covariance: eigenvalues from {values[0]:.3g} to {values[-1]:.3g}")
        kept = values > lost * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept]), False

    def within(self, other: Fitted) -> Array:
        """(r, r); at half the products where the factor is triangular."""
        if isinstance(other, FittedCovariance) and other._factored[1]:
            right = blas.dtrmm(1.0, other.factor, self._covariance, side=1, lower=1)
            return blas.dtrmm(1.0, other.factor, right, trans_a=1, lower=1, overwrite_b=1)
        return other.factor.T @ (self._covariance @ other.factor)


def fitted(features: Floats) -> Fitted:
    """Features (n, d) that were checked, in the cheaper of the two forms."""
    samples, width = features.shape
    return FittedSamples(features) if samples <= width else GaussianStatistics.of(features).fitted
