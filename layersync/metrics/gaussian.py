"""The Gaussian fitted to a set of features: gathered in one pass, and factored for the Fréchet distance.

Shape suffixes: N samples, D features, R columns of another's factor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from layersync.metrics.arrays import Features, Floats, blocks, checked, doubled, same_width

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
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
        self._mean: Tensor | None = None
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
        return self.fitted.mean.numpy().copy()

    @property
    def covariance(self) -> Array:
        """(d, d), the sum of products divided by n - 1."""
        self._need_two()
        return (self._scatter / self._divisor).numpy()

    @property
    def fitted(self) -> Fitted:
        """The form that the Fréchet distance takes, made once. Raises ValueError for fewer than 2 samples."""
        if self._fitted is None:
            mean = self._need_two()
            self._fitted = FittedCovariance(mean, self._scatter / self._divisor, self._count)
        return self._fitted

    def update(self, features: Features) -> None:
        """Add a batch of features (n, d), of one row or more."""
        for block in blocks(checked(features, "features", least=1)):
            x_ND = doubled(block)
            mean = x_ND.mean(0)
            x_ND -= mean
            self._move(mean, len(x_ND))
            self._scatter.addmm_(x_ND.T, x_ND)

    def merge(self, other: GaussianStatistics) -> None:
        """Add what ``other`` gathered; ``other`` stays as it is."""
        if other._count is None:
            raise ValueError("statistics without a count cannot be merged")
        if other._mean is None:
            return
        factor = (other._count - 1) / other._divisor if other._divisor != other._count - 1 else 1.0
        scatter = other._scatter.clone() if other is self else other._scatter
        self._move(other._mean, other._count)
        self._scatter.add_(scatter, alpha=factor)

    def _need_two(self) -> Tensor:
        """The mean. Raises ValueError where it is not that of two samples or more."""
        if self._mean is None or (self._count is not None and self._count < 2):
            raise ValueError(f"statistics of {self._count} samples; at least 2 are needed")
        return self._mean

    def _move(self, mean: Tensor, count: int) -> None:
        """Count ``count`` more samples of mean ``mean``; their own scatter is left to the caller."""
        if self._count is None:
            raise ValueError("statistics without a count cannot be added to")
        self._fitted = None
        total = self._count + count
        if self._mean is None:
            self._mean, self._scatter = mean, torch.zeros(len(mean), len(mean), dtype=torch.float64)
        else:
            same_width(len(self._mean), len(mean))
            if self._divisor != self._count - 1:
                self._scatter = self._scatter * ((self._count - 1) / self._divisor)
            difference = mean - self._mean
            self._scatter.addr_(difference, difference, alpha=self._count * count / total)
            self._mean = self._mean + difference * (count / total)
        self._count, self._divisor = total, float(total - 1)


def _stored(mean: ArrayLike, covariance: ArrayLike) -> tuple[Tensor, Tensor]:
    """Both as float64 tensors, checked."""
    first, second = doubled(np.asarray(mean)), doubled(np.asarray(covariance))
    if first.ndim != 1 or second.shape != (len(first), len(first)):
        raise ValueError(
            f"statistics must be a mean (d,) and a covariance (d, d), not {list(first.shape)} and {list(second.shape)}"
        )
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("statistics have values that are not finite")
    if (second - second.T).abs().max() > INDEFINITE * second.abs().max():
        raise ValueError("statistics have a covariance that is not symmetric")
    return first, (second + second.T) / 2


@dataclass
class Fitted(ABC):
    """A Gaussian in the form that the Fréchet distance takes.

    Mean (d,), number of samples if known, trace and Frobenius norm of the covariance, and a bound of its rank.
    """

    mean: Tensor
    count: int | None
    trace: float
    norm: float
    rank: int

    @property
    @abstractmethod
    def factor(self) -> Tensor:
        """F (d, r) with covariance = F F^T; r is at most :attr:`rank`."""

    @abstractmethod
    def within(self, factor: Tensor) -> Tensor:
        """F^T covariance F, (r, r), for the factor of another."""


class FittedSamples(Fitted):
    """Fewer samples than features: the centred samples over sqrt(n - 1) are the factor, no covariance is formed."""

    def __init__(self, features: Floats) -> None:
        x_ND = doubled(features)
        mean = x_ND.mean(0)
        self._rows_ND = x_ND.sub_(mean).div_(math.sqrt(len(x_ND) - 1))
        gram_NN = self._rows_ND @ self._rows_ND.T
        norm = float(torch.linalg.matrix_norm(gram_NN))
        super().__init__(mean, len(x_ND), float(gram_NN.trace()), norm, len(x_ND))

    @property
    def factor(self) -> Tensor:
        """(d, n)."""
        return self._rows_ND.T

    def within(self, factor: Tensor) -> Tensor:
        """(r, r), as a product with its own transpose."""
        product_NR = self._rows_ND @ factor
        return product_NR.T @ product_NR


class FittedCovariance(Fitted):
    """A covariance (d, d). Its factor is Cholesky's where it has full rank, else of its eigenvectors."""

    def __init__(self, mean: Tensor, covariance: Tensor, count: int | None) -> None:
        width = len(mean)
        rank = width if count is None else min(width, count - 1)
        norm = float(torch.linalg.matrix_norm(covariance))
        super().__init__(mean, count, float(covariance.trace()), norm, rank)
        self._covariance = covariance

    @cached_property
    def factor(self) -> Tensor:
        """(d, r), made once."""
        width = len(self.mean)
        if self.rank == width:
            factor, failed = torch.linalg.cholesky_ex(self._covariance)
            # A pivot is what a feature varies given those before it; one lost in rounding means a singular covariance.
            if not failed and bool((factor.diagonal() ** 2 > width * EPS * self._covariance.diagonal()).all()):
                return factor
        values, vectors = torch.linalg.eigh(self._covariance)
        largest = float(values[-1])
        if values[0] < -INDEFINITE * max(largest, 0.0):
            raise ValueError(f"statistics have no covariance: eigenvalues from {float(values[0]):.3g} to {largest:.3g}")
        kept = values > width * EPS * largest
        return vectors[:, kept] * values[kept].sqrt()

    def within(self, factor: Tensor) -> Tensor:
        """(r, r)."""
        return factor.T @ (self._covariance @ factor)


def fitted(features: Floats) -> Fitted:
    """Features (n, d) that were checked, in the cheaper of the two forms."""
    samples, width = features.shape
    return FittedSamples(features) if samples <= width else GaussianStatistics.of(features).fitted
