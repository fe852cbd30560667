"""What training a recipe costs, before any of it is there: no data, no weights, no accelerator.

FLOPs are counted by PyTorch over one forward and backward pass of one sample on the meta device, activations as what
autograd keeps of that pass; neither allocates anything. Hours follow from peak throughput and an assumed utilisation:
they are estimates, and say so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from layersync.core.adapter import BackboneOutput, ConditionSpec, DataFacts, LatentSpec
from layersync.core.errors import InputError
from layersync.core.recipe import Recipe
from layersync.core.regularizer.base import load_regularizer, wanted_taps
from layersync.core.text import TextEncoder

TEXT_CHANNELS = {"minilm": 384, "openai/clip-vit-base-patch32": 512}
"""Width of published text encoders, which need not be here (their ``config.json``: hidden_size, projection_dim)."""
BYTES = 4
"""Weights, gradients, optimizer state, averages and latents are float32."""
UTILISATION = 0.4
PEAK_FLOPS: dict[str, dict[str, float]] = {
    "A100": {"float32": 19.5e12, "tf32": 156e12, "bf16": 312e12},
    "H100": {"float32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12},
}
"""Dense FLOPs a second, without sparsity: NVIDIA's data sheets of A100 (80 GB SXM) and H100 (SXM5)."""


@dataclass(frozen=True)
class GpuTime:
    """An estimate: all training FLOPs at ``utilisation`` of the peak of ``count`` GPUs, linear in their number."""

    gpu: str
    count: int
    precision: str
    peak_flops: float
    utilisation: float
    gpu_hours: float
    days: float


@dataclass(frozen=True)
class Cost:
    """What ``layersync recipes show NAME --cost`` prints. Sizes are bytes, FLOPs count a multiply-add as two.

    ``num_examples`` and what follows from it are ``None`` where neither recipe nor caller say it.
    ``activation_bytes`` are those of one sample: times the samples that a device holds at once. ``cast_bytes``, of
    weights in bf16, are needed once.
    """

    parameters: int
    trained_parameters: int
    num_classes: int
    num_classes_known: bool
    latent_shape: tuple[int, ...]
    forward_flops_per_sample: int
    step_flops: int
    training_flops: int
    steps: int
    batch_size: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int
    cast_bytes: int
    checkpoint_bytes: int
    checkpoints: int
    latent_bytes: int
    num_variants: int
    whole_clips: bool
    num_examples: int | None
    latents_bytes: int | None
    epochs: float | None
    gpus: tuple[GpuTime, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "latent_shape": list(self.latent_shape)}


def cost(recipe: Recipe, *, num_examples: int | None = None, gpus: int = 8, utilisation: float = UTILISATION) -> Cost:
    """What training ``recipe`` needs.

    Args:
        recipe: its data and tokenizer are not opened.
        num_examples: size of the training split, where the recipe's data section does not say it.
        gpus: how many GPUs share the work.
        utilisation: share of the peak throughput that is reached, in (0, 1].

    Raises:
        InputError: for a tokenizer whose latents are not known without its weights, or a value out of range.
    """
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation: {utilisation} is not in (0, 1]")
    latent = recipe.tokenizer.latent_spec()
    if latent is None:
        raise InputError(
            f"tokenizer {recipe.tokenizer.name}: the shape of its latents is not known without its config; "
            f"give a tokenizer.path that is on this machine"
        )
    facts = recipe.data.facts()
    condition = _condition(recipe, facts)
    forward, both, parameters, trained = _count(recipe, latent, condition)
    activations = kept_of_one = _kept(recipe, latent, condition, 1)
    if _in_bf16(recipe):
        activations = _kept(recipe, latent, condition, 2) - kept_of_one
    train = recipe.train
    count = facts.num_examples if num_examples is None else num_examples
    channels = recipe.tokenizer.stored_channels() or latent.channels
    latent_bytes = BYTES * channels * math.prod(latent.grid)
    total = both * train.batch_size * train.steps
    return Cost(
        parameters=parameters,
        trained_parameters=trained,
        num_classes=condition.num_classes,
        num_classes_known=facts.num_classes is not None,
        latent_shape=latent.shape,
        forward_flops_per_sample=forward,
        step_flops=both * train.batch_size,
        training_flops=total,
        steps=train.steps,
        batch_size=train.batch_size,
        weight_bytes=BYTES * parameters,
        gradient_bytes=BYTES * trained,
        optimizer_bytes=2 * BYTES * trained,
        ema_bytes=BYTES * parameters,
        activation_bytes=activations,
        cast_bytes=kept_of_one - activations,
        checkpoint_bytes=BYTES * (2 * parameters + 2 * trained),
        checkpoints=train.num_kept(),
        latent_bytes=latent_bytes,
        num_variants=facts.num_variants,
        whole_clips=latent.variable,
        num_examples=count,
        latents_bytes=None if count is None or latent.variable else latent_bytes * count * facts.num_variants,
        epochs=None if count is None else train.steps * train.batch_size / count,
        gpus=tuple(_gpu_time(name, gpus, train.precision, total, utilisation) for name in PEAK_FLOPS),
    )


def _condition(recipe: Recipe, facts: DataFacts) -> ConditionSpec:
    chosen = recipe.condition
    encoder = chosen.text_encoder
    labels = chosen.labels == "required" or (chosen.labels == "auto" and encoder is None)
    channels = 0
    if encoder is not None:
        known = TEXT_CHANNELS.get(encoder)
        channels = known or TextEncoder(encoder, chosen.text_pooling, chosen.max_tokens).channels
    return ConditionSpec((facts.num_classes or 0) if labels else 0, channels)


def _count(recipe: Recipe, latent: LatentSpec, condition: ConditionSpec) -> tuple[int, int, int, int]:
    """FLOPs of one sample forward, and forward and backward; parameters, and those that are trained."""
    with torch.device("meta"):
        backbone, run = _backbone(recipe, latent, condition)
        with FlopCounterMode(display=False) as counter:
            out = run(1)
            forward = counter.get_total_flops()
            out.prediction.square().mean().backward()
    parameters = list(backbone.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return forward, counter.get_total_flops(), sum(p.numel() for p in parameters), trained


def _in_bf16(recipe: Recipe) -> bool:
    return recipe.train.precision in ("auto", "bf16")


def _kept(recipe: Recipe, latent: LatentSpec, condition: ConditionSpec, samples: int) -> int:
    """Bytes that autograd keeps of a forward pass, weights not counted, but for their copies in bf16.

    Run on fake CPU tensors rather than on meta ones, whose attention is not the fused kernel and would keep a matrix
    of tokens by tokens for each head.
    """
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.device("meta"):  # made here: a fake module that copies its layers has tensors of two fake modes
        backbone, run = _backbone(recipe, latent, condition)
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone.to_empty(device="cpu")
        own = {parameter.untyped_storage()._cdata for parameter in backbone.parameters()}
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=_in_bf16(recipe), cache_enabled=False),
        ):
            out = run(samples)
        del out
        return sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in own)


def _backbone(
    recipe: Recipe, latent: LatentSpec, condition: ConditionSpec
) -> tuple[nn.Module, Callable[[int], BackboneOutput]]:
    """The network on the current device, and a pass of so many samples through it with the regularizer's taps."""
    backbone = recipe.adapter.backbone(recipe.backbone, latent, condition).train()
    depth, hidden = backbone.depth, int(getattr(recipe.backbone, "hidden_size", 0))
    regularizer = load_regularizer(recipe.regularizer.name).from_config(recipe.regularizer, depth, hidden)
    if recipe.train.gradient_checkpointing and hasattr(backbone, "gradient_checkpointing"):
        setattr(backbone, "gradient_checkpointing", True)  # noqa: B010

    def run(samples: int) -> BackboneOutput:
        x_t, t = torch.zeros(samples, *latent.shape), torch.zeros(samples)
        given = {"label": torch.zeros(samples, dtype=torch.long)} if condition.num_classes else {}
        if condition.text_channels:
            length = 1 if recipe.condition.text_pooling == "pooled" else recipe.condition.max_tokens
            given["text"] = torch.zeros(samples, length, condition.text_channels)
            given["text_mask"] = torch.ones(samples, length, dtype=torch.bool)
        mask = torch.ones(samples, latent.num_frames, dtype=torch.bool) if latent.num_frames else None
        taps = wanted_taps(regularizer, recipe.train.steps - 1, depth)
        out: BackboneOutput = backbone(x_t, t, given, taps=taps, mask=mask)
        return out

    return backbone, run


def _gpu_time(gpu: str, count: int, precision: str, flops: int, utilisation: float) -> GpuTime:
    kind = "bf16" if precision == "auto" else precision
    peak = PEAK_FLOPS[gpu][kind]
    hours = flops / (peak * utilisation) / 3600
    return GpuTime(gpu, count, kind, peak, utilisation, hours, hours / count / 24)


def cost_table(found: Cost) -> str:
    """The cost for people, one thing a line."""
    state = found.weight_bytes + found.gradient_bytes + found.optimizer_bytes + found.ema_bytes
    classes = f"{found.num_classes} classes" if found.num_classes_known else "classes not known without the data: none"
    per = "window; whole clips are stored" if found.whole_clips else "example"
    variants = f" in {found.num_variants} variants" if found.num_variants > 1 else ""
    disk = f"{_size(found.latent_bytes * found.num_variants)} an {per}" if per == "example" else ""
    disk = disk or f"{_size(found.latent_bytes)} a {per}"
    if found.latents_bytes is not None:
        disk = f"{_size(found.latents_bytes)} for {found.num_examples:,} examples{variants}"
    elif found.num_examples is None:
        disk += "; say --num-examples for the whole"
    epochs = "" if found.epochs is None else f", {found.epochs:,.1f} epochs"
    shape = "x".join(map(str, found.latent_shape))
    casts = f", {_size(found.cast_bytes)} once for weights in bf16" if found.cast_bytes else ""
    rows = [
        ("parameters", f"{found.parameters / 1e6:,.2f} M ({classes}; latents {shape})"),
        ("forward", f"{_flops(found.forward_flops_per_sample)} a sample"),
        ("step", f"{_flops(found.step_flops)} forward and backward, {found.batch_size} samples"),
        ("training", f"{_flops(found.training_flops)} in {found.steps:,} steps{epochs}"),
        ("memory", f"{_size(state)} for weights, gradients, AdamW and average, on each GPU"),
        (
            "activations",
            f"{_size(found.activation_bytes)} a sample on the GPU at once, kept for the backward pass{casts}",
        ),
        ("checkpoint", f"{_size(found.checkpoint_bytes)}, {found.checkpoints} of them"),
        ("latents", disk),
    ]
    for gpu in found.gpus:
        rows.append(
            (
                f"{gpu.count} {gpu.gpu}",
                f"{gpu.gpu_hours:,.4g} GPU-hours, {gpu.days:,.3g} days: an estimate, at {gpu.utilisation:.0%} of "
                f"{gpu.peak_flops / 1e12:g} TFLOPS {gpu.precision}",
            )
        )
    return "\n".join(f"{name:12} {text}" for name, text in rows)


def _flops(count: int) -> str:
    exponent = min(max(math.floor(math.log10(count)) // 3, 2), 6)
    return f"{count / 1000**exponent:,.4g} {['M', 'G', 'T', 'P', 'E'][exponent - 2]}FLOPs"


def _size(count: int) -> str:
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.4g} {unit}"
    return f"{count} bytes"
