"""KID and KAD: definitions, torch-fidelity's subsets, unbiasedness, what a bandwidth is taken from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import special_ortho_group
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from layersync.metrics import kernel, kernel_audio_distance, kernel_distance
from layersync.metrics.arrays import BLOCK

Array = np.ndarray
seeds = st.integers(0, 2**32 - 1)


def discrepancy(xx: Array, yy: Array, xy: Array) -> float:
    n, m = xy.shape
    return (xx.sum() - np.trace(xx)) / n / (n - 1) + (yy.sum() - np.trace(yy)) / m / (m - 1) - 2 * xy.mean()


def by_scikit_learn(x: Array, y: Array, kernel_function: Any, **options: float) -> float:
    return discrepancy(*(kernel_function(a, b, **options) for a, b in ((x, x), (y, y), (x, y))))


def sets(seed: int, n: int, m: int, width: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    return random.standard_normal((n, width)), random.standard_normal((m, width)) * 1.2 + 0.3


@given(n=st.integers(2, 30), m=st.integers(2, 30), width=st.integers(1, 12), seed=seeds)
@settings(deadline=None, max_examples=50)
def test_definitions(n: int, m: int, width: int, seed: int) -> None:
    x, y = sets(seed, n, m, width)
    wanted = by_scikit_learn(x, y, polynomial_kernel, degree=3, gamma=1 / width, coef0=1)
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(wanted, rel=1e-9, abs=1e-9) and found.std is None
    distances = np.sort(pdist(y))
    bandwidth = distances[(len(distances) - 1) // 2]
    wanted = 100 * by_scikit_learn(x, y, rbf_kernel, gamma=1 / (2 * bandwidth**2))
    audio = kernel_audio_distance(x, y)
    assert audio.value == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert audio.bandwidth == pytest.approx(bandwidth, rel=1e-12) and float(audio) == audio.value


def test_more_samples_than_a_block() -> None:
    x, y = sets(0, BLOCK + 60, BLOCK + 1, 4)
    wanted = by_scikit_learn(x, y, polynomial_kernel, degree=3, gamma=1 / 4, coef0=1)
    assert kernel_distance(x, y).value == pytest.approx(wanted, rel=1e-9)
    wanted = 100 * by_scikit_learn(x, y, rbf_kernel, gamma=1 / (2 * 1.5**2))
    assert kernel_audio_distance(x, y, bandwidth=1.5).value == pytest.approx(wanted, rel=1e-9)


def test_the_subsets_are_torch_fidelitys() -> None:
    x, y = sets(0, 260, 230, 16)
    wanted = kid_features_to_metric(
        torch.tensor(x), torch.tensor(y), kid_subsets=20, kid_subset_size=100, rng_seed=2020, verbose=False
    )
    found = kernel_distance(x, y, (20, 100), seed=2020)
    assert found.value == pytest.approx(wanted[KEY_METRIC_KID_MEAN], rel=1e-9)
    assert found.std == pytest.approx(wanted[KEY_METRIC_KID_STD], rel=1e-9)
    assert float(found) == found.value


@given(seed=seeds)
@settings(deadline=None, max_examples=25)
def test_invariances(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = sets(seed, 40, 50, 5)
    turn, move = special_ortho_group.rvs(5, random_state=random), random.uniform(-50, 50, 5)
    assert kernel_distance(random.permutation(x) @ turn, y @ turn).value == pytest.approx(kernel_distance(x, y).value)
    assert kernel_distance(x, y).value == pytest.approx(kernel_distance(y, x).value)
    audio = kernel_audio_distance(x, y)
    moved = kernel_audio_distance(random.permutation(7 * x @ turn + move), 7 * y @ turn + move)
    assert moved.value == pytest.approx(audio.value, rel=1e-7) and moved.bandwidth == pytest.approx(7 * audio.bandwidth)


def test_unbiased_of_one_distribution_and_largest_of_sets_that_never_meet() -> None:
    draws = [np.random.default_rng(seed).standard_normal((2, 40, 6)) for seed in range(300)]
    for score in (kernel_distance, kernel_audio_distance):
        found = np.array([float(score(x, y)) for x, y in draws])
        assert abs(found.mean()) < 3 * found.std() / np.sqrt(len(found)) and found.min() < 0 < found.max()
    x, y = draws[0]
    far = kernel_audio_distance(x, y + 1e4)
    near = kernel_audio_distance(y, y + 1e-9)
    assert far.value > 50 > 5 > near.value
    assert [kernel_distance(x, y + shift).value for shift in (0, 1, 2, 4)] == sorted(
        kernel_distance(x, y + shift).value for shift in (0, 1, 2, 4)
    )


def test_the_bandwidth_is_of_the_reference_unless_it_is_said() -> None:
    x, y = sets(0, 60, 50, 4)
    narrow = x * 0.01
    assert kernel_audio_distance(narrow, y).bandwidth == kernel_audio_distance(x, y).bandwidth
    assert kernel_audio_distance(narrow, y, bandwidth="generated").bandwidth == pytest.approx(
        0.01 * kernel_audio_distance(x, y, bandwidth="generated").bandwidth
    )
    given_ = kernel_audio_distance(x, y, bandwidth=kernel_audio_distance(x, y).bandwidth)
    assert given_ == kernel_audio_distance(x, y)
    assert kernel_audio_distance(x, y, scale=1).value == pytest.approx(given_.value / 100)


def test_the_median_of_many_is_that_of_a_seeded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sets(0, 50, 600, 4)
    whole = kernel_audio_distance(x, y).bandwidth
    monkeypatch.setattr(kernel, "MEDIAN_SAMPLES", 300)
    first, again, other = (kernel_audio_distance(x, y, seed=seed).bandwidth for seed in (1, 1, 2))
    assert first == again != other and first != whole
    assert first == pytest.approx(whole, rel=0.05)


def test_seeds_and_float32() -> None:
    x, y = sets(0, 120, 110, 8)
    first, again, other = (kernel_distance(x, y, (5, 50), seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert kernel_distance(x.astype(np.float32), torch.tensor(y).float()).value == pytest.approx(
        kernel_distance(x, y).value, rel=1e-4
    )


def test_what_is_refused() -> None:
    x, y = sets(0, 40, 30, 3)
    with pytest.raises(ValueError, match="10 subsets of 35 cannot be drawn from 40 and 30 samples"):
        kernel_distance(x, y, (10, 35))
    with pytest.raises(ValueError, match="0 subsets"):
        kernel_distance(x, y, (0, 10))
    with pytest.raises(ValueError, match="3 and 2"):
        kernel_distance(x, y[:, :2])
    with pytest.raises(ValueError, match="30 of 30 samples of y have"):
        kernel_distance(x, y * np.nan)
    with pytest.raises(ValueError, match=r"bandwidth is 0.0.*above 0"):
        kernel_audio_distance(x, np.ones((9, 3)))
    with pytest.raises(ValueError, match="'median'; it must be 'reference'"):
        kernel_audio_distance(x, y, bandwidth="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bandwidth is -1.0"):
        kernel_audio_distance(x, y, bandwidth=-1)
