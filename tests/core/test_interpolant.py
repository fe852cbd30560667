"""Paths, targets, conversions among predictions, training times; in float64 throughout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from layersync.core.interpolant import (
    INTERPOLANTS,
    Interpolant,
    Linear,
    Trigonometric,
    VariancePreserving,
    training_times,
)

PREDICTIONS = ("velocity", "noise", "score", "data")
KINDS = list(INTERPOLANTS.values())


def points(batch: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x1, x0 = (torch.randn(batch, 2, 3, generator=random, dtype=torch.float64) for _ in range(2))
    return x1, x0, torch.linspace(0.02, 0.98, batch, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_data_noise_velocity_and_score(kind: type[Interpolant], prediction: str) -> None:
    x1, x0, t = points()
    path = kind(prediction)  # type: ignore[arg-type]
    x_t, target = path.sample(x1, x0, t)
    found_x1, found_x0 = path.endpoints(target, x_t, t)
    assert torch.allclose(found_x1, x1, atol=1e-9)
    assert torch.allclose(found_x0, x0, atol=1e-9)
    assert torch.allclose(path.velocity(target, x_t, t), kind("velocity").sample(x1, x0, t)[1], atol=1e-9)
    assert torch.allclose(path.score(target, x_t, t), kind("score").sample(x1, x0, t)[1], atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_what_their_names_say(kind: type[Interpolant]) -> None:
    x1, x0, t = points()
    targets = {name: kind(name).sample(x1, x0, t)[1] for name in PREDICTIONS}  # type: ignore[arg-type]
    sigma = kind().sigma(t)[0][:, None, None]
    assert torch.equal(targets["noise"], x0)
    assert torch.equal(targets["data"], x1)
    assert torch.allclose(targets["score"], -x0 / sigma, atol=1e-12)
    times = t.clone().requires_grad_()
    x_t, _ = kind().sample(x1, x0, times)
    cells = x_t.flatten(1).unbind(1)
    slope = torch.stack([torch.autograd.grad(cell.sum(), times, retain_graph=True)[0] for cell in cells], 1)
    assert torch.allclose(targets["velocity"].flatten(1), slope, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_noise_and_data(kind: type[Interpolant]) -> None:
    x1, x0, _ = points(4)
    start = kind("data").sample(x1, x0, torch.zeros(4, dtype=torch.float64))[0]
    end = kind("data").sample(x1, x0, torch.ones(4, dtype=torch.float64))[0]
    assert torch.allclose(end, x1, atol=1e-12)
    assert torch.allclose(start, x0, atol=0.03 if kind is VariancePreserving else 1e-12)


def test_trigonometric_is_sits_gvp() -> None:
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    path = Trigonometric()
    (alpha, d_alpha), (sigma, d_sigma) = path.alpha(t), path.sigma(t)
    assert torch.allclose(alpha, torch.sin(t * math.pi / 2)) and torch.allclose(sigma, torch.cos(t * math.pi / 2))
    assert torch.allclose(d_alpha, math.pi / 2 * torch.cos(t * math.pi / 2))
    assert torch.allclose(d_sigma, -math.pi / 2 * torch.sin(t * math.pi / 2))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t))


def test_variance_preserving_is_the_integral_of_beta() -> None:
    for t in (0.0, 0.1, 0.5, 0.9, 0.99):
        exponent, _ = integrate.quad(lambda s: 0.1 + s * (20 - 0.1), 0, 1 - t)
        alpha = math.exp(-0.5 * exponent)
        at = torch.tensor([t], dtype=torch.float64)
        path = VariancePreserving()
        assert float(path.alpha(at)[0]) == pytest.approx(alpha, rel=1e-9)
        assert float(path.sigma(at)[0]) == pytest.approx(math.sqrt(1 - alpha**2), rel=1e-9)
        # d alpha / dt = alpha beta / 2 and, with unit variance, sigma sigma' = -alpha alpha'
        beta = 0.1 + (1 - t) * 19.9
        assert float(path.alpha(at)[1]) == pytest.approx(0.5 * beta * alpha, rel=1e-9)
        assert float(path.sigma(at)[1]) == pytest.approx(-0.5 * beta * alpha**2 / math.sqrt(1 - alpha**2), rel=1e-9)


def test_linear_velocity_is_data_minus_noise() -> None:
    x1, x0, t = points()
    assert torch.equal(Linear().sample(x1, x0, t)[1], x1 - x0)


def test_score_loss_is_weighted_to_the_noise_error() -> None:
    x1, x0, t = points()
    score, noise = Linear("score"), Linear("noise")
    guess = torch.zeros_like(x0)
    weighted = ((score.sample(x1, x0, t)[1] - guess) ** 2).flatten(1).mean(1) * score.loss_weight(t)
    assert torch.allclose(weighted, ((noise.sample(x1, x0, t)[1] - guess) ** 2).flatten(1).mean(1))
    assert torch.equal(noise.loss_weight(t), torch.ones_like(t))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ranges_keep_clear_of_where_something_diverges(kind: type[Interpolant], prediction: str) -> None:
    path = kind(prediction)  # type: ignore[arg-type]
    x1, x0, _ = points(2)
    for end in path.training_range():
        target = path.sample(x1.float(), x0.float(), torch.full((2,), end))[1]
        assert torch.isfinite(target).all(), end
    low, high = path.sampling_range()
    assert 0 <= low < 0.01 and 0.99 < high <= 1
    for end in (low, high):
        t = torch.full((2,), end, dtype=torch.float64)
        x_t, target = path.sample(x1, x0, t)
        assert torch.isfinite(path.velocity(target, x_t, t)).all(), end


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="there are: velocity, noise, score, data"):
        Linear("v")  # type: ignore[arg-type]


def midpoints(count: int = 20_000) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_uniform_times_are_left_alone() -> None:
    assert torch.equal(training_times(midpoints(), "uniform", mean=0, std=1, shift=1), midpoints())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.5), (1.0, 2.0)])
def test_logit_normal_times_against_scipy(mean: float, std: float) -> None:
    t = training_times(midpoints(), "logit-normal", mean=mean, std=std, shift=1).numpy()
    logit = np.log(t / (1 - t))
    assert stats.kstest(logit, stats.norm(mean, std).cdf).statistic < 1e-3


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_is_sd3s(shift: float) -> None:
    t = training_times(midpoints(), "uniform", mean=0, std=1, shift=shift)
    level = 1 - midpoints()  # SD3 counts noise upwards
    assert torch.allclose(1 - t, shift * level / (1 + (shift - 1) * level), atol=1e-12)
    assert (float(t.mean()) < 0.5) == (shift > 1)
