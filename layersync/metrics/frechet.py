"""The Fréchet distance between Gaussians fitted to two sets of features (Heusel et al., arXiv 1706.08500)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def gaussian(features: ArrayLike) -> tuple[Array, Array]:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), float64.

    Raises ValueError for fewer than 2 samples, another shape, or values that are not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be (samples, features) with at least 2 samples, not {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} samples have features not finite")
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of features (n, d) and (m, d).

    The trace of the root comes from one symmetric eigenvalue problem, so that it is never imaginary: with
    C_x = A A^T, the eigenvalues of C_x C_y are those of A^T C_y A. Never negative beyond rounding.
    """
    return frechet_between(*gaussian(x), *gaussian(y))


def frechet_between(mean_x: Array, covariance_x: Array, mean_y: Array, covariance_y: Array) -> float:
    """The same from means (d,) and covariances (d, d)."""
    if mean_x.shape != mean_y.shape:
        raise ValueError(f"features differ in width: {mean_x.size} and {mean_y.size}")
    values, vectors = np.linalg.eigh(covariance_x)
    factor = vectors * np.sqrt(np.clip(values, 0, None))
    product = np.linalg.eigvalsh(factor.T @ covariance_y @ factor)
    root = np.sqrt(np.clip(product, 0, None)).sum()
    difference = mean_x - mean_y
    return float(difference @ difference + np.trace(covariance_x) + np.trace(covariance_y) - 2 * root)
