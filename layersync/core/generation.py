"""Load a run and sample from it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from layersync.core.adapter import ConditionSpec, LatentSpec, Tokenizer, to_device
from layersync.core.checkpoint import load_weights, read_tensors
from layersync.core.device import default_device, float32_products
from layersync.core.draws import generator, sample_noise, solver_noise
from layersync.core.errors import InputError
from layersync.core.guidance import GuidedPrediction
from layersync.core.interpolant import DdpmCosine
from layersync.core.latents import drawn_caption
from layersync.core.parallel import Processes
from layersync.core.plugin import calling
from layersync.core.progress import progress
from layersync.core.recipe import UNGUIDED, Recipe, Sample, check_sampling
from layersync.core.recipe_reading import load_recipe
from layersync.core.results import SamplingSettings
from layersync.core.run import Run
from layersync.core.solver import SDE_SOLVERS, solve_ddpm, solve_ode, solve_sde
from layersync.core.text import TextEncoder, TextTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditions:
    """Labels (count,), -1 for none, lengths in frames (count,) and texts, "" for none, of samples to draw."""

    label: Tensor
    frames: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, part: slice) -> Conditions:
        return Conditions(self.label[part], self.frames[part], self.captions[part])


class KnownConditions(NamedTuple):
    """What samples can be asked for: of each example of a data set its label, length in frames, and texts."""

    label: Tensor
    frames: Tensor
    captions: Sequence[Sequence[str]]


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
        self._warned = False

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer with the statistics of its training data; built on first use."""
        if self._tokenizer is None:
            tokenizer = self.recipe.adapter.tokenizer(self.recipe.tokenizer)
            self.run.data.check_tokenizer(tokenizer, f"run {str(self.run.path)!r}")
            with calling(tokenizer, "load_state"):
                tokenizer.load_state(read_tensors(self.run.path / "tokenizer.safetensors"))
            self._tokenizer = tokenizer
        return self._tokenizer

    def settings(self, **changes: Any) -> Sample:
        """The recipe's sampling settings with ``changes`` (``None`` leaves a setting as it is), checked."""
        given = {key: value for key, value in changes.items() if value is not None}
        settings = Sample.model_validate({**self.recipe.sample.model_dump(), **given})
        check_sampling(self.recipe.objective, settings)
        channels = settings.guidance_channels
        if channels is not None and channels > self.latent.channels:
            raise InputError(f"sample.guidance_channels: {channels}, the latents have {self.latent.channels}")
        return settings

    def override(self, overrides: Sequence[str], sections: Sequence[str]) -> None:
        """Draw and score as ``overrides`` of these sections say; the run's own recipe stays as it is.

        Raises :class:`InputError` for a key of another section, which would be another run, and for a bad value.
        """
        for override in overrides:
            if override.partition("=")[0].strip().partition(".")[0] not in sections:
                allowed = " and ".join(f"{section}.*" for section in sections)
                raise InputError(f"--set {override!r}: of a run that is trained {allowed} can be set here")
        if overrides:
            with warnings.catch_warnings():  # of what has no effect, which whoever takes this says
                warnings.simplefilter("ignore", UserWarning)
                self.recipe = load_recipe(self.recipe.to_mapping(), overrides)
            self.settings()

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """What the run's texts were read with. InputError when it cannot be had."""
        settings = self.recipe.condition
        assert settings.text_encoder is not None
        encoder = TextEncoder(settings.text_encoder, settings.text_pooling, settings.max_tokens)
        self.run.data.check_text_encoder(encoder.fingerprint, self.recipe)
        return encoder

    def conditions(
        self,
        count: int,
        *,
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        frames: int | None = None,
        seed: int = 0,
        known: KnownConditions | None = None,
        stratified: bool = False,
    ) -> Conditions:
        """Labels, texts and lengths for ``count`` samples: drawn together, as they occur in the training data.

        Of several texts of an example one is drawn.

        ``known`` is another data set to draw them from: each of its examples once, as published protocols go through a
        test set, unless more are wanted than there are.

        ``stratified``: spread evenly over the data, ordered by label and length, instead of drawn one by one, so that
        each label comes as often as its share says, give or take one (systematic sampling: Cochran, Sampling
        Techniques, chapter 8).

        ``labels`` (``num_classes`` means none) and ``prompts`` (a blank one means none) are cycled when they are given;
        lengths are then drawn, of samples with the same label where there is one. ``frames`` is the length of all.

        Raises:
            InputError: for labels, prompts or lengths that the run does not know.
        """
        self._check_conditions(labels, prompts, frames)
        other, known = known is not None, known or self.known
        lengths = known.frames
        if self.latent.num_frames is not None:
            lengths = lengths.clamp(max=self.latent.num_frames)
        source = generator(seed, "labels")
        if stratified:
            ordered = np.lexsort((lengths.numpy(), known.label.numpy()))
            spread = (np.arange(count) + source.random()) * len(ordered) / max(count, 1)
            chosen = source.permutation(ordered[spread.astype(np.int64)])
        elif other and count <= len(lengths):
            chosen = source.permutation(len(lengths))[:count]
        else:
            chosen = source.integers(len(lengths), size=count)
        label, length = known.label[chosen], lengths[chosen]
        captions = tuple(drawn_caption(known.captions[row], float(source.random())) for row in chosen)
        if prompts is not None:
            captions = tuple(prompts[i % len(prompts)].strip() for i in range(count))
            label = torch.full((count,), -1)
        if labels is not None:
            label = torch.tensor([labels[i % len(labels)] for i in range(count)])
            for value in label.unique():
                same = lengths[known.label == value]
                if len(same):
                    wanted = label == value
                    length[wanted] = same[torch.from_numpy(chosen)[wanted] % len(same)]
        if frames is not None:
            length = torch.full((count,), frames)
        return Conditions(label, length, captions)

    def conditions_as_scored(
        self, count: int, *, seed: int, known: KnownConditions | None = None, frames: int | None = None
    ) -> Conditions:
        """:meth:`conditions` as the recipe's ``evaluate.conditions`` draws them."""
        how, classes, labels = self.recipe.evaluate.conditions, self.condition.num_classes, None
        if how == "uniform" and classes and not self.condition.text_channels:
            labels = generator(seed, "labels", position=1).integers(classes, size=count).tolist()
        return self.conditions(
            count, labels=labels, frames=frames, seed=seed, known=known, stratified=how == "stratified"
        )

    def _check_conditions(
        self, labels: Sequence[int] | None, prompts: Sequence[str] | None, frames: int | None
    ) -> None:
        limit, with_text = self.condition.num_classes, bool(self.condition.text_channels)
        for label in labels or ():
            if not limit:
                raise InputError(f"--labels: {label}, and the run is not conditioned on labels")
            if not 0 <= label <= limit:
                raise InputError(f"--labels: {label} is none of the labels 0 to {limit - 1}, nor {limit} for none")
        for prompt in prompts or ():
            if not prompt.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
                raise InputError(f"--prompt: {prompt!r} is no text in UTF-8")
        if prompts is not None and not with_text:
            raise InputError("--prompt: the run is not conditioned on text; train with condition.text_encoder")
        if limit and with_text and (labels is None) != (prompts is None):
            raise InputError("the run was trained on labels and texts together: give both --labels and --prompt")
        if frames is not None:
            longest = self.latent.num_frames
            if longest is None:
                raise InputError("--frames: the run's samples have no length of their own")
            if not 1 <= frames <= longest:
                raise InputError(f"--frames: {frames} is not within 1 to {longest}, the run's window")

    @cached_property
    def known(self) -> KnownConditions:
        """Of the training examples that the run keeps."""
        kept = read_tensors(self.run.path / "conditions.safetensors")
        captions: list[list[str]] = [[]] * len(kept["label"])
        if self.condition.text_channels:
            captions = json.loads((self.run.path / "captions.json").read_text())
        return KnownConditions(kept["label"], kept["frames"], captions)

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

        Sample ``i`` depends on ``seed`` and ``i`` alone, not on the batch it was drawn in (dopri5 apart). Guidance of a
        run that is conditioned on nothing is warned of, once.

        Raises:
            InputError: when ``noise`` is not shaped (count, *latent), and for samples that are not finite.
        """
        settings = settings or self.recipe.sample
        count = len(conditions)
        if noise is not None and tuple(noise.shape) != (count, *self.latent.shape):
            raise InputError(f"--noise: is {list(noise.shape)}, the run needs {[count, *self.latent.shape]}")
        mask = self._mask(conditions)
        given = self._given(conditions)
        unconditional = not self.condition.num_classes and not self.condition.text_channels
        if settings.guidance != 1.0 and unconditional and not self._warned:
            self._warned = True
            warnings.warn(UNGUIDED, stacklevel=2)
        if settings.precision == "tf32" and self.device.type != "cuda":
            logger.info("sample.precision: tf32 is float32 on %s, TF32 is for CUDA devices alone", self.device)
        parts = []
        with progress("sampling", count, shown=shown) as advance:
            for first in range(0, count, settings.batch_size):
                part = slice(first, min(first + settings.batch_size, count))
                size = part.stop - part.start
                x0 = sample_noise(seed, start + first, size, self.latent) if noise is None else noise[part]
                batch_mask = None if mask is None else mask[part].to(self.device)
                with float32_products(tf32=settings.precision == "tf32"):
                    drawn = self._solve(x0.float(), given(part), batch_mask, settings, seed, start + first).cpu()
                if bad := int((~drawn.isfinite()).flatten(1).any(1).sum()):
                    raise InputError(
                        f"sampling: {bad} of the {size} samples from number {start + first} on hold values that are "
                        f"not finite numbers: weights that diverged, guidance too strong, or sample.precision"
                    )
                parts.append(drawn)
                advance(size)
        return torch.cat(parts), mask

    def _given(self, conditions: Conditions) -> Callable[[slice], dict[str, Tensor]]:
        """What the backbone is given for a part of them: labels, where -1 becomes "none", and embedded texts."""
        none = self.condition.num_classes
        wordy = self.condition.text_channels
        texts = TextTable.of(self.text_encoder, conditions.captions, kept=False) if wordy else None

        def read(part: slice) -> dict[str, Tensor]:
            found = {} if texts is None else texts.read(conditions.captions[part])
            label = conditions.label[part]
            return {"label": torch.where(label < 0, none, label), **found} if none else found

        return read

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

        def noise(step: int, shape: torch.Size) -> Tensor:
            return solver_noise(seed, step, first, shape)

        if isinstance(interpolant, DdpmCosine):
            return solve_ddpm(prediction, x, interpolant, noise, steps=settings.steps)
        if settings.solver in SDE_SOLVERS:
            return solve_sde(
                prediction,
                x,
                interpolant,
                noise,
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

    @float32_products()
    def decode(self, latents: Tensor, mask: Tensor | None) -> list[Any]:
        """Samples of the modality's own type."""
        decoded: list[Any] = []
        for first in range(0, len(latents), 64):
            part = slice(first, first + 64)
            with calling(self.tokenizer, "decode"):
                decoded += self.tokenizer.decode(latents[part], None if mask is None else mask[part])
        return decoded

    def sample(
        self,
        n: int,
        *,
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        frames: int | None = None,
        noise: Tensor | np.ndarray | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> list[Any]:
        """``n`` samples of the modality's own type.

        ``labels`` and ``prompts`` are cycled; left out, they are drawn as in the training data, and so are lengths
        unless ``frames`` is given. ``noise`` (n, *latent) replaces the seeded noise. ``settings`` override the recipe's
        ``sample`` section.
        """
        given = None if noise is None else torch.as_tensor(noise)
        drawn = self.conditions(n, labels=labels, prompts=prompts, frames=frames, seed=seed)
        self.tokenizer.prepare_decoding()
        latents, mask = self.sample_latents(drawn, noise=given, seed=seed, settings=self.settings(**settings))
        return self.decode(latents, mask)


def sampling_settings(settings: Sample, count: int, seed: int, conditions: str) -> SamplingSettings:
    """What a score has to say about how its samples were drawn."""
    fields = {field.name for field in dataclasses.fields(SamplingSettings)}
    fields -= {"num_samples", "seed", "conditions", "adaptive"}
    chosen = settings.model_dump(include=fields)
    adaptive = settings.model_dump(include={"atol", "rtol", "batch_size"}) if settings.solver == "dopri5" else None
    return SamplingSettings(**chosen, num_samples=count, seed=seed, conditions=conditions, adaptive=adaptive)


def one_checkpoint(model: GenerativeModel, processes: Processes) -> None:
    """Raise :class:`InputError` where the processes of a launch have loaded different checkpoints of a run."""
    steps = sorted(set(processes.gather([model.step])))
    if len(steps) > 1:
        raise InputError(
            f"run {str(model.run.path)!r}: processes see different newest checkpoints, of steps "
            f"{' and '.join(map(str, steps))}; name one by --step"
        )


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
