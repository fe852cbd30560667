"""The Inception score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from layersync.metrics import inception_score


@given(n=st.integers(10, 200), classes=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), shuffle=st.booleans())
@settings(deadline=None, max_examples=50)
def test_torch_fidelity(n: int, classes: int, seed: int, shuffle: bool) -> None:
    logits = np.random.default_rng(seed).standard_normal((n, classes)) * 3
    wanted = isc_features_to_metric(torch.tensor(logits), 10, shuffle, 2020)
    found = inception_score(softmax(logits, axis=1), shuffle=shuffle, seed=2020)
    assert found.value == pytest.approx(wanted[KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert found.std == pytest.approx(wanted[KEY_METRIC_ISC_STD], rel=1e-6, abs=1e-9)
    assert 1 - 1e-12 <= found.value <= classes + 1e-9


def test_limits_sure_of_every_class_and_of_one() -> None:
    every = np.eye(10)[np.arange(1000) % 10]
    assert inception_score(every, shuffle=False).value == pytest.approx(10)
    assert inception_score(every[:1].repeat(100, 0)).value == pytest.approx(1)
    assert inception_score(np.full((100, 10), 0.1)).value == pytest.approx(1)


def test_splits_in_order_of_class_see_one_class_each_unless_shuffled() -> None:
    in_order = np.eye(10)[np.arange(1000) // 100]
    assert inception_score(in_order, 10, shuffle=False).value == pytest.approx(1)
    assert inception_score(in_order, 10).value > 9
    assert inception_score(in_order, 1).value == pytest.approx(10)


def test_seeds_and_float32() -> None:
    p = softmax(np.random.default_rng(0).standard_normal((500, 10)) * 3, axis=1)
    first, again, other = (inception_score(p, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert inception_score(torch.tensor(p).float(), seed=1).value == pytest.approx(first.value, rel=1e-6)


def test_half_precision_is_near_enough_to_a_sum_of_1() -> None:
    p = softmax(np.random.default_rng(0).standard_normal((200, 1000)) * 3, axis=1)
    half = p.astype(np.float16)
    assert abs(half.astype(np.float64).sum(axis=1) - 1).max() > 1e-5
    assert inception_score(half).value == pytest.approx(inception_score(p).value, rel=1e-2)


@pytest.mark.parametrize(
    ("probabilities", "splits", "message"),
    [
        (np.concatenate([np.full((19, 2), 0.5), [[0.5, 0.51]]]), 10, "do not sum to 1 in 1 of 20 samples"),
        (np.full((20, 4), 0.5), 10, "do not sum to 1 in 20 of 20 samples; are they logits"),
        (np.array([[1.5, -0.5]] * 20), 10, "negative in 20 of 20"),
        (np.full((5, 2), 0.5), 10, "5 samples cannot be divided into 10"),
        (np.full((20, 2), np.nan), 10, "20 of 20 samples of probabilities"),
    ],
)
def test_what_is_refused(probabilities: np.ndarray, splits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inception_score(probabilities, splits)
