"""Intervals: over replications, and over resampled rows."""

from __future__ import annotations

import numpy as np
import pytest

from layersync.metrics import bootstrap, matching_score, replicate


def test_a_score_is_called_with_seeds_and_summed_up() -> None:
    asked: list[int] = []

    def score(seed: int) -> float:
        asked.append(seed)
        return float(seed**2)

    found = replicate(score, 5)
    assert asked == [0, 1, 2, 3, 4] and found.replications == 5
    half = 1.96 * np.std([0, 1, 4, 9, 16]) / np.sqrt(5)
    assert found.value == float(found) == 6 and found.interval == pytest.approx((6 - half, 6 + half))
    assert replicate([0, 1, 4, 9, 16]) == found
    asked.clear()
    replicate(score)
    assert len(asked) == 20


def test_a_score_of_several_numbers() -> None:
    values = np.random.default_rng(0).random((20, 3))
    found = replicate(lambda seed: values[seed])
    for column in range(3):
        alone = replicate(values[:, column])
        assert found.value[column] == pytest.approx(alone.value)
        assert (found.interval[0][column], found.interval[1][column]) == pytest.approx(alone.interval)


def test_interval_over_replications_holds_the_mean_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(0)
    held = [low <= 3 <= high for low, high in (replicate(random.normal(3, 2, 200)).interval for _ in range(1000))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_bootstrap_of_a_mean_is_its_standard_error() -> None:
    x = np.random.default_rng(0).normal(3, 2, 1000)
    found = bootstrap(lambda rows: float(rows.mean()), x)
    half = 1.96 * x.std() / np.sqrt(1000)
    assert found.value == float(found) == x.mean() and len(found.draws) == 1000
    assert found.interval == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)
    narrower = bootstrap(lambda rows: float(rows.mean()), x, level=0.5).interval
    assert found.interval[0] < narrower[0] < narrower[1] < found.interval[1]


def test_bootstrap_keeps_pairs_together() -> None:
    x = np.random.default_rng(0).standard_normal((50, 4))
    found = bootstrap(matching_score, x, x + 1, resamples=20)
    assert found.draws == pytest.approx(np.full(20, 2.0))


def test_bootstrap_is_seeded() -> None:
    x = np.random.default_rng(0).standard_normal(50)
    first, again, other = (bootstrap(np.mean, x, resamples=50, seed=seed).interval for seed in (1, 1, 2))
    assert first == again != other


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2, not \[1\]"):
        replicate([1.0])
    with pytest.raises(ValueError, match=r"at least 2, not \[1\]"):
        replicate(lambda seed: 1.0, 1)
    with pytest.raises(ValueError, match=r"of one length of at least 2, not of \[3, 4\]"):
        bootstrap(np.mean, np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"not of \[1\]"):
        bootstrap(np.mean, np.zeros(1))
