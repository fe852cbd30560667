"""Scores against numbers that the published code gave for the arrays of :func:`sets`.

Run on numpy 2.4.6, scipy 1.17.1, torch 2.14.1 and scikit-learn 1.9.1, functions as they stand at the commit:

- mseitzer/pytorch-fid b9c1811, ``src/pytorch_fid/fid_score.py``, ``calculate_frechet_distance``
- microsoft/fadtk ec74b1f, ``fadtk/fad.py``, ``calc_frechet_distance``
- YoonjinXD/kadtk 8bda71d, ``kadtk/kad.py``, ``calc_kernel_audio_distance`` in float64 (its median is float32)
- clovaai/generative-evaluation-prdc e320c1d, ``prdc/prdc.py``, ``compute_prdc``
- EricGuo5513/text-to-motion 72df96e, ``utils/metrics.py``
- GuyTevet/motion-diffusion-model d4fd88c, ``eval/eval_humanml.py``, ``get_metric_statistics``
- openai/guided-diffusion 22e0df8, ``evaluations/evaluator.py``, ``compute_inception_score`` given probabilities
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from layersync.metrics import (
    batched_r_precision,
    density_coverage,
    diversity,
    frechet_distance,
    inception_score,
    kernel_audio_distance,
    matching_score,
    multimodality,
    precision_recall,
    r_precision,
    replicate,
)

Array = np.ndarray


def sets() -> tuple[Array, Array]:
    """320 and 288 rows of 12, two Gaussians that overlap in part."""
    random = np.random.RandomState(2024)
    x = random.standard_normal((320, 12)) * np.linspace(0.5, 2, 12) + 0.3
    return x, random.standard_normal((288, 12)) + 0.1


def pairs() -> tuple[Array, Array]:
    x, y = sets()
    return y, y + 0.6 * x[:288]


def test_frechet_distance_of_pytorch_fid_and_fadtk() -> None:
    assert frechet_distance(*sets()) == pytest.approx(4.26147051365589, rel=1e-12)
    assert frechet_distance(*sets()) == pytest.approx(4.261470513655908, rel=1e-12)


def test_kad_of_kadtk_with_the_bandwidth_of_its_code_and_of_its_documentation() -> None:
    generated, reference = sets()
    code = kernel_audio_distance(generated, reference, bandwidth="generated")
    documented = kernel_audio_distance(generated, reference)
    assert code.bandwidth == pytest.approx(6.2810587882995605, rel=1e-6)
    assert documented.bandwidth == pytest.approx(4.799183368682861, rel=1e-6)
    assert code.value == pytest.approx(1.8912550646477344, rel=1e-6)
    assert documented.value == pytest.approx(3.2674689220403397, rel=1e-6)
    assert kernel_audio_distance(generated, reference, bandwidth=4.799183368682861).value == pytest.approx(
        3.2674689220403397, rel=1e-8
    )


@pytest.mark.parametrize(
    ("k", "precision", "recall", "density", "coverage"),
    [
        (5, 0.553125, 0.9166666666666666, 0.37125, 0.7083333333333334),
        (3, 0.459375, 0.8333333333333334, 0.371875, 0.5590277777777778),
    ],
)
def test_precision_recall_density_coverage_of_prdc(
    k: int, precision: float, recall: float, density: float, coverage: float
) -> None:
    generated, real = sets()
    assert precision_recall(generated, real, k) == pytest.approx((precision, recall), rel=1e-12)
    assert density_coverage(generated, real, k) == pytest.approx((density, coverage), rel=1e-12)


def test_r_precision_and_matching_of_text_to_motion() -> None:
    assert r_precision(*pairs()) == pytest.approx([0.5, 0.6493055555555556, 0.7118055555555556])
    assert batched_r_precision(*pairs()) == pytest.approx([0.8229166666666666, 0.9236111111111112, 0.9652777777777778])
    assert matching_score(*pairs()) == pytest.approx(2.7999192967854136, rel=1e-12)


def test_diversity_and_multimodality_of_text_to_motion_on_average_over_draws() -> None:
    """Its draws are not seeded: mean over 400 and 2,000 of them, deviations 0.071 and 0.38."""
    x, _ = sets()
    draws = [diversity(x, seed=seed) for seed in range(400)]
    assert np.mean(draws) == pytest.approx(6.378, abs=0.02) and np.std(draws) == pytest.approx(0.071, rel=0.2)
    draws = [multimodality(x.reshape(10, 32, 12), seed=seed) for seed in range(400)]
    assert np.mean(draws) == pytest.approx(6.201, abs=0.08) and np.std(draws) == pytest.approx(0.38, rel=0.2)


def test_interval_over_replications_of_mdm() -> None:
    found = replicate([1.0, 2.0, 4.0, 7.0])
    assert found.value == 3.5 and found.interval == pytest.approx((3.5 - 2.2454620905283615, 3.5 + 2.2454620905283615))
    several = replicate([[1.0, 2.0], [2.0, 5.0]])
    assert several.value == pytest.approx([1.5, 3.5])
    assert several.interval[1] - several.value == pytest.approx([0.69296465, 2.07889394])


def test_inception_score_of_adm_takes_splits_of_5000_in_order() -> None:
    probabilities = softmax(np.random.RandomState(7).standard_normal((12000, 10)) * 2, axis=1)[:10000]
    found = inception_score(probabilities, 2, shuffle=False)
    assert found.value == pytest.approx(2.6143961230335355, rel=1e-12)
