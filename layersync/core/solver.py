"""Solvers: from noise at t = 0 to data at t = 1 along a velocity field.

ODE: dx = v(x, t) dt by euler, heun, midpoint, rk4 on equal intervals, or adaptive dopri5 (torchdiffeq). SDE:
dx = (v + w(t) s(x, t)) dt + sqrt(2 w(t)) dW by Euler-Maruyama, where s is the score and w one of SiT's diffusion
forms (arXiv 2401.08740, section 2.3 and table 4; the last step as in its code). DDPM's separate steps are sampled
ancestrally, all of them or evenly chosen ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layersync.core.interpolant import DdpmCosine, Interpolant, like, step_time

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (batch, ...), t (batch,)) -> dx/dt."""
SDE_SOLVERS = ("euler-maruyama",)
ANCESTRAL = "ddpm"


def _times(x: Tensor, t: float) -> Tensor:
    return torch.full((len(x),), t, dtype=x.dtype, device=x.device)


def _euler(f: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    return x + dt * f(x, _times(x, t))


def _heun(f: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    first = f(x, _times(x, t))
    return x + dt / 2 * (first + f(x + dt * first, _times(x, t + dt)))


def _midpoint(f: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    return x + dt * f(x + dt / 2 * f(x, _times(x, t)), _times(x, t + dt / 2))


def _rk4(f: Velocity, x: Tensor, t: float, dt: float) -> Tensor:
    middle = _times(x, t + dt / 2)
    k1 = f(x, _times(x, t))
    k2 = f(x + dt / 2 * k1, middle)
    k3 = f(x + dt / 2 * k2, middle)
    k4 = f(x + dt * k3, _times(x, t + dt))
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


FIXED_STEP = {"euler": _euler, "heun": _heun, "midpoint": _midpoint, "rk4": _rk4}


def solve_ode(
    velocity: Velocity,
    x: Tensor,
    *,
    solver: str,
    steps: int,
    time_range: tuple[float, float] = (0.0, 1.0),
    open_end: bool = False,
    atol: float = 1e-6,
    rtol: float = 1e-3,
) -> Tensor:
    """Integrate ``velocity`` from ``time_range[0]`` to its end.

    ``steps`` equal intervals for fixed-step solvers; with ``open_end`` the last one is an Euler step, because the
    velocity diverges at the end and an evaluation there would multiply the network's error (EDM, arXiv 2206.00364,
    algorithm 1, ends so too). ``dopri5`` picks its own within ``atol`` and ``rtol``; its error
    norm is over the whole batch, so that a sample depends a little on its neighbours. ValueError for a solver that is
    none of these.
    """
    start, end = time_range
    if solver == "dopri5":
        from torchdiffeq import odeint

        def field(t: Tensor, state: Tensor) -> Tensor:
            return velocity(state, t.to(state.dtype).expand(len(state)))

        span = torch.tensor([start, end], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32).to(
            x.device
        )
        options: dict[str, Any] = {"step_t": span[1:]}  # never a step beyond the end, where a path may not be defined
        if x.device.type == "mps":
            options["dtype"] = torch.float32  # of times; float64, which torchdiffeq takes, is not to be had there
        return odeint(field, x, span, method="dopri5", atol=atol, rtol=rtol, options=options)[-1]
    if solver not in FIXED_STEP:
        raise ValueError(f"solver {solver!r} is no ODE solver; there are: dopri5, {', '.join(FIXED_STEP)}")
    advance = FIXED_STEP[solver]
    for index in range(steps):
        t = start + (end - start) * index / steps
        following = start + (end - start) * (index + 1) / steps
        last = open_end and index == steps - 1
        x = (_euler if last else advance)(velocity, x, t, following - t)
    return x


def diffusion_weight(form: str, scale: float, interpolant: Interpolant, t: Tensor) -> Tensor:
    """w(t) (batch,) of the reverse SDE, in SiT's forms; dW is scaled by sqrt(2 w).

    ``constant``: scale; ``sbdm``: scale (sigma^2 alpha'/alpha - sigma sigma'), the diffusion of the path itself;
    ``sigma``: scale sigma; ``linear``: scale (1 - t); ``decreasing``: (scale cos(pi t) + 1)^2 / 4;
    ``increasing-decreasing``: scale sin(pi t)^2. ValueError for any other.
    """
    alpha, d_alpha = interpolant.alpha(t)
    sigma, d_sigma = interpolant.sigma(t)
    if form == "constant":
        return torch.full_like(t, scale)
    if form == "sbdm":
        return scale * (sigma**2 * d_alpha / alpha - sigma * d_sigma)
    if form == "sigma":
        return scale * sigma
    if form == "linear":
        return scale * (1 - t)
    if form == "decreasing":
        return 0.25 * (scale * torch.cos(math.pi * t) + 1) ** 2
    if form == "increasing-decreasing":
        return scale * torch.sin(math.pi * t) ** 2
    raise ValueError(f"diffusion form {form!r} is unknown")


def solve_sde(
    predict: Velocity,
    x: Tensor,
    interpolant: Interpolant,
    noise: Callable[[int, torch.Size], Tensor],
    *,
    steps: int,
    diffusion: str = "sigma",
    diffusion_scale: float = 1.0,
    last_step: str = "mean",
    last_step_size: float = 0.04,
) -> Tensor:
    """Euler-Maruyama in ``steps`` steps, of which the last is the ``last_step``.

    Args:
        predict: the network's prediction (velocity, noise, score or data, as ``interpolant`` says).
        x: noise (batch, ...) at t = 0.
        interpolant: path and prediction.
        noise: ``noise(step, shape)`` gives the standard normal increments of a step.
        steps: network evaluations in all.
        diffusion: form of w(t), see :func:`diffusion_weight`.
        diffusion_scale: its scale.
        last_step: ``mean`` (drift without noise), ``tweedie`` (the posterior mean of the data), ``euler`` (the ODE's
            drift) or ``none``, over the last ``last_step_size`` of t.
        last_step_size: length of the last step in t.
    """
    start, end = interpolant.sampling_range()
    if diffusion == "sbdm":
        start = max(start, interpolant.margin)
    end = min(end, 1 - last_step_size) if last_step != "none" else min(end, 1 - interpolant.margin)

    def drifts(state: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prediction = predict(state, t)
        velocity = interpolant.velocity(prediction, state, t)
        score = interpolant.score(prediction, state, t)
        weight = like(diffusion_weight(diffusion, diffusion_scale, interpolant, t), state)
        return velocity, score, weight

    moving = steps - (last_step != "none")
    for index in range(moving):
        now = start + (end - start) * index / moving
        dt = (end - start) / moving
        velocity, score, weight = drifts(x, _times(x, now))
        increment = noise(index, x.shape).to(x) * math.sqrt(dt)
        x = x + (velocity + weight * score) * dt + torch.sqrt(2 * weight) * increment
    if last_step == "none":
        return x
    t = _times(x, end)
    velocity, score, weight = drifts(x, t)
    if last_step == "mean":
        return x + (velocity + weight * score) * last_step_size
    if last_step == "euler":
        return x + velocity * last_step_size
    alpha, sigma = (like(weights[0], x) for weights in (interpolant.alpha(t), interpolant.sigma(t)))
    return x / alpha + sigma**2 / alpha * score


def spaced_steps(num_timesteps: int, steps: int) -> list[int]:
    """``steps`` of the diffusion steps 0 to ``num_timesteps`` - 1, evenly chosen, both ends among them, ascending.

    As guided-diffusion's ``space_timesteps`` with one section, halves rounded to even. ValueError unless 2 <= ``steps``
    <= ``num_timesteps``.
    """
    if not 2 <= steps <= num_timesteps:
        raise ValueError(f"steps: {steps}; ddpm takes 2 to {num_timesteps}")
    stride = (num_timesteps - 1) / (steps - 1)
    chosen, place = [], 0.0
    for _ in range(steps):
        chosen.append(round(place))
        place += stride
    return chosen


def solve_ddpm(
    predict: Velocity, x: Tensor, path: DdpmCosine, noise: Callable[[int, torch.Size], Tensor], *, steps: int
) -> Tensor:
    """Ancestral sampling (arXiv 2006.11239, algorithm 2) from noise ``x`` (batch, ...) to data.

    Each step draws from the posterior q(x_{n-1} | x_n, x1) for the data x1 that was predicted, with its own variance
    ("fixed small"); the last adds no noise, and x1 is never clipped. With fewer ``steps`` than the path has, betas are
    those between the chosen ones, as guided-diffusion respaces. ``predict(x, t)`` gives what ``path.prediction`` says;
    ``noise(step, shape)`` standard normal noise, ``step`` counted from 0.
    """
    chosen = spaced_steps(path.num_timesteps, steps)
    alpha_bar = path.alpha_bar.tolist()
    times = step_time(torch.tensor(chosen), path.num_timesteps).tolist()
    for index, place in enumerate(reversed(range(steps))):
        t = _times(x, times[place])
        data, _ = path.endpoints(predict(x, t), x, t)
        now, following = alpha_bar[chosen[place]], alpha_bar[chosen[place - 1]] if place else 1.0
        beta = 1 - now / following
        mean = beta * math.sqrt(following) / (1 - now) * data + (1 - following) * math.sqrt(1 - beta) / (1 - now) * x
        deviation = math.sqrt(beta * (1 - following) / (1 - now))
        x = mean + deviation * noise(index, x.shape).to(x) if place else mean
    return x
