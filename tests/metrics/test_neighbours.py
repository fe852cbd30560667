"""Precision, recall, density, coverage: exact answers on whole numbers, which argument is which, torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import special_ortho_group
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from layersync.metrics import density_coverage, nearest_distances, precision_recall

Array = np.ndarray
seeds = st.integers(0, 2**32 - 1)


def squares(x: Array, y: Array) -> Array:
    """Squared distances of whole numbers, without any rounding."""
    a, b = x.astype(np.int64), y.astype(np.int64)
    return ((a[:, None] - b[None]) ** 2).sum(2)


def radii(x: Array, k: int) -> Array:
    distances = squares(x, x)
    np.fill_diagonal(distances, np.iinfo(np.int64).max)
    return np.sort(distances, axis=1)[:, k - 1]


def by_definition(generated: Array, real: Array, k: int) -> tuple[float, float]:
    between = squares(generated, real)
    precision = (between <= radii(real, k)[None]).any(1).mean()
    return precision, (between <= radii(generated, k)[:, None]).any(0).mean()


def density_by_definition(generated: Array, real: Array, k: int) -> tuple[float, float]:
    inside = squares(generated, real) < radii(real, k)[None]
    return inside.sum() / (k * len(generated)), inside.any(0).mean()


@given(
    n=st.integers(4, 40),
    m=st.integers(4, 40),
    width=st.integers(1, 6),
    k=st.integers(1, 3),
    largest=st.sampled_from([1, 3, 30, 2000]),
    offset=st.sampled_from([0, 10_000, -3_000_000]),
    seed=seeds,
)
@settings(deadline=None, max_examples=200)
def test_whole_numbers_with_ties_copies_and_a_large_mean(
    n: int, m: int, width: int, k: int, largest: int, offset: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.integers(0, largest + 1, (count, width)) + offset for count in (n, m))
    x[: n // 3] = y[0]  # copies of a real sample, and of each other
    for dtype in (np.float32, np.float64):
        assert precision_recall(x.astype(dtype), y.astype(dtype), k) == pytest.approx(by_definition(x, y, k))
        found = density_coverage(x.astype(dtype), y.astype(dtype), k)
        assert found == pytest.approx(density_by_definition(x, y, k))


@pytest.mark.parametrize("shift", [0, 4_000_000])
def test_clusters_far_apart_beside_their_spread(shift: int) -> None:
    """Distances within a cluster are below what float32 keeps of its squared distance from the centre."""
    random = np.random.default_rng(0)
    x, y = (random.integers(-30, 30, (300, 8)) for _ in range(2))
    for points in (x, y):
        points[:150] += shift
    y[-1] += 8_000_000
    assert precision_recall(x, y) == pytest.approx(by_definition(x, y, 3))
    assert density_coverage(x, y) == pytest.approx(density_by_definition(x, y, 5))


def test_several_blocks_and_wide_features() -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(-40, 40, (1100, 40)), random.integers(-42, 42, (700, 40))
    assert precision_recall(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(by_definition(x, y, 3))
    assert density_coverage(x, y) == pytest.approx(density_by_definition(x, y, 5))


def test_which_argument_is_real() -> None:
    """A collapsed generator: all that it makes is real, and it makes little of what is."""
    random = np.random.default_rng(0)
    wide, collapsed = random.standard_normal((500, 4)), random.standard_normal((500, 4)) * 0.1
    precision, recall = precision_recall(generated=collapsed, real=wide)
    assert precision > 0.95 and recall < 0.05
    precision, recall = precision_recall(generated=wide, real=collapsed)
    assert precision < 0.05 and recall > 0.95
    assert precision_recall(collapsed, wide) == precision_recall(generated=collapsed, real=wide)
    # A collapsed generator that sits where real samples are dense has a high density and covers little.
    density, coverage = density_coverage(generated=collapsed, real=wide)
    assert density > 1.2 and coverage < 0.3
    density, coverage = density_coverage(generated=wide, real=collapsed)
    assert density < 0.1
    # One stray generated sample makes a large ball, which fools recall; coverage looks at balls of real ones.
    stray = np.vstack([collapsed, np.full((1, 4), 50.0)])
    assert precision_recall(generated=stray, real=wide).recall > 0.3
    assert density_coverage(generated=stray, real=wide).coverage == pytest.approx(
        density_coverage(generated=collapsed, real=wide).coverage
    )


@pytest.mark.parametrize("width", [3, 64])
def test_torch_fidelity_and_scikit_learn(width: int) -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((600, width)), random.standard_normal((550, width)) * 1.1 + 0.1
    wanted = prc_features_to_metric(torch.tensor(x), torch.tensor(y), verbose=False)
    found = precision_recall(x, y)
    assert found == pytest.approx((wanted[KEY_METRIC_PRECISION], wanted[KEY_METRIC_RECALL]), abs=1e-6)
    assert 0 < found.precision < 1 and 0 < found.recall < 1
    balls = NearestNeighbors(n_neighbors=5).fit(y)
    kth = balls.kneighbors()[0][:, -1]
    inside = cdist(x, y) < kth
    assert density_coverage(x, y) == pytest.approx((inside.sum() / 5 / 600, inside.any(0).mean()))


@given(seed=seeds)
@settings(deadline=None, max_examples=25)
def test_invariances(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((60, 4)), random.standard_normal((70, 4)) * 1.5
    turn, move = special_ortho_group.rvs(4, random_state=random), random.uniform(-100, 100, 4)
    for score in (precision_recall, density_coverage):
        moved = score(random.permutation(5 * x @ turn + move), random.permutation(5 * y @ turn + move))
        assert moved == pytest.approx(score(x, y))


def test_limits() -> None:
    x = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
    assert precision_recall(x, x) == (1, 1)
    assert density_coverage(x, x) == (pytest.approx(1), 1)
    assert precision_recall(x, x + 1000) == (0, 0)
    assert density_coverage(x, x + 1000) == (0, 0)
    same = np.full((50, 5), 0.1, np.float32)
    assert precision_recall(same, same) == (1, 1)
    assert precision_recall(same, same + 1) == (0, 0)
    assert density_coverage(same, same) == (0, 0)  # open balls of radius 0


def test_nearest_distances() -> None:
    found = nearest_distances([[0.0, 0.0], [3.0, 3.0]], [[0.0, 1.0], [3.0, 7.0]])
    assert found == pytest.approx([1.0, np.sqrt(13)])
    x = (np.random.default_rng(0).standard_normal((200, 30)) + 1e4).astype(np.float32)
    assert (nearest_distances(x[::-1], x) == 0).all()
    y = x + np.float32(0.5)
    wanted = cdist(x.astype(np.float64), y.astype(np.float64)).min(1)
    assert nearest_distances(torch.tensor(x), y) == pytest.approx(wanted, rel=1e-9)


def test_what_is_refused() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 5, 3))
    with pytest.raises(ValueError, match="the 5-th neighbour of 5 samples of generated"):
        precision_recall(x, np.vstack([y, y + 1]), k=5)
    with pytest.raises(ValueError, match="the 5-th neighbour of 5 samples of real"):
        density_coverage(x, y)
    with pytest.raises(ValueError, match="the 0-th neighbour"):
        precision_recall(x, y, k=0)
    with pytest.raises(ValueError, match="1 of 5 samples of real have features that are not finite"):
        precision_recall(x, np.where(np.arange(15).reshape(5, 3) == 4, np.inf, y))
    with pytest.raises(ValueError, match="3 and 2"):
        nearest_distances(x, y[:, :2])
