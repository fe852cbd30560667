"""Solvers on fields whose solutions are known, and every prediction on a Gaussian whose network is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from layersync.core.interpolant import INTERPOLANTS, Interpolant, Linear, Trigonometric, like
from layersync.core.solver import FIXED_STEP, diffusion_weight, solve_ode, solve_sde

PREDICTIONS = ("velocity", "noise", "score", "data")
MEAN, STD = 1.5, 0.4


def growth(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = x (1 - x) (1 + t): logistic growth over a time of 1.5."""
    return x * (1 - x) * (1 + like(t, x))


START = torch.tensor([[0.1], [0.4]], dtype=torch.float64)
EXACT = START * math.exp(1.5) / (1 + START * (math.exp(1.5) - 1))


def final_error(solver: str, steps: int) -> float:
    return float((solve_ode(growth, START, solver=solver, steps=steps) - EXACT).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_order_of_convergence(solver: str, order: int) -> None:
    measured = math.log2(final_error(solver, 40) / final_error(solver, 80))
    assert measured == pytest.approx(order, abs=0.15)


def test_dopri5_keeps_its_tolerance() -> None:
    errors = []
    for rtol in (1e-2, 1e-4, 1e-7):
        found = solve_ode(growth, START, solver="dopri5", steps=1, rtol=rtol, atol=rtol)
        errors.append(float((found - EXACT).abs().max()))
        assert errors[-1] < 10 * rtol
    assert errors[2] < 1e-2 * min(errors[:2])


def test_dopri5_never_asks_beyond_the_end() -> None:
    seen: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return growth(x, t)

    solve_ode(field, START, solver="dopri5", steps=1, time_range=(0.1, 0.9))
    assert min(seen) == pytest.approx(0.1) and max(seen) == pytest.approx(0.9)


@pytest.mark.parametrize(("solver", "each"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_number_of_network_evaluations(solver: str, each: int) -> None:
    seen: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return x

    solve_ode(field, torch.ones(2, 1), solver=solver, steps=7, time_range=(0.1, 0.9))
    assert len(seen) == 7 * each
    assert min(seen) == pytest.approx(0.1) and 0.1 <= max(seen) <= 0.9 + 1e-6
    assert set(FIXED_STEP) == {"euler", "heun", "midpoint", "rk4"}


@pytest.mark.parametrize("solver", ["heun", "midpoint", "rk4"])
def test_nothing_is_asked_at_an_open_end(solver: str) -> None:
    seen: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return x

    found = solve_ode(field, torch.ones(2, 1), solver=solver, steps=4, open_end=True)
    assert max(seen) == pytest.approx(0.75)
    until = solve_ode(field, torch.ones(2, 1), solver=solver, steps=3, time_range=(0.0, 0.75))
    assert torch.allclose(found, until * 1.25)  # an Euler step of the last quarter


def test_ends_are_open_where_the_velocity_diverges() -> None:
    """Where sigma' does, or where the prediction has to be divided by sigma."""
    for name, kind in INTERPOLANTS.items():
        found = {prediction for prediction in PREDICTIONS if kind(prediction).open_end}  # type: ignore[arg-type]
        assert found == (set(PREDICTIONS) if name == "variance-preserving" else {"score", "data"})


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="dopri5, euler"):
        solve_ode(growth, torch.ones(1, 1), solver="leapfrog", steps=1)


def exact_network(path: Interpolant) -> Callable[[Tensor, Tensor], Tensor]:
    """What a perfect network predicts when the data is N(MEAN, STD^2): a conditional mean, from Bayes' rule."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        (alpha, d_alpha), (sigma, d_sigma) = ([like(w, x) for w in pair] for pair in (path.alpha(t), path.sigma(t)))
        residual = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x1, x0 = MEAN + alpha * STD**2 * residual, sigma * residual
        by_name = {"data": x1, "noise": x0, "score": -residual, "velocity": d_alpha * x1 + d_sigma * x0}
        return by_name[path.prediction]

    return predict


def quantiles(count: int = 2001) -> Tensor:
    """Standard normal "samples" without sampling error; a 1-D flow keeps their order."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]


@pytest.mark.parametrize("kind", list(INTERPOLANTS.values()))
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", ["heun", "dopri5"])
def test_each_prediction_samples_a_gaussian_by_ode(kind: type[Interpolant], prediction: str, solver: str) -> None:
    path = kind(prediction)  # type: ignore[arg-type]
    network = exact_network(path)
    found = solve_ode(
        lambda x, t: path.velocity(network(x, t), x, t),
        quantiles(),
        solver=solver,
        steps=200,
        time_range=path.sampling_range(),
        open_end=path.open_end,
        rtol=1e-5,
    )
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(found.std()) == pytest.approx(STD, rel=0.02)
    standardised = (found - found.mean()) / found.std()
    assert float((standardised - quantiles() / quantiles().std()).abs().max()) < 0.02


def normal_increments(seed: int = 0) -> Callable[[int, torch.Size], Tensor]:
    return lambda step, shape: torch.from_numpy(np.random.default_rng([seed, step]).standard_normal(tuple(shape)))


def sde_samples(path: Interpolant, steps: int = 200, **settings: object) -> Tensor:
    start = quantiles(4001)
    return solve_sde(exact_network(path), start, path, normal_increments(), steps=steps, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(INTERPOLANTS.values()))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_each_prediction_samples_a_gaussian_by_sde(kind: type[Interpolant], prediction: str) -> None:
    found = sde_samples(kind(prediction), last_step_size=0.01)  # type: ignore[arg-type]
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(found.std()) == pytest.approx(STD, rel=0.05)


FORMS = ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]


@pytest.mark.parametrize("form", FORMS)
def test_each_diffusion_form_samples_a_gaussian(form: str) -> None:
    found = sde_samples(Linear(), diffusion=form, last_step="none", steps=400)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(found.std()) == pytest.approx(STD, rel=0.05)


def test_diffusion_forms_by_hand() -> None:
    t = torch.tensor([0.25], dtype=torch.float64)
    by_hand = {
        "constant": 2.0,
        "sbdm": 2.0 * (0.75**2 / 0.25 + 0.75),
        "sigma": 1.5,
        "linear": 1.5,
        "decreasing": 0.25 * (2 * math.cos(math.pi / 4) + 1) ** 2,
        "increasing-decreasing": 2 * math.sin(math.pi / 4) ** 2,
    }
    for form in FORMS:
        assert float(diffusion_weight(form, 2.0, Linear(), t)) == pytest.approx(by_hand[form]), form
    with pytest.raises(ValueError, match="unknown"):
        diffusion_weight("quadratic", 1.0, Linear(), t)


@pytest.mark.parametrize("last_step", ["none", "mean", "tweedie", "euler"])
def test_each_last_step_samples_a_gaussian(last_step: str) -> None:
    found = sde_samples(Linear(), last_step=last_step, last_step_size=0.02)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(found.std()) == pytest.approx(STD, rel=0.06)


def test_last_steps_differ_and_tweedie_is_the_posterior_mean() -> None:
    path = Trigonometric("data")
    found = {
        name: sde_samples(path, steps=20, last_step=name, last_step_size=0.2) for name in ("mean", "tweedie", "euler")
    }
    for a, b in (("mean", "tweedie"), ("mean", "euler"), ("tweedie", "euler")):
        assert float((found[a] - found[b]).abs().mean()) > 1e-3
    # the posterior mean at t = 0.8 spreads less than the data, by Bayes' rule
    alpha, sigma = math.sin(0.4 * math.pi), math.cos(0.4 * math.pi)
    spread = STD * math.sqrt(alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2))
    assert float(found["tweedie"].std()) == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("last_step", ["none", "mean"])
def test_sde_takes_as_many_network_evaluations_as_steps(last_step: str) -> None:
    calls = []
    network = exact_network(Linear())

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return network(x, t)

    solve_sde(counted, quantiles(11), Linear(), normal_increments(), steps=9, last_step=last_step)
    assert len(calls) == 9


def test_diffusion_scale_and_increments_matter() -> None:
    a, b = sde_samples(Linear(), steps=20), sde_samples(Linear(), steps=20, diffusion_scale=0.3)
    assert not torch.allclose(a, b)
    start = quantiles(11)
    other = solve_sde(exact_network(Linear()), start, Linear(), normal_increments(1), steps=20)
    same = [solve_sde(exact_network(Linear()), start, Linear(), normal_increments(0), steps=20) for _ in range(2)]
    assert torch.equal(*same) and not torch.equal(other, same[0])


@pytest.mark.parametrize("solver", ["heun", "rk4"])
def test_an_end_where_the_velocity_diverges_is_reached_by_euler(solver: str) -> None:
    """A data prediction that is a little off stays a little off: its error is not divided by 1 - t at the end."""
    path = Linear(prediction="data")
    start, end = path.sampling_range()
    seen: list[float] = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        wrong = 0.1 * torch.sin(50 * t)  # what a network's error looks like: small, and different from call to call
        return path.velocity(torch.full_like(x, 2.0) + wrong[:, None], x, t)

    assert path.open_end
    found = solve_ode(velocity, torch.zeros(1, 1), solver=solver, steps=15, time_range=(start, end), open_end=True)
    assert max(seen) < end - 0.05
    assert abs(float(found) - 2.0) < 0.11
    assert not Linear().open_end
