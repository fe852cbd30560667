"""Statistics gathered in one pass: the same whatever the batches, whoever gathered them, wherever the mean lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layersync.metrics import GaussianStatistics, frechet_distance

Array = np.ndarray


def two_pass(x: Array) -> tuple[Array, Array]:
    return x.astype(np.float64).mean(0), np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False))


def same(found: GaussianStatistics, x: Array, tolerance: float = 1e-12) -> None:
    mean, covariance = two_pass(x)
    assert found.count == len(x)
    assert found.mean == pytest.approx(mean, rel=tolerance, abs=tolerance)
    assert found.covariance == pytest.approx(covariance, rel=tolerance, abs=tolerance * abs(covariance).max())


@given(
    count=st.integers(2, 60),
    width=st.integers(1, 8),
    cuts=st.lists(st.integers(1, 59), max_size=6),
    seed=st.integers(0, 2**32 - 1),
    merged=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_the_split_into_batches_does_not_matter(
    count: int, width: int, cuts: list[int], seed: int, merged: bool
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, width)) * random.uniform(0.1, 10, width) + random.uniform(-5, 5, width)
    found = GaussianStatistics()
    parts = [part for part in np.split(x, sorted(cut for cut in cuts if cut < count)) if len(part)]
    for part in parts:
        if merged:
            other = GaussianStatistics()
            other.update(part)
            found.merge(other)
        else:
            found.update(part)
    same(found, x)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_large_mean_costs_no_digits(dtype: type) -> None:
    x = (np.random.default_rng(0).standard_normal((5000, 6)) + 1e4).astype(dtype)
    found = GaussianStatistics()
    for start in range(0, len(x), 37):
        found.update(x[start : start + 37])
    same(found, x, 1e-10)
    centred = x.astype(np.float64) - 1e4
    assert found.covariance == pytest.approx(two_pass(centred)[1], abs=1e-9)


def test_more_rows_than_are_widened_at_once() -> None:
    x = np.random.default_rng(0).standard_normal((5001, 3)).astype(np.float32)
    same(GaussianStatistics.of(x), x)


@pytest.mark.parametrize(("count", "width"), [(400, 300), (1200, 1100)])
def test_a_wide_covariance_is_whole(count: int, width: int) -> None:
    """One triangle is gathered, and copied to the other side some rows at a time."""
    x = np.random.default_rng(0).standard_normal((count, width)) + np.linspace(-3, 3, width)
    found = GaussianStatistics.of(x).covariance
    np.testing.assert_allclose(found, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)
    assert np.array_equal(found, found.T)


def test_drifting_batches_keep_the_spread_between_them() -> None:
    x = np.random.default_rng(0).standard_normal((400, 3)) + np.repeat(np.arange(40), 10)[:, None] * 100
    found = GaussianStatistics()
    for part in np.split(x, 40):
        found.update(part)
    same(found, x)


def test_merging_leaves_the_other_as_it_is_and_takes_itself() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 30, 4))
    first, second = GaussianStatistics.of(x), GaussianStatistics.of(y)
    first.merge(second)
    same(second, y)
    same(first, np.concatenate([x, y]))
    second.merge(second)
    same(second, np.concatenate([y, y]))
    second.merge(GaussianStatistics())
    same(second, np.concatenate([y, y]))


def test_stored_statistics_are_gone_on_with() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 30, 4))
    stored = GaussianStatistics(*two_pass(x), 30)
    assert np.array_equal(stored.covariance, two_pass(x)[1])
    into = GaussianStatistics.of(y)
    into.merge(stored)
    same(into, np.concatenate([y, x]))
    stored.update(y)
    same(stored, np.concatenate([x, y]))


def test_a_distance_taken_halfway_does_not_stay() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 50, 4))
    found = GaussianStatistics.of(x)
    before = frechet_distance(found, y)
    found.update(y + 3)
    assert frechet_distance(found, y) == pytest.approx(frechet_distance(np.concatenate([x, y + 3]), y), rel=1e-9)
    assert frechet_distance(found, y) != before


def test_what_is_handed_out_is_a_copy() -> None:
    found = GaussianStatistics.of(np.random.default_rng(0).standard_normal((9, 3)))
    found.mean[:] = 7
    found.covariance[:] = 7
    assert (found.mean < 7).all() and (found.covariance < 7).all()


def test_kinds_of_input() -> None:
    x = np.random.default_rng(0).integers(-9, 9, (40, 3))
    wanted = GaussianStatistics.of(x.astype(np.float64))
    for given_ in (x, x.astype(np.float16), x.tolist(), torch.tensor(x), torch.tensor(x, dtype=torch.bfloat16)):
        found = GaussianStatistics.of(given_)
        assert found.covariance.dtype == found.mean.dtype == np.float64
        assert np.array_equal(found.covariance, wanted.covariance) and np.array_equal(found.mean, wanted.mean)
    needs_gradient = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    assert np.array_equal(GaussianStatistics.of(needs_gradient).covariance, wanted.covariance)


def test_what_is_refused() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3))
    broken = x.copy()
    broken[[3, 7], [0, 2]] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 20 samples of features have features that are not finite"):
        GaussianStatistics.of(broken)
    with pytest.raises(ValueError, match="1 samples; at least 2"):
        GaussianStatistics.of(x[:1])
    with pytest.raises(ValueError, match=r"not \[3\]"):
        GaussianStatistics.of(x[0])
    found = GaussianStatistics()
    with pytest.raises(ValueError, match="0 samples"):
        _ = found.mean
    found.update(x[:1])
    with pytest.raises(ValueError, match="1 samples"):
        _ = found.covariance
    with pytest.raises(ValueError, match="3 and 2"):
        found.update(x[:, :2])
    without_count = GaussianStatistics(*two_pass(x))
    with pytest.raises(ValueError, match="without a count"):
        without_count.update(x)
    with pytest.raises(ValueError, match="without a count"):
        found.merge(without_count)


@pytest.mark.parametrize(
    ("mean", "covariance", "count", "message"),
    [
        ([0, 0], np.eye(3), None, r"not \[2\] and \[3, 3\]"),
        ([0, np.nan], np.eye(2), None, "not finite"),
        ([0, 0], [[1, 0.5], [0, 1]], None, "not symmetric"),
        ([0, 0], np.eye(2), 1, "statistics of 1 samples"),
        ([0, 0], None, None, "a mean and a covariance"),
    ],
)
def test_statistics_that_are_none(mean: list, covariance: Array, count: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianStatistics(mean, covariance, count)
