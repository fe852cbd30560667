"""Scores that look at nearest neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors


def nearest_distances(points: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Euclidean distance (n,) of each of ``points`` (n, d) to the nearest of ``reference`` (m, d)."""
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(np.asarray(reference))
    return search.kneighbors(np.asarray(points))[0][:, 0]
