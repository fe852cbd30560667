"""R-precision, matching, cosine: by hand, against sorting, ties, batches of exactly 32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import special_ortho_group

from layersync.metrics import batched_r_precision, cosine_similarity_score, matching_score, r_precision

Array = np.ndarray


def embeddings(count: int, seed: int = 0, noise: float = 0.7) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    motion = random.standard_normal((count, 6))
    return motion + noise * random.standard_normal((count, 6)), motion


def test_by_hand_which_argument_is_asked_and_which_is_ranked() -> None:
    text, motion = np.array([[0.0], [1.0], [10.0]]), np.array([[0.4], [0.1], [2.0]])
    # text 0: motions at 0.4, 0.1, 2; text 1: at 0.6, 0.9, 1; text 2: at 9.6, 9.9, 8
    assert r_precision(text, motion).tolist() == pytest.approx([1 / 3, 1, 1])
    # motion 0: texts at 0.4, 0.6, 9.6; motion 1: at 0.1, 0.9, 9.9; motion 2: at 2, 1, 8
    assert r_precision(motion, text).tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert matching_score(text, motion) == pytest.approx((0.4 + 0.9 + 8) / 3)


@given(count=st.integers(3, 60), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_against_sorting_and_invariances(count: int, seed: int) -> None:
    text, motion = embeddings(count, seed)
    order = np.argsort(cdist(text, motion), axis=1)
    wanted = [(order[:, :k] == np.arange(count)[:, None]).any(1).mean() for k in (1, 2, 3)]
    assert r_precision(text, motion) == pytest.approx(wanted)
    random = np.random.default_rng(seed)
    rows, turn = random.permutation(count), special_ortho_group.rvs(6, random_state=random)
    assert r_precision(4 * text[rows] @ turn + 1, 4 * motion[rows] @ turn + 1) == pytest.approx(wanted)
    assert matching_score(text[rows] @ turn, motion[rows] @ turn) == pytest.approx(matching_score(text, motion))


def test_more_texts_than_are_compared_at_once() -> None:
    text, motion = embeddings(1100, noise=0.3)
    order = np.argsort(cdist(text, motion), axis=1)
    assert r_precision(text, motion, 1)[0] == pytest.approx((order[:, 0] == np.arange(1100)).mean())


def test_limits_and_ties() -> None:
    _, motion = embeddings(64)
    assert r_precision(motion, motion).tolist() == [1, 1, 1]
    assert matching_score(motion, motion) == 0
    collapsed = np.ones_like(motion)
    assert r_precision(collapsed, collapsed).tolist() == [0, 0, 0]
    assert r_precision(motion, collapsed).tolist() == [0, 0, 0]
    twice = np.repeat(motion, 2, axis=0)
    assert r_precision(twice, twice).tolist() == [0, 1, 1]


def test_batches_are_of_exactly_32_and_a_rest_is_left_out() -> None:
    text, motion = embeddings(80)
    wanted = (r_precision(text[:32], motion[:32]) + r_precision(text[32:64], motion[32:64])) / 2
    assert batched_r_precision(text, motion) == pytest.approx(wanted)
    assert batched_r_precision(text[:64], motion[:64]) == pytest.approx(wanted)
    assert batched_r_precision(text, motion, batch_size=80) == pytest.approx(r_precision(text, motion))
    easier = batched_r_precision(text, motion, batch_size=4)
    assert (easier > wanted).all() and (wanted > r_precision(text, motion)).all()
    with pytest.raises(ValueError, match="needs at least 32 pairs, not 31"):
        batched_r_precision(text[:31], motion[:31])


def test_seeds_shuffle_pairs_together() -> None:
    text, motion = embeddings(200)
    first, again, other = (batched_r_precision(text, motion, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert batched_r_precision(motion, motion, seed=1).tolist() == [1, 1, 1]


def test_chance_is_k_in_32() -> None:
    random = np.random.default_rng(0)
    text, motion = random.standard_normal((2, 32 * 200, 4))
    assert batched_r_precision(text, motion) == pytest.approx(np.array([1, 2, 3]) / 32, rel=0.1)


def test_cosine() -> None:
    assert cosine_similarity_score([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [5.0, 0.0]]) == pytest.approx(0.5)
    a, b = embeddings(30)
    wanted = torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b)).mean()
    assert cosine_similarity_score(torch.tensor(a), b) == pytest.approx(float(wanted), rel=1e-12)
    assert cosine_similarity_score(7 * a, b) == pytest.approx(float(wanted))
    assert cosine_similarity_score(a, -a) == pytest.approx(-1)


def test_what_is_refused() -> None:
    text, motion = embeddings(40)
    for score in (r_precision, batched_r_precision, matching_score, cosine_similarity_score):
        with pytest.raises(ValueError, match="are pairs, but there are 40 and 39"):
            score(text, motion[:39])
        with pytest.raises(ValueError, match="6 and 5"):
            score(text, motion[:, :5])
        with pytest.raises(ValueError, match="40 of 40 samples"):
            score(text, motion * np.nan)
    with pytest.raises(ValueError, match="top_k is 41, with 40 pairs"):
        r_precision(text, motion, 41)
    with pytest.raises(ValueError, match="top_k is 33, with batches of 32"):
        batched_r_precision(text, motion, top_k=33)
    with pytest.raises(ValueError, match="1 of 40 pairs have an embedding of zeros"):
        cosine_similarity_score(text, np.where(np.arange(40)[:, None] == 3, 0, motion))
