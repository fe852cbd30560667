"""Scores that look at nearest neighbours: improved precision and recall, density and coverage.

Distances are taken block by block from matrix products, in float32 where that decides and in float64 where it does not:
|x|^2 + |y|^2 - 2 x.y loses the digits of a distance that is small beside |x|, so a product is trusted only outside of
its own rounding error. The answers are those of float64, at the cost of float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layersync.metrics.arrays import Features, Floats, checked_pair

ROWS = 512
"""Rows of a block of distances; a block is as wide as the other set."""
SPARE = 3
"""Neighbours looked at beyond the k asked for, in case rounding changed their order."""
SAFETY = 8.0
"""Rounding error taken for a dot product of d terms, in units of sqrt(d) times the type's epsilon."""


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    """Share of generated samples among the real ones: fidelity."""
    recall: float
    """Share of real samples among the generated ones: variety."""


class DensityCoverage(NamedTuple):
    """Density may exceed 1; coverage lies in [0, 1]."""

    density: float
    coverage: float


def precision_recall(generated: Features, real: Features, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of features (n, d) and (m, d) (Kynkäänniemi et al., arXiv 1904.06991).

    A sample is among others where it lies in the closed ball of one of them, whose radius is the distance to its k-th
    nearest neighbour in its own set, itself not counted. Published: k = 3, 10,000 real and 50,000 generated samples;
    the scores depend on both numbers.

    Raises ValueError for a ``k`` that is not below both numbers of samples.
    """
    x, y = _clouds(generated, real)
    radii_x, radii_y = x.squared_radii(k, "generated"), y.squared_radii(k, "real")
    slack_x, slack_y = _slack(x, radii_x, y, radii_y)
    precision = _inside(x, slack_x, y, radii_y).double().mean()
    recall = _inside(y, slack_y, x, radii_x).double().mean()
    return PrecisionRecall(float(precision), float(recall))


def density_coverage(generated: Features, real: Features, k: int = 5) -> DensityCoverage:
    """Density and coverage of generated features (n, d) against real ones (m, d) (Naeem et al., arXiv 2002.09797).

    Density: how many balls of real samples a generated one lies in, over k, on average. Coverage: share of real samples
    with a generated one in their ball. Balls are open and their radius is the distance to the k-th nearest real
    neighbour, as in the authors' code; distances that differ by rounding only count as equal.

    Raises ValueError for a ``k`` that is not below the number of real samples.
    """
    x, y = _clouds(generated, real)
    radii = y.squared_radii(k, "real")
    counts = torch.zeros(len(y), dtype=torch.int64)
    for rows in torch.arange(len(y)).split(ROWS):
        centres = y.exact(rows)
        for others in torch.arange(len(x)).split(ROWS):
            squares = _squares(centres, x.exact(others), 1 + x.double_error)
            counts[rows] += (squares < radii[rows, None]).sum(1)
    return DensityCoverage(float(counts.sum()) / (k * len(x)), float((counts > 0).double().mean()))


def nearest_distances(points: Features, reference: Features) -> NDArray[np.float64]:
    """Euclidean distance (n,) of each of ``points`` (n, d) to the nearest of ``reference`` (m, d); 0 for copies."""
    from sklearn.neighbors import NearestNeighbors  # which takes as long to import as torch does

    x, y = checked_pair(points, reference, ("points", "reference"), least=1)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(y)
    nearest = search.kneighbors(x, return_distance=False)[:, 0]
    return np.linalg.norm(x.astype(np.float64) - y[nearest], axis=1)


class _Cloud:
    """A set of samples about a centre: all of it in float32, parts of it in float64 on demand."""

    def __init__(self, features: Floats, centre: NDArray[np.float64]) -> None:
        self._features, self._centre = features, centre
        self.single = torch.empty(features.shape, dtype=torch.float32)
        self.squares = torch.empty(len(features), dtype=torch.float64)
        for rows in torch.arange(len(features)).split(ROWS):
            exact = self.exact(rows)
            self.single[rows] = exact.float()
            self.squares[rows] = (exact * exact).sum(1)
        growth = SAFETY * features.shape[1] ** 0.5
        self.single_error = growth * float(np.finfo(np.float32).eps)
        self.double_error = growth * float(np.finfo(np.float64).eps)

    def __len__(self) -> int:
        return len(self._features)

    def exact(self, rows: Tensor) -> Tensor:
        """The samples of these numbers, (rows, d) float64."""
        return torch.from_numpy(self._features[rows.numpy()] - self._centre)

    def squared_radii(self, k: int, name: str) -> Tensor:
        """(n,) squared distance of each sample to its k-th nearest neighbour, float64."""
        if not 1 <= k < len(self):
            raise ValueError(f"the {k}-th neighbour of {len(self)} samples of {name} is asked for")
        bounds, nearest = self._candidates(min(k + SPARE, len(self) - 1))
        found = torch.empty(len(self), dtype=torch.float64)
        unsure = []
        for rows in torch.arange(len(self)).split(ROWS):
            found[rows], sure = self._kth(rows, bounds[rows].double(), nearest[rows], k)
            unsure.append(rows[~sure])
        parts = torch.arange(len(self)).split(ROWS)
        for rows in torch.cat(unsure).split(ROWS):
            exact = self.exact(rows)
            lower = torch.cat([_squares(exact, self.exact(part), 1 - self.double_error) for part in parts], dim=1)
            lower[torch.arange(len(rows)), rows] = torch.inf
            found[rows], _ = self._kth(rows, *lower.topk(nearest.shape[1], dim=1, largest=False), k)
        return found

    def _candidates(self, count: int) -> tuple[Tensor, Tensor]:
        """(n, count) smallest lower bounds of squared distances to other samples, ascending, and whose they are.

        A block of products serves its rows and its columns, so that each is made once.
        """
        bounds = torch.full((len(self), count), torch.inf)
        nearest = torch.zeros((len(self), count), dtype=torch.int64)

        def keep(rows: slice, lower: Tensor, start: int) -> None:
            """Add samples from ``start`` on, by their bounds (rows, samples)."""
            found = lower.topk(min(count, lower.shape[1]), dim=1, largest=False)
            values = torch.cat([bounds[rows], found.values], dim=1)
            numbers = torch.cat([nearest[rows], found.indices + start], dim=1)
            bounds[rows], kept = values.topk(count, dim=1, largest=False)
            nearest[rows] = numbers.gather(1, kept)

        squares = self.squares.float() * (1 - self.single_error)
        for start in range(0, len(self), ROWS):
            end = min(start + ROWS, len(self))
            part, later = self.single[start:end], self.single[start:]
            lower = torch.addmm(squares[start:], part, later.T, alpha=-2).add_(squares[start:end, None])
            lower.fill_diagonal_(torch.inf)
            keep(slice(start, end), lower, start)
            keep(slice(end, None), lower[:, end - start :].T.contiguous(), start)
        return bounds, nearest

    def _kth(self, rows: Tensor, bounds: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k-th smallest squared distance of ``rows`` to their candidates (rows, count), taken by difference.

        Also whether no sample beyond the candidates can be nearer, by the largest of their lower bounds.
        """
        exact = self.exact(rows)
        distances = torch.stack([(exact - self.exact(column)).square_().sum(1) for column in candidates.T], dim=1)
        kth = distances.kthvalue(k, dim=1).values
        return kth, (kth <= bounds[:, -1]) | (candidates.shape[1] == len(self) - 1)


def _clouds(generated: Features, real: Features) -> tuple[_Cloud, _Cloud]:
    x, y = checked_pair(generated, real, ("generated", "real"))
    centre = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2
    return _Cloud(x, centre), _Cloud(y, centre)


def _squares(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Squared distances (n, m) with |x|^2 + |y|^2 weighted: a bound of them from below or above."""
    x_squares, y_squares = (x * x).sum(1) * weight, (y * y).sum(1) * weight
    return torch.addmm(y_squares, x, y.T, alpha=-2).add_(x_squares[:, None])


def _slack(x: _Cloud, radii_x: Tensor, y: _Cloud, radii_y: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample of either set, the smallest of squared distance less squared radius, over the other's balls."""
    offset_x, offset_y = (x.squares - radii_x).float(), (y.squares - radii_y).float()
    slack_x, slack_y = torch.empty(len(x)), torch.full((len(y),), torch.inf)
    products = torch.empty(min(ROWS, len(x)), len(y))
    shifted = torch.empty_like(products)
    for rows in torch.arange(len(x)).split(ROWS):
        part, moved = products[: len(rows)], shifted[: len(rows)]
        torch.mm(x.single[rows] * -2, y.single.T, out=part)
        slack_x[rows] = torch.add(part, offset_y, out=moved).amin(1)
        slack_y = torch.minimum(slack_y, torch.add(part, offset_x[rows, None], out=moved).amin(0))
    return slack_x + x.squares, slack_y + y.squares


def _inside(points: _Cloud, slack: Tensor, balls: _Cloud, radii: Tensor) -> Tensor:
    """(n,) whether each point lies in a closed ball: by its slack, or in float64 where that may be rounding."""
    error = points.single_error * (points.squares + balls.squares.max())
    inside = slack <= -error
    for rows in (slack.abs() < error).nonzero().flatten().split(ROWS):
        exact = points.exact(rows)
        for others in torch.arange(len(balls)).split(ROWS):
            squares = _squares(exact, balls.exact(others), 1 - points.double_error)
            inside[rows] |= (squares <= radii[others]).any(1)
    return inside
