"""Diversity and multimodality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layersync.metrics import diversity, multimodality


def test_samples_that_are_all_as_far_apart() -> None:
    """Different rows of an identity are sqrt 2 apart; only a sample that meets itself lowers the mean."""
    x = np.eye(1000)
    met = 1 - diversity(x) / np.sqrt(2)
    assert 0 <= met < 0.02 and met * 300 == pytest.approx(round(met * 300))
    assert np.mean([diversity(x, seed=seed) for seed in range(200)]) == pytest.approx(np.sqrt(2) * 0.999, rel=2e-4)


def test_both_draws_are_without_replacement() -> None:
    """301 samples, 300 of them in each draw: the mean over both draws is that of nearly all pairs of them."""
    x = np.zeros((301, 1))
    x[0] = 301.0
    for seed in range(20):
        # The one far sample is in each draw at most once, so that at most two distances are not 0.
        assert diversity(x, seed=seed) <= 2 * 301 / 300


def test_scale_translation_and_collapse() -> None:
    x = np.random.default_rng(0).standard_normal((400, 8))
    assert diversity(3 * x + 7) == pytest.approx(3 * diversity(x))
    assert diversity(np.ones((400, 8))) == 0
    assert diversity(torch.tensor(x).float()) == pytest.approx(diversity(x), rel=1e-6)
    gaussian = [diversity(np.random.default_rng(seed).standard_normal((4000, 2)), seed=seed) for seed in range(60)]
    assert np.mean(gaussian) == pytest.approx(np.sqrt(np.pi), rel=0.02)  # distance of two points of a standard normal


def test_multimodality_is_within_a_text() -> None:
    random = np.random.default_rng(0)
    texts = random.standard_normal((20, 1, 5)) * 100
    assert multimodality(np.repeat(texts, 30, axis=1)) == 0
    within = random.standard_normal((20, 30, 5))
    assert multimodality(texts + within) == pytest.approx(multimodality(within))
    assert multimodality(within) < multimodality(2 * within)
    one_text = within[:1]
    assert multimodality(one_text, pairs=10, seed=3) == pytest.approx(diversity(one_text[0], pairs=10, seed=3))


def test_seeds() -> None:
    x = np.random.default_rng(0).standard_normal((400, 8))
    assert diversity(x, seed=1) == diversity(x, seed=1) != diversity(x, seed=2)
    repeats = x.reshape(10, 40, 8)
    assert multimodality(repeats, seed=1) == multimodality(repeats, seed=1) != multimodality(repeats, seed=2)


def test_what_is_refused() -> None:
    x = np.random.default_rng(0).standard_normal((300, 8))
    with pytest.raises(ValueError, match="300 pairs need more than 300 samples, not 300"):
        diversity(x)
    with pytest.raises(ValueError, match="10 pairs need more than 10 repeats of each text, not 10"):
        multimodality(x.reshape(30, 10, 8))
    with pytest.raises(ValueError, match=r"3 axes, not \[300, 8\]"):
        multimodality(x)
    with pytest.raises(ValueError, match="1 of 300 samples"):
        diversity(np.where(np.arange(300)[:, None] == 5, np.nan, x), pairs=10)
