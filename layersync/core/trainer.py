"""The training loop. One step reads top to bottom in :meth:`Trainer.train_step`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from layersync.core.adapter import Backbone, BackboneOutput, ExampleDataset, Tokenizer, read_example, to_device
from layersync.core.checkpoint import (
    check_fit,
    check_partial_fit,
    check_source,
    find_weights,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    read_state,
    read_tensors,
    save_checkpoint,
)
from layersync.core.condition import batch_condition, drop_condition
from layersync.core.device import float32_products, take_own_device
from layersync.core.draws import module_seed, step_draws
from layersync.core.ema import WeightAverage
from layersync.core.errors import InputError, TrainingError
from layersync.core.interpolant import Interpolant, training_times
from layersync.core.latents import LatentCache, cache_key
from layersync.core.parallel import PATIENCE
from layersync.core.plugin import calling, class_of
from layersync.core.probe import Probe, flow_loss
from layersync.core.recipe import Recipe
from layersync.core.regularizer.base import Regularizer, StepContext, load_regularizer, regularized, wanted_taps
from layersync.core.regularizer.layersync import LayerSyncConfig, Pair, auto_pairs
from layersync.core.run import DataSummary, Run
from layersync.core.text import TextEncoder, TextTable

PROBE_SIZE = 256
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What a launcher may be configured to, and is not supported: it changes who holds which weights."""
CAPTIONS_LOOKED_FOR = 16
"""Samples that are read before any is tokenized, where the recipe wants texts."""


class StepLosses(NamedTuple):
    """Float32 scalars of one micro-batch; ``logs`` are the regularizer's."""

    flow: Tensor
    regularizer: Tensor
    logs: dict[str, Tensor]


class FlowMatching(nn.Module):
    """Backbone and regularizer as one module, so that one forward pass under DDP covers both."""

    def __init__(self, backbone: Backbone, regularizer: Regularizer, interpolant: Interpolant, frame_axis: int):
        super().__init__()
        self.backbone, self.regularizer = backbone, regularizer
        self.interpolant, self.frame_axis = interpolant, frame_axis

    def forward(
        self,
        x1: Tensor,
        x0: Tensor,
        t: Tensor,
        condition: Mapping[str, Tensor],
        mask: Tensor | None,
        step: int,
        ema_forward: Any,
    ) -> StepLosses:
        """Losses of a micro-batch: ``x1`` data and ``x0`` noise as latents, ``t`` (batch,)."""
        x_t, target = self.interpolant.sample(x1, x0, t)
        taps = wanted_taps(self.regularizer, step, self.backbone.depth)
        with calling(self.backbone, "forward"):
            out: BackboneOutput = self.backbone(x_t, t, condition, taps=taps, mask=mask)
        per_sample = flow_loss(out.prediction, target, mask, self.frame_axis) * self.interpolant.loss_weight(t)
        context = StepContext(
            x1, x_t, t, out.features, out.token_mask, step, ema_forward, x0, condition, mask, self.interpolant
        )
        return StepLosses(per_sample.mean(), *regularized(self.regularizer, context))


@dataclass
class Parts:
    """What a recipe is made into before its first step."""

    tokenizer: Tokenizer
    cache: LatentCache
    held_out: LatentCache | None
    data: DataSummary
    texts: TextTable | None = None


def build_parts(
    recipe: Recipe,
    *,
    limit: int | None = None,
    directory: Path | None = None,
    fresh: bool = True,
    check: Callable[[DataSummary], None] | None = None,
) -> Parts:
    """Data, tokenizer, latents and texts. Warns of examples without a text where texts are read.

    ``check`` is given what the data is found to be, and raises for what it refuses.

    Raises :class:`InputError` for data that cannot be had or read and, of a ``fresh`` run, for weights to start from
    that do not fit: before anything is tokenized, as ``check`` does.
    """
    adapter = recipe.adapter
    take_own_device()
    dataset = adapter.dataset(recipe.data, recipe.data.split)
    if len(dataset) == 0:
        raise InputError(f"data {recipe.data.name}: split {recipe.data.split} is empty")
    tokenizer = adapter.tokenizer(recipe.tokenizer)
    encoder = _text_encoder(recipe, dataset)
    summary = _summary(recipe, dataset, tokenizer, encoder)
    if check is not None:
        check(summary)
    check_network(recipe, tokenizer, summary, fresh=fresh)  # before anything is tokenized
    cache = LatentCache.open(dataset, tokenizer, limit=limit, directory=directory)
    with calling(tokenizer, "fit"):
        tokenizer.fit(cache.clips())
    held_out = None
    if recipe.data.split == "train":
        test = adapter.dataset(recipe.data, "test")
        if len(test):
            held_out = LatentCache.open(test, tokenizer, limit=limit, directory=directory)
    texts = None
    if encoder is not None:  # which is let go here: no text encoder stays in memory during training
        if limit is None:
            _warn_of_captions(recipe, cache)
        captions = [caption for part in (cache, held_out) if part is not None for of in part.captions for caption in of]
        texts = TextTable.of(encoder, captions, kept=directory is None)
    return Parts(tokenizer, cache, held_out, replace(summary, num_examples=len(cache)), texts)


def check_launch(recipe: Recipe) -> None:
    """Raise :class:`InputError` where the processes that a launcher started cannot share the training of ``recipe``."""
    for what in SHARDED:
        if os.environ.get(f"ACCELERATE_USE_{what}", "").lower() in ("1", "true"):
            raise InputError(
                f"accelerate: {what} is not supported, processes share the batch alone; configure no {what}"
            )
    if "LOCAL_RANK" in os.environ:  # else there is no launch, whatever else is set
        micro_batch(recipe, int(os.environ.get("WORLD_SIZE", "1")))


def micro_batch(recipe: Recipe, processes: int) -> int:
    """Samples that each of ``processes`` takes at once. Raises :class:`InputError` where the batch does not divide."""
    size, accumulate = recipe.train.batch_size, recipe.train.accumulate
    if size % (accumulate * processes):
        raise InputError(
            f"train.batch_size: {size} is no multiple of accumulate x processes, {accumulate} x {processes}"
        )
    return size // (accumulate * processes)


def check_network(recipe: Recipe, tokenizer: Tokenizer, data: DataSummary, *, fresh: bool = True) -> int:
    """Depth of the network that ``recipe`` trains on latents of ``tokenizer``. Allocates no weights.

    Raises :class:`InputError` where backbone, regularizer, guidance or, of a ``fresh`` run, weights to start from do
    not fit.
    """
    channels = recipe.sample.guidance_channels
    if channels is not None and channels > tokenizer.latent.channels:
        raise InputError(f"sample.guidance_channels: {channels}, the latents have {tokenizer.latent.channels}")
    with torch.device("meta"):
        backbone = recipe.adapter.backbone(recipe.backbone, tokenizer.latent, data.condition)
    with calling(recipe.regularizer, "check"):
        recipe.regularizer.check(backbone.depth)
    if recipe.train.gradient_checkpointing and not hasattr(backbone, "gradient_checkpointing"):
        raise InputError("train.gradient_checkpointing: this backbone has none")
    if recipe.train.init and fresh:
        source = find_weights(recipe.train.init)
        partly = recipe.train.init_partly
        check_source(source, tokenizer, partly=partly)
        check = check_partial_fit if partly else check_fit
        check(backbone, read_tensors(source), source)
    return backbone.depth


def _text_encoder(recipe: Recipe, dataset: ExampleDataset) -> TextEncoder | None:
    condition = recipe.condition
    if condition.text_encoder is None:
        return None
    if not _has_captions(dataset):
        raise InputError(
            f"condition.text_encoder: data {recipe.data.name} has no captions (looked at {CAPTIONS_LOOKED_FOR} "
            f"samples, spread over it); leave it out, or give captions"
        )
    encoder = TextEncoder(condition.text_encoder, condition.text_pooling, condition.max_tokens)
    encoder.check()  # one that cannot run is found here, not when all the data is tokenized
    return encoder


def _has_captions(dataset: ExampleDataset) -> bool:
    """Whether one of a few samples has a text; those that cannot be read are passed over where the data says so.

    They are spread over the data: a class whose folder comes first may have none.
    """
    count = min(CAPTIONS_LOOKED_FOR, len(dataset))
    looked_at = (read_example(dataset, number * len(dataset) // count) for number in range(count))
    return any(any(example.captions) for example in looked_at if example is not None)


def _warn_of_captions(recipe: Recipe, cache: LatentCache) -> None:
    """Say how many examples have no text."""
    if without := sum(not any(captions) for captions in cache.captions):
        warnings.warn(
            f"{without} of {len(cache)} examples of data {recipe.data.name} have no text, and are trained without one",
            stacklevel=3,
        )


def _summary(recipe: Recipe, dataset: ExampleDataset, tokenizer: Tokenizer, encoder: TextEncoder | None) -> DataSummary:
    labels, classes = recipe.condition.labels, tuple(dataset.classes)
    if unnamed := [name for name in classes if not isinstance(name, str)]:
        raise InputError(
            f"{class_of(dataset)}.classes: expected names, strings all; got {unnamed[0]!r} of data {recipe.data.name}"
        )
    if labels == "required" and not classes:
        raise InputError(f"condition.labels: required, and data {recipe.data.name} has none")
    used = labels == "required" or (labels == "auto" and encoder is None)
    text = (0, "") if encoder is None else (encoder.channels, encoder.fingerprint)
    return DataSummary(cache_key(dataset, tokenizer), len(dataset), classes, tokenizer.latent, used, *text)


def choose_precision(device: torch.device, wanted: str) -> tuple[torch.dtype, str]:
    """The training dtype and the reason for it: bf16 where the processor computes in it."""
    if wanted == "tf32":
        cuda = device.type == "cuda"
        return torch.float32, "the recipe says so, with TF32 products" if cuda else "TF32 is for CUDA devices alone"
    if wanted != "auto":
        return {"bf16": torch.bfloat16, "float32": torch.float32}[wanted], "the recipe says so"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        what = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        what = "this processor"
    else:
        native, what = False, f"a {device.type} device"
    return (torch.bfloat16, f"{what} computes in bf16") if native else (torch.float32, f"{what} has no bf16")


def prepares_ahead(device: torch.device) -> bool:
    """Whether a batch is prepared while the one before it is trained on: where that is not the same processor."""
    return device.type != "cpu"


class MicroBatch(NamedTuple):
    """Samples, noise, times, condition and mask of real frames, on the CPU."""

    x1: Tensor
    x0: Tensor
    t: Tensor
    condition: dict[str, Tensor]
    mask: Tensor | None


class Trainer:
    """Trains one recipe in one run directory; made by :func:`train`."""

    def __init__(self, recipe: Recipe, parts: Parts, *, fresh: bool = True, precision: str | None = None):
        """``precision`` is that of a run that goes on, where it is not to be chosen anew."""
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        self.recipe, self.parts = recipe, parts
        # Without being told of the CPU, accelerate takes every process that torchrun starts there for the only one; and
        # without being told of precision and compiler, it takes its launcher's, inside of ours.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no",
            dynamo_backend="no",
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=PATIENCE),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # else gradients are held twice
            ],
        )
        self.device: torch.device = self.accelerator.device
        self.dtype, self.precision_reason = choose_precision(self.device, recipe.train.precision)
        if precision is not None and precision != str(self.dtype).removeprefix("torch."):
            warnings.warn(f"goes on in {precision}, in which it began; {self.precision_reason}", stacklevel=3)
            self.dtype, self.precision_reason = getattr(torch, precision), "the run began in it"
        self.interpolant = recipe.objective.build()
        self.micro_batch = micro_batch(recipe, self.accelerator.num_processes)

        torch.manual_seed(recipe.seed)
        backbone = recipe.adapter.backbone(recipe.backbone, parts.data.latent, parts.data.condition)
        depth, hidden = backbone.depth, int(getattr(recipe.backbone, "hidden_size", 0))
        self.pairs: tuple[Pair, ...] = probe_pairs(recipe, depth)
        kind = load_regularizer(recipe.regularizer.name)
        with calling(kind, "from_config"):
            regularizer = kind.from_config(recipe.regularizer, depth, hidden)
        wanted_taps(regularizer, 0, depth)  # what is wrong with it is found before a run is made
        if recipe.train.init and fresh:
            source = find_weights(recipe.train.init)
            load_weights(backbone, read_tensors(source), source, partly=recipe.train.init_partly)
        if recipe.train.gradient_checkpointing:
            setattr(backbone, "gradient_checkpointing", True)  # noqa: B010
        self.backbone, self.regularizer = backbone.to(self.device), regularizer.to(self.device)
        if recipe.train.compile:
            self.backbone.compile()
        model = FlowMatching(self.backbone, self.regularizer, self.interpolant, parts.data.latent.frame_axis)
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        settings = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            list(self.names), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.ema = WeightAverage(self.backbone.parameters(), recipe.train.ema_decay, ramp=recipe.train.ema_ramp)
        # DDP is to take the GPU of the weights: where each process sees one alone, it is not that of its local rank.
        os.environ.setdefault("ACCELERATE_BYPASS_DEVICE_MAP", "true")
        self.model = self.accelerator.prepare_model(model)
        self.probe = self._make_probe()
        self._threads = ThreadPoolExecutor(1) if prepares_ahead(self.device) else None
        self._ahead: tuple[tuple[int, int], Future[MicroBatch]] | None = None

    def _make_probe(self) -> Probe:
        parts = self.parts
        cache = parts.held_out or parts.cache
        return Probe.make(cache, parts.tokenizer, parts.data.condition, parts.texts, PROBE_SIZE, self.device)

    def train_step(self, step: int) -> dict[str, Tensor]:
        """Take step ``step`` (from 0) and return its losses, detached. TrainingError when they are not finite."""
        train = self.recipe.train
        rank, accumulate = self.accelerator.process_index, train.accumulate
        totals: dict[str, Tensor] = {}
        for micro in range(accumulate):
            given = self._given(step, micro)
            x1, x0, t = (part.to(self.device) for part in (given.x1, given.x0, given.t))
            mask = None if given.mask is None else given.mask.to(self.device)
            condition = to_device(given.condition, self.device)
            torch.manual_seed(module_seed(self.recipe.seed, step, rank, micro))
            last = micro == accumulate - 1
            with float32_products(tf32=train.precision == "tf32"):
                with nullcontext() if last else self.accelerator.no_sync(self.model), self.autocast():
                    losses = self.model(x1, x0, t, condition, mask, step, self.ema_forward)
                ((losses.flow + losses.regularizer) / accumulate).backward()
            found = {"flow_loss": losses.flow, "regularizer_loss": losses.regularizer, **losses.logs}
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / accumulate
        totals["grad_norm"] = self._finite_norm(step, totals)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.rate(step, train.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.backbone.parameters())
        return totals

    def _given(self, step: int, micro: int) -> MicroBatch:
        """What a micro-batch is trained on. Where the accelerator computes, the next one is prepared meanwhile."""
        if self._threads is None:
            return self._prepare(step, micro)
        ahead, self._ahead = self._ahead, None
        ready = ahead[1].result() if ahead is not None and ahead[0] == (step, micro) else self._prepare(step, micro)
        train = self.recipe.train
        later = (step, micro + 1) if micro + 1 < train.accumulate else (step + 1, 0)
        if later[0] < train.steps:
            self._ahead = later, self._threads.submit(self._prepare, *later)
        return ready

    def _prepare(self, step: int, micro: int) -> MicroBatch:
        """On the CPU, from draws that are counted: whoever calls it, and whenever."""
        train, parts = self.recipe.train, self.parts
        first = (self.accelerator.process_index * train.accumulate + micro) * self.micro_batch
        draws = step_draws(
            self.recipe.seed,
            step,
            train.batch_size,
            slice(first, first + self.micro_batch),
            len(parts.cache),
            parts.data.latent,
            posterior=parts.tokenizer.stochastic,
        )
        batch = parts.cache.read(draws)
        with calling(parts.tokenizer, "latents"):
            x1 = parts.tokenizer.latents(batch.stored, draws.posterior)
        condition = batch_condition(batch, parts.data.condition, parts.texts)
        condition = drop_condition(condition, draws.drop < train.condition_dropout, parts.data.condition)
        return MicroBatch(x1, draws.noise, self._times(draws.uniform_time), condition, batch.mask)

    def _times(self, uniform: Tensor) -> Tensor:
        objective = self.recipe.objective
        t = training_times(
            uniform, objective.time, mean=objective.time_mean, std=objective.time_std, shift=objective.shift
        )
        return self.interpolant.training_time(t)

    def _finite_norm(self, step: int, totals: Mapping[str, Tensor]) -> Tensor:
        limit = self.recipe.optimizer.clip
        norm = nn.utils.clip_grad_norm_(list(self.names), math.inf if limit is None else limit)
        if not bool(torch.isfinite(norm + totals["flow_loss"] + totals["regularizer_loss"])):
            raise TrainingError(
                f"step {step + 1}: the loss is no longer finite (flow {float(totals['flow_loss'])}, regularizer "
                f"{float(totals['regularizer_loss'])}, gradient norm {float(norm)}); checkpoints so far are kept"
            )
        return norm.detach()

    def autocast(self) -> torch.autocast:
        """The training precision as a context."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def ema_forward(self, *arguments: Any, **keywords: Any) -> BackboneOutput:
        """The averaged network on the backbone's own arguments, without gradient."""
        with torch.no_grad(), calling(self.backbone, "forward"):
            return functional_call(self.backbone, self._averaged(), arguments, keywords)

    def _averaged(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.backbone.named_parameters()]
        return dict(zip(names, self.ema.tensors, strict=True))

    def _averaged_under_every_name(self) -> dict[str, Tensor]:
        """With those that tied weights have beside the first."""
        averages = {id(own): average for own, average in zip(self.backbone.parameters(), self.ema.tensors, strict=True)}
        named = self.backbone.named_parameters(remove_duplicate=False)
        return {name: averages[id(parameter)] for name, parameter in named}

    def measure(self) -> dict[str, Any]:
        """Held-out flow loss by bins of t and the similarity of the pairs, of the averaged network in float32."""
        training = self.backbone.training
        self.backbone.eval()
        # Compiled for other batches first, the network would be trained by kernels for batches of any size.
        with torch.compiler.set_stance("force_eager") if self.recipe.train.compile else nullcontext():
            by_t = self.probe.held_out_loss(self.ema_forward, self.interpolant)
            similarity = self.probe.similarity(self.ema_forward, self.interpolant, self.pairs) if self.pairs else {}
        self.backbone.train(training)
        return {
            "held_out_loss": sum(by_t) / len(by_t),
            "held_out_loss_by_t": by_t,
            "held_out_split": "train" if self.parts.held_out is None else "test",
            "held_out_similarity": similarity,
        }

    def save(self, run: Run, step: int, seconds: float, *, interrupted: bool = False) -> None:
        """Write the checkpoint of ``step`` steps taken, on the main process; of an interruption, until the next one."""
        if self.accelerator.is_main_process:
            tensors: dict[str, Mapping[str, Tensor]] = {
                "model": self.backbone.state_dict(),
                "ema": {**self.backbone.state_dict(), **self._averaged_under_every_name()},
                "optimizer": optimizer_tensors(self.optimizer, self.names),
            }
            if any(True for _ in self.regularizer.parameters()):
                tensors["regularizer"] = self.regularizer.state_dict()
            state = {"step": step, "seconds": seconds, "interrupted": interrupted}
            train = self.recipe.train
            save_checkpoint(run.checkpoint(step), tensors, state, train.keep, train.keep_every)
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path) -> tuple[int, float]:
        """Take over a checkpoint: weights, averages, optimizer. Returns steps taken and seconds spent."""
        state = read_state(checkpoint)
        load_weights(self.backbone, read_tensors(checkpoint / "model.safetensors"), checkpoint)
        averaged = read_tensors(checkpoint / "ema.safetensors")
        check_fit(self.backbone, averaged, checkpoint / "ema.safetensors")
        names = [name for name, _ in self.backbone.named_parameters()]
        self.ema.tensors = [averaged[name].to(self.device) for name in names]
        self.ema.steps = state["step"]
        load_optimizer(self.optimizer, read_tensors(checkpoint / "optimizer.safetensors"), self.names)
        if any(True for _ in self.regularizer.parameters()):
            load_weights(self.regularizer, read_tensors(checkpoint / "regularizer.safetensors"), checkpoint)
        return state["step"], state["seconds"]


def probe_pairs(recipe: Recipe, depth: int) -> tuple[Pair, ...]:
    """Pairs whose similarity is measured: the recipe's own, the paper's for a baseline, none for shallow networks."""
    if isinstance(recipe.regularizer, LayerSyncConfig):
        return recipe.regularizer.build(depth).pairs
    return auto_pairs(depth) if depth >= 3 else ()
