"""Load a run and sample from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layersync.core.adapter import ConditionSpec, LatentSpec, Tokenizer, to_device
from layersync.core.checkpoint import load_weights, read_tensors
from layersync.core.draws import generator, sample_noise, solver_noise
from layersync.core.errors import InputError
from layersync.core.guidance import GuidedPrediction
from layersync.core.progress import progress
from layersync.core.recipe import Recipe, Sample
from layersync.core.results import SamplingSettings
from layersync.core.run import Run
from layersync.core.solver import SDE_SOLVERS, solve_ode, solve_sde


@dataclass(frozen=True)
class Conditions:
    """Labels (count,), -1 for none, and lengths in frames (count,) of samples to draw."""

    label: Tensor
    frames: Tensor


class GenerativeModel:
    """A trained network with its tokenizer, ready to sample; made by :func:`load`."""

    def __init__(self, run: Run, step: int, weights: str, backbone: nn.Module, device: torch.device):
        self.run, self.step, self.weights = run, step, weights
        self.recipe: Recipe = run.recipe
        self.backbone, self.device = backbone.eval(), device
        self.latent: LatentSpec = run.data.latent
        self.condition: ConditionSpec = run.data.condition
        self.classes = run.data.classes
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer with the statistics of its training data; built on first use."""
        if self._tokenizer is None:
            tokenizer = self.recipe.adapter.tokenizer(self.recipe.tokenizer)
            self.run.data.check_tokenizer(tokenizer, f"run {str(self.run.path)!r}")
            tokenizer.load_state(read_tensors(self.run.path / "tokenizer.safetensors"))
            self._tokenizer = tokenizer
        return self._tokenizer

    def settings(self, **changes: Any) -> Sample:
        """The recipe's sampling settings with ``changes`` (``None`` leaves a setting as it is), checked."""
        given = {key: value for key, value in changes.items() if value is not None}
        settings = Sample.model_validate({**self.recipe.sample.model_dump(), **given})
        channels = settings.guidance_channels
        if channels is not None and channels > self.latent.channels:
            raise InputError(f"sample.guidance_channels: {channels}, the latents have {self.latent.channels}")
        return settings

    def conditions(self, count: int, *, labels: Sequence[int] | None = None, seed: int = 0) -> Conditions:
        """Labels and lengths for ``count`` samples: drawn as they occur in the training data.

        With ``labels``, these are cycled (``num_classes`` means none) and only lengths are drawn.
        """
        known = read_tensors(self.run.path / "conditions.safetensors")
        frames = (
            known["frames"] if self.latent.num_frames is None else known["frames"].clamp(max=self.latent.num_frames)
        )
        chosen = generator(seed, "labels").integers(len(frames), size=count)
        if labels is None:
            return Conditions(known["label"][chosen], frames[chosen])
        limit = self.condition.num_classes
        for label in labels:
            if not 0 <= label <= limit or not limit:
                raise InputError(f"--labels: {label} is none of the labels 0 to {limit - 1}, nor {limit} for none")
        cycled = torch.tensor([labels[i % len(labels)] for i in range(count)])
        lengths = frames[chosen]
        for row in range(count):
            same = frames[known["label"] == cycled[row]]
            if len(same):
                lengths[row] = same[int(chosen[row]) % len(same)]
        return Conditions(cycled, lengths)

    def sample_latents(
        self,
        conditions: Conditions,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        start: int = 0,
        settings: Sample | None = None,
        shown: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Latents (count, ...) and their frame mask, of samples number ``start`` onwards.

        Sample ``i`` depends on ``seed`` and ``i`` alone, not on the batch it was drawn in (dopri5 apart).

        Raises:
            InputError: when ``noise`` is not shaped (count, *latent).
        """
        settings = settings or self.recipe.sample
        count = len(conditions.label)
        if noise is not None and tuple(noise.shape) != (count, *self.latent.shape):
            raise InputError(f"--noise: is {list(noise.shape)}, the run needs {[count, *self.latent.shape]}")
        mask = self._mask(conditions)
        parts = []
        with progress("sampling", count, shown=shown) as advance:
            for first in range(0, count, settings.batch_size):
                part = slice(first, min(first + settings.batch_size, count))
                size = part.stop - part.start
                x0 = sample_noise(seed, start + first, size, self.latent) if noise is None else noise[part]
                label = conditions.label[part]
                if self.condition.num_classes:
                    label = torch.where(label < 0, self.condition.num_classes, label)
                condition = {"label": label} if self.condition.num_classes else {}
                batch_mask = None if mask is None else mask[part].to(self.device)
                parts.append(self._solve(x0.float(), condition, batch_mask, settings, seed, start + first).cpu())
                advance(size)
        return torch.cat(parts), mask

    def _mask(self, conditions: Conditions) -> Tensor | None:
        if self.latent.num_frames is None:
            return None
        return torch.arange(self.latent.num_frames)[None] < conditions.frames[:, None]

    @torch.inference_mode()
    def _solve(
        self, x: Tensor, condition: dict[str, Tensor], mask: Tensor | None, settings: Sample, seed: int, first: int
    ) -> Tensor:
        interpolant = self.recipe.objective.build()
        bf16 = settings.precision == "bf16"
        predict = GuidedPrediction(
            self.backbone,
            to_device(condition, self.device),
            mask,
            spec=self.condition,
            latent=self.latent,
            guidance=settings.guidance,
            interval=settings.guidance_interval,
            channels=settings.guidance_channels,
        )

        def prediction(state: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                return predict(state, t).float()

        x = x.to(self.device)
        if settings.solver in SDE_SOLVERS:
            return solve_sde(
                prediction,
                x,
                interpolant,
                lambda step, shape: solver_noise(seed, step, first, shape),
                steps=settings.steps,
                diffusion=settings.diffusion,
                diffusion_scale=settings.diffusion_scale,
                last_step=settings.last_step,
                last_step_size=settings.last_step_size,
            )
        return solve_ode(
            lambda state, t: interpolant.velocity(prediction(state, t), state, t),
            x,
            solver=settings.solver,
            steps=settings.steps,
            time_range=interpolant.sampling_range(),
            open_end=interpolant.open_end,
            atol=settings.atol,
            rtol=settings.rtol,
        )

    def decode(self, latents: Tensor, mask: Tensor | None) -> list[Any]:
        """Samples of the modality's own type."""
        decoded: list[Any] = []
        for first in range(0, len(latents), 64):
            part = slice(first, first + 64)
            decoded += self.tokenizer.decode(latents[part], None if mask is None else mask[part])
        return decoded

    def sample(
        self,
        n: int,
        *,
        labels: Sequence[int] | None = None,
        noise: Tensor | np.ndarray | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> list[Any]:
        """``n`` samples of the modality's own type.

        ``labels`` are cycled; left out, they are drawn as in the training data. ``noise`` (n, *latent) replaces the
        seeded noise. ``settings`` override the recipe's ``sample`` section.
        """
        given = None if noise is None else torch.as_tensor(noise)
        drawn = self.conditions(n, labels=labels, seed=seed)
        latents, mask = self.sample_latents(drawn, noise=given, seed=seed, settings=self.settings(**settings))
        return self.decode(latents, mask)


def sampling_settings(settings: Sample, count: int, seed: int) -> SamplingSettings:
    """What a score has to say about how its samples were drawn."""
    fields = {field.name for field in dataclasses.fields(SamplingSettings)} - {"num_samples", "seed", "adaptive"}
    chosen = settings.model_dump(include=fields)
    adaptive = settings.model_dump(include={"atol", "rtol", "batch_size"}) if settings.solver == "dopri5" else None
    return SamplingSettings(**chosen, num_samples=count, seed=seed, adaptive=adaptive)


def default_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    weights: str = "ema",
    device: torch.device | None = None,
) -> GenerativeModel:
    """The model of a run directory, at its newest checkpoint or at ``step``; averaged weights or the ``model``'s own.

    Raises:
        InputError: for a run or checkpoint that does not exist or is cut short, or weights that do not fit.
    """
    if weights not in ("ema", "model"):
        raise InputError(f"--weights: {weights!r} is unknown; there are: ema, model")
    run = Run(Path(path))
    checkpoint = run.latest_checkpoint() if step is None else run.checkpoint(step)
    if not checkpoint.is_dir():
        raise InputError(f"run {str(path)!r} has no checkpoint of step {step}; there are: {run.checkpoint_steps()}")
    device = device or default_device()
    backbone = run.recipe.adapter.backbone(run.recipe.backbone, run.data.latent, run.data.condition)
    source = checkpoint / f"{weights}.safetensors"
    load_weights(backbone, read_tensors(source), source)
    taken = int(checkpoint.name.rpartition("-")[2])
    return GenerativeModel(run, taken, weights, backbone.to(device), device)
