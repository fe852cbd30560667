"""Interpolants between noise and data: x_t and the regression target come from one object.

Convention (SiT, LayerSync): t = 0 is noise, t = 1 is data, ``x_t = alpha(t) x1 + sigma(t) x0`` with ``x1`` data and
``x0`` standard normal noise. What a network predicts is one of

    velocity   v = alpha'(t) x1 + sigma'(t) x0
    noise      x0
    data       x1
    score      grad log p_t(x_t) = -x0 / sigma(t)

Sources: flow matching (arXiv 2210.02747, eq. 22), stochastic interpolants (arXiv 2303.08797, eq. 2.13), SiT
(arXiv 2401.08740, table 1 for the three paths and eq. 9 for the score); DDPM's separate steps (arXiv 2006.11239).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

Prediction = Literal["velocity", "noise", "score", "data"]


def like(t: Tensor, x: Tensor) -> Tensor:
    """``t`` (batch,) with axes of length 1 appended until it broadcasts against ``x`` (batch, ...)."""
    return t.reshape(-1, *(1 for _ in range(x.ndim - 1)))


class Interpolant(ABC):
    """A path from noise to data, and what is predicted along it.

    ``prediction`` is one of ``velocity``, ``noise``, ``score``, ``data``; ValueError for anything else.
    """

    name: ClassVar[str]
    margin: ClassVar[float] = 1e-3
    """How far sampling keeps from an end where a conversion divides by zero (SiT's sample_eps)."""

    def __init__(self, prediction: Prediction = "velocity"):
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction {prediction!r} is unknown; there are: {', '.join(get_args(Prediction))}")
        self.prediction: Prediction = prediction

    @abstractmethod
    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of the data and its time derivative."""

    @abstractmethod
    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of the noise and its time derivative."""

    @property
    def velocity_is_finite_at_data(self) -> bool:
        """Whether sigma' stays bounded as t goes to 1."""
        return True

    def sample(self, x1: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``x_t`` and the regression target for data ``x1``, noise ``x0`` (batch, ...) at times ``t`` (batch,)."""
        alpha, d_alpha = self.alpha(like(t, x1))
        sigma, d_sigma = self.sigma(like(t, x1))
        x_t = alpha * x1 + sigma * x0
        if self.prediction == "velocity":
            return x_t, d_alpha * x1 + d_sigma * x0
        if self.prediction == "noise":
            return x_t, x0
        if self.prediction == "data":
            return x_t, x1
        return x_t, -x0 / sigma

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight of the squared error at ``t`` (batch,): sigma^2 for the score, which makes it the noise's error.

        As SiT trains score models (its ``WeightType.NONE``); 1 for the other predictions.
        """
        return self.sigma(t)[0] ** 2 if self.prediction == "score" else torch.ones_like(t)

    def training_range(self) -> tuple[float, float]:
        """Times at which training can draw: the whole of [0, 1] unless the target diverges at an end."""
        diverges = self.prediction == "score" or (self.prediction == "velocity" and not self.velocity_is_finite_at_data)
        return (0.0, 1.0 - 1e-5) if diverges else (0.0, 1.0)

    def training_time(self, t: Tensor) -> Tensor:
        """Drawn times in (0, 1) brought to where training can be."""
        low, high = self.training_range()
        return low + (high - low) * t

    def sampling_range(self) -> tuple[float, float]:
        """Times between which the velocity is integrated.

        Noise and score cannot give the velocity at t = 0 (divide by alpha), nor data at t = 1 (divide by sigma).
        """
        start = self.margin if self.prediction in ("noise", "score") else 0.0
        finite = self.prediction == "velocity" or (self.prediction == "noise" and self.velocity_is_finite_at_data)
        finite = finite and self.velocity_is_finite_at_data
        return start, 1.0 if finite else 1.0 - self.margin

    @property
    def open_end(self) -> bool:
        """Whether the velocity diverges at t = 1, where the prediction is divided by sigma."""
        return self.sampling_range()[1] < 1.0

    def endpoints(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The data and the noise, ``(x1, x0)``, that ``prediction`` at ``x_t``, ``t`` (batch,) amounts to."""
        alpha, d_alpha = self.alpha(like(t, x_t))
        sigma, d_sigma = self.sigma(like(t, x_t))
        if self.prediction == "velocity":
            wronskian = alpha * d_sigma - d_alpha * sigma
            return (d_sigma * x_t - sigma * prediction) / wronskian, (alpha * prediction - d_alpha * x_t) / wronskian
        if self.prediction == "data":
            return prediction, (x_t - alpha * prediction) / sigma
        x0 = prediction if self.prediction == "noise" else -sigma * prediction
        return (x_t - sigma * x0) / alpha, x0

    def velocity(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """dx/dt of the probability-flow ODE for ``prediction`` at ``x_t`` (batch, ...) and ``t`` (batch,)."""
        if self.prediction == "velocity":
            return prediction
        _, d_alpha = self.alpha(like(t, x_t))
        _, d_sigma = self.sigma(like(t, x_t))
        x1, x0 = self.endpoints(prediction, x_t, t)
        return d_alpha * x1 + d_sigma * x0

    def score(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t) for ``prediction``; what the SDE's drift needs (SiT eq. 9)."""
        if self.prediction == "score":
            return prediction
        _, x0 = self.endpoints(prediction, x_t, t)
        return -x0 / self.sigma(like(t, x_t))[0]


class Linear(Interpolant):
    """x_t = t x1 + (1 - t) x0, with constant velocity x1 - x0 (rectified flow; SiT's "Linear")."""

    name = "linear"

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return t, torch.ones_like(t)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return 1 - t, -torch.ones_like(t)


class Trigonometric(Interpolant):
    """x_t = sin(pi t / 2) x1 + cos(pi t / 2) x0: unit variance throughout (SiT's "GVP")."""

    name = "trigonometric"

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        angle = t * (math.pi / 2)
        return torch.sin(angle), math.pi / 2 * torch.cos(angle)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        angle = (1 - t) * (math.pi / 2)  # the sine of the complement: exactly 0 at t = 1, as cos(pi / 2) is not
        return torch.sin(angle), -math.pi / 2 * torch.cos(angle)


class VariancePreserving(Interpolant):
    """The path of DDPM-like diffusion in continuous time, beta from 0.1 to 20 (SiT's "VP"; arXiv 2011.13456, eq. 33).

    With s = 1 - t, log alpha = -s^2 (beta_max - beta_min) / 4 - s beta_min / 2 and sigma^2 = 1 - alpha^2. At t = 0
    alpha is 0.0066 rather than 0, and the velocity diverges as t goes to 1: sampling stops short of it.
    """

    name = "variance-preserving"
    beta_min, beta_max = 0.1, 20.0

    @property
    def velocity_is_finite_at_data(self) -> bool:  # noqa: D102
        return False

    def _log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s, spread = 1 - t, self.beta_max - self.beta_min
        return -0.25 * s**2 * spread - 0.5 * s * self.beta_min, 0.5 * s * spread + 0.5 * self.beta_min

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        log_alpha, slope = self._log_alpha(t)
        alpha = torch.exp(log_alpha)
        return alpha, alpha * slope

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        log_alpha, slope = self._log_alpha(t)
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
        return sigma, -torch.exp(2 * log_alpha) * slope / sigma


def discrete_step(t: Tensor, num_timesteps: int) -> Tensor:
    """Diffusion step (int64) of times ``t``: 0, the least noise, at t = 1 and ``num_timesteps`` - 1 at t = 0.

    Times between two steps are of the nearest. The inverse is ``step_time``.
    """
    return torch.round((1 - t.float()) * (num_timesteps - 1)).long()


def step_time(step: Tensor, num_timesteps: int) -> Tensor:
    """Time t in [0, 1], float32, of diffusion steps 0 to ``num_timesteps`` - 1."""
    return (1 - step.double() / (num_timesteps - 1)).float()


class DdpmCosine(Interpolant):
    """DDPM's path in ``num_timesteps`` separate steps, with the cosine schedule (arXiv 2102.09672, eq. 17).

    alpha_bar falls as cos^2((u + 0.008) / 1.008 * pi / 2) over u = (n + 1) / ``num_timesteps``, each step's beta at
    most 0.999; x_t = sqrt(alpha_bar) x1 + sqrt(1 - alpha_bar) x0. MDM (arXiv 2209.14916) predicts the data along it.
    Weights are those of the nearest step. Without a velocity there is no ODE: it is sampled by
    :func:`layersync.core.solver.solve_ddpm`.
    ValueError for a prediction other than ``data`` and ``noise``.
    """

    name = "ddpm-cosine"
    predictions: ClassVar[tuple[Prediction, ...]] = ("data", "noise")
    offset: ClassVar[float] = 0.008
    largest_beta: ClassVar[float] = 0.999

    def __init__(self, prediction: Prediction = "data", num_timesteps: int = 1000):
        super().__init__(prediction)
        if prediction not in self.predictions:
            raise ValueError(f"prediction {prediction!r}: {self.name} has {' and '.join(self.predictions)}")
        self.num_timesteps = num_timesteps
        edges = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        fall = torch.cos((edges + self.offset) / (1 + self.offset) * (math.pi / 2)) ** 2
        beta = (1 - fall[1:] / fall[:-1]).clamp(max=self.largest_beta)
        self.alpha_bar = torch.cumprod(1 - beta, dim=0)
        """(num_timesteps,) float64, least noise first."""

    def _weight(self, squared: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        step = discrete_step(t, self.num_timesteps)
        weight = squared.sqrt().to(t.dtype).to(t.device)[step]
        return weight, torch.full_like(weight, math.nan)  # separate steps have no derivative

    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self._weight(self.alpha_bar, t)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self._weight(1 - self.alpha_bar, t)

    def training_time(self, t: Tensor) -> Tensor:
        """The time of one of the steps, each for an equal part of (0, 1)."""
        from_noise = (t.double() * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)
        return step_time(self.num_timesteps - 1 - from_noise, self.num_timesteps)

    def velocity(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Raises ValueError: between separate steps there is none."""
        raise ValueError(f"{self.name} is a path of separate steps: it has no velocity")


INTERPOLANTS: dict[str, type[Interpolant]] = {kind.name: kind for kind in (Linear, Trigonometric, VariancePreserving)}
"""The continuous ones."""


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise by ``shift`` > 1, towards data by ``shift`` < 1.

    Stable Diffusion 3 (arXiv 2403.03206, eq. 23) writes it for its noise level s = 1 - t: s' = m s / (1 + (m - 1) s).
    """
    s = 1 - t
    return 1 - shift * s / (1 + (shift - 1) * s)


def training_times(
    uniform: Tensor, kind: Literal["uniform", "logit-normal"], *, mean: float, std: float, shift: float
) -> Tensor:
    """Times t in (0, 1) from ``uniform`` draws in (0, 1): as they are, or logit-normal, then shifted.

    Logit-normal: t = sigmoid(mean + std * z), z standard normal (Stable Diffusion 3, eq. 19).
    """
    t = uniform if kind == "uniform" else torch.sigmoid(mean + std * torch.special.ndtri(uniform))
    return shifted(t, shift) if shift != 1.0 else t
