"""LayerSync (arXiv 2510.12581): shallow blocks learn from deeper blocks of the same network.

    L = L_flow - weight * mean_pairs mean_samples mean_tokens cos(z_student, stopgrad(z_teacher))

Three layers, each usable alone: :func:`alignment` is the similarity of two feature maps; :class:`LayerSync` the
weighted loss over pairs; :class:`LayerSyncRegularizer` puts it into the trainer's slot.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from layersync.core.adapter import Settings
from layersync.core.errors import InputError, complaint, nearest
from layersync.core.regularizer.base import Regularizer, RegularizerConfig, RegularizerOutput, StepContext

Pair = tuple[int, int]
Similarity = Literal["cosine", "centred"]
NORM_FLOOR = 1e-8
"""Vectors shorter than this have no direction: similarity 0, no gradient. Dividing by it would make that 1e8 times."""


def alignment(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, centred: bool = False) -> Tensor:
    """Mean cosine similarity over the real tokens of each sample: (batch,), float32 whatever the autocast.

    ``student`` and ``teacher`` are (batch, tokens, channels); ``mask`` (batch, tokens) is True on real tokens. What
    stands at the others, NaN included, reaches neither similarity nor gradient.
    ``centred`` removes each sample's mean over its real tokens first: with adaLN-Zero all blocks start as the
    identity, so that the plain cosine is near 1 long before anything has been learned.

    Raises:
        ValueError: for a mask of other values than 0 and 1. Of a bool mask nothing need be looked at.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        if mask is not None:
            mask = _boolean(mask)
            padded = ~mask.unsqueeze(-1)
            student, teacher = student.masked_fill(padded, 0), teacher.masked_fill(padded, 0)
        if centred:
            student, teacher = _centred(student, mask), _centred(teacher, mask)
        # F.cosine_similarity would hold on to a normalised copy of the teacher for its backward pass
        norms = [torch.linalg.vector_norm(side, dim=-1) for side in (student, teacher)]
        length = (norms[0] * norms[1]).masked_fill(torch.minimum(*norms) < NORM_FLOOR, math.inf)
        cosine = (student * teacher).sum(-1) / length
        if mask is None:
            return cosine.mean(1)
        real = mask.to(cosine.dtype)
        return (cosine * real).sum(1) / real.sum(1).clamp_min(1)


def _centred(features: Tensor, mask: Tensor | None) -> Tensor:
    """Without their mean; features are 0 where the mask is False."""
    if mask is None:
        return features - features.mean(1, keepdim=True)
    return features - features.sum(1, keepdim=True) / mask.sum(1)[:, None, None].clamp_min(1)


def _boolean(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    real = mask == 1
    if not bool((real | (mask == 0)).all()):
        raise ValueError(
            f"mask: holds {mask.min():g} to {mask.max():g}; it is True (or 1) on real tokens, and False (or 0) on "
            "others: of a mask that is added to attention pass mask == 0"
        )
    return real


def auto_pairs(depth: int) -> tuple[Pair, ...]:
    """The paper's depth fractions: 28 blocks give (8, 16), 12 give (4, 7). InputError for fewer than 3 blocks."""
    if depth < 3:
        raise InputError(f"regularizer.pairs: auto needs at least 3 blocks, the backbone has {depth}")
    student = round(0.3 * depth)
    return ((student, max(round(0.575 * depth), student + 1)),)


def check_pairs(pairs: Sequence[Sequence[int]], depth: int | None) -> tuple[Pair, ...]:
    """Pairs as tuples; InputError unless 1 <= student < teacher <= depth in each."""
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise InputError(f"regularizer.pairs: {pairs!r} is no list of [student, teacher] pairs of blocks, nor auto")
    if not pairs:
        raise InputError("regularizer.pairs: empty; give [student, teacher] pairs of blocks, or auto")
    last = f" of {depth} blocks" if depth else ""
    checked = []
    for pair in pairs:
        whole = isinstance(pair, Sequence) and all(isinstance(block, int) and block is not True for block in pair)
        if not whole or len(pair) != 2:
            raise InputError(f"regularizer.pairs: {pair!r} is no [student, teacher] pair of block numbers")
        student, teacher = pair
        if student < 1:
            raise InputError(f"regularizer.pairs: {list(pair)}: blocks are numbered from 1{last}")
        if student >= teacher:
            raise InputError(
                f"regularizer.pairs: {list(pair)}: the student must be shallower than the teacher, "
                f"1 <= student < teacher{last}"
            )
        if depth is not None and teacher > depth:
            raise InputError(f"regularizer.pairs: {list(pair)}: the backbone has only {depth} blocks")
        checked.append((int(student), int(teacher)))
    if len(set(checked)) < len(checked):
        raise InputError(f"regularizer.pairs: {[list(pair) for pair in checked]} names a pair twice")
    return tuple(checked)


class WeightSchedule(Settings):
    """Factor on the weight over training steps (from 0).

    0 for the first ``delay`` steps; then linearly up to 1 over ``warmup`` steps; 0 from ``stop`` on, reached along a
    cosine over the last ``decay`` steps before it. All left out: constant 1.
    """

    delay: int = Field(0, ge=0)
    warmup: int = Field(0, ge=0)
    decay: int = Field(0, ge=0)
    stop: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> WeightSchedule:
        if self.decay and self.stop is None:
            raise ValueError("decay needs stop, the step at which the weight has come down to 0")
        if self.stop is not None and self.delay + self.warmup + self.decay > self.stop:
            raise ValueError(f"delay + warmup + decay is beyond stop, {self.stop}")
        return self

    def factor(self, step: int) -> float:
        """In [0, 1]."""
        if step < self.delay or (self.stop is not None and step >= self.stop):
            return 0.0
        rise = min(1.0, (step - self.delay + 1) / self.warmup) if self.warmup else 1.0
        if self.stop is None or not self.decay or step < self.stop - self.decay:
            return rise
        return rise * 0.5 * (1 + math.cos(math.pi * (step - (self.stop - self.decay)) / self.decay))


def _schedule(given: object) -> WeightSchedule:
    if given is None or isinstance(given, WeightSchedule):
        return given or WeightSchedule()
    if not isinstance(given, Mapping):
        raise InputError(f"regularizer.schedule: {given!r} is no mapping of {', '.join(WeightSchedule.model_fields)}")
    try:
        return WeightSchedule.model_validate(dict(given))
    except ValidationError as failure:
        error = failure.errors()[0]
        path = ".".join(["regularizer.schedule", *map(str, error["loc"])])
        if error["type"] == "extra_forbidden":
            known = nearest(str(error["loc"][-1]), WeightSchedule.model_fields)
            raise InputError(f"{path}: unknown key; {known}") from None
        raise InputError(f"{path}: {complaint(error)}") from None


def _range(given: Any) -> tuple[float, float]:
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise InputError(f"regularizer.t_range: {given!r} is no range [from, to] within [0, 1]")
    return low, high


class LayerSyncOutput(NamedTuple):
    """``loss``: float32 scalar, already weighted. ``similarity``: mean over the batch of each pair, raw."""

    loss: Tensor
    similarity: dict[Pair, Tensor]


class LayerSync(nn.Module):
    """The LayerSync loss on a mapping of block outputs; in any training loop::

        sync = LayerSync(pairs=[(8, 16)], weight=0.2)
        loss = flow_loss + sync({8: h8, 16: h16}).loss

    Args:
        pairs: (student, teacher) block numbers from 1; ``"auto"`` for the paper's fractions of ``depth``.
        weight: at least 0; the paper's 0.2 (28 blocks) or 0.3 (12 blocks). 0 asks for nothing and gives exactly 0.
        depth: number of blocks, to check pairs against; needed for ``"auto"``.
        schedule: :class:`WeightSchedule`, a mapping of its fields, or ``None`` for a constant weight.
        t_range: samples whose t lies outside of it give no loss (they stay in the mean's denominator, so that
            a batch and its slices agree); needs ``t``.
        similarity: ``cosine``, or ``centred`` (each sample's token mean removed first).
        stop_gradient: False lets the gradient into the teacher too: the paper's ablation, in which quality does not
            improve.

    Raises:
        InputError: (a ValueError) for pairs, weights or ranges that make no sense.
    """

    def __init__(
        self,
        pairs: Sequence[Sequence[int]] | Literal["auto"] = "auto",
        weight: float = 0.2,
        *,
        depth: int | None = None,
        schedule: WeightSchedule | Mapping[str, Any] | None = None,
        t_range: tuple[float, float] = (0.0, 1.0),
        similarity: Similarity = "cosine",
        stop_gradient: bool = True,
    ):
        super().__init__()
        if not isinstance(pairs, str) or pairs != "auto":
            self.pairs = check_pairs(pairs, depth)
        elif depth is None:
            raise InputError("regularizer.pairs: auto needs depth, the number of blocks")
        else:
            self.pairs = auto_pairs(depth)
        if isinstance(weight, bool) or not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
            raise InputError(f"regularizer.weight: {weight} is not a number of at least 0")
        if similarity not in get_args(Similarity):
            raise InputError(f"regularizer.similarity: {similarity!r} is unknown; there are: cosine, centred")
        self.weight, self.t_range, self.similarity = float(weight), _range(t_range), similarity
        self.stop_gradient = stop_gradient
        self._seen_times = self._warned = False
        self.schedule = _schedule(schedule)

    def taps(self) -> tuple[int, ...]:
        """Blocks whose outputs :meth:`forward` needs; none when the weight is 0."""
        return tuple(sorted({block for pair in self.pairs for block in pair})) if self.weight else ()

    def extra_repr(self) -> str:  # noqa: D102
        return f"pairs={self.pairs}, weight={self.weight}, similarity={self.similarity}"

    def forward(
        self,
        features: Mapping[int, Tensor],
        *,
        t: Tensor | None = None,
        mask: Tensor | None = None,
        step: int | None = None,
    ) -> LayerSyncOutput:
        """Loss and raw similarity of each pair.

        ``features`` maps block numbers to (batch, tokens, channels); ``t`` (batch,) in [0, 1]; ``mask`` (batch,
        tokens) True on real tokens (another kind than bool is checked to hold 0 and 1, for which a GPU is waited for);
        ``step`` the training step, for the schedule. ValueError for shapes that do not fit each other, masks of other
        values, and when ``t`` or ``step`` is missing although ``t_range`` or ``schedule`` needs it; KeyError when a
        block's features are. Warns once where a loss that counts gives no gradient though gradient is recorded.
        """
        for student, teacher in self.pairs if self.weight else ():
            _check_fit(student, teacher, features, mask)
        factor = self.weight * self._factor(step)
        inside = self._inside(t, features) if self.weight else None
        total: Tensor | None = None
        similarity: dict[Pair, Tensor] = {}
        for student, teacher in self.pairs if self.weight else ():
            with torch.set_grad_enabled(torch.is_grad_enabled() and factor > 0):
                target = features[teacher].detach() if self.stop_gradient else features[teacher]
                per_sample = alignment(features[student], target, mask, centred=self.similarity == "centred")
                counted = per_sample if inside is None else per_sample * inside
                total = counted.mean() if total is None else total + counted.mean()
            raw = per_sample.detach()
            if self.similarity == "centred":
                with torch.no_grad():
                    raw = alignment(features[student].detach(), features[teacher].detach(), mask)
            similarity[(student, teacher)] = raw.mean()
        if total is None:
            device = next(iter(features.values())).device if features else None
            return LayerSyncOutput(torch.zeros((), device=device), similarity)
        if factor > 0 and torch.is_grad_enabled() and not (total.requires_grad or self._warned):
            self._warned = True
            warnings.warn(
                "LayerSync: no student's features require gradient (detached, frozen, or made under no_grad): the loss "
                "is a constant and trains nothing",
                stacklevel=4,  # through nn.Module's two calls
            )
        return LayerSyncOutput(total * (-factor / len(self.pairs)), similarity)

    def _factor(self, step: int | None) -> float:
        if self.schedule == WeightSchedule():
            return 1.0
        if step is None:
            raise ValueError("the weight has a schedule: pass step=")
        return self.schedule.factor(step)

    def _inside(self, t: Tensor | None, features: Mapping[int, Tensor]) -> Tensor | None:
        low, high = self.t_range
        if (low, high) == (0.0, 1.0):
            return None
        if t is None:
            raise ValueError(f"t_range is {self.t_range}: pass t=")
        batch = len(features[self.pairs[0][0]])
        if not isinstance(t, Tensor) or tuple(t.shape) != (batch,):
            got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"t: is {got}; t_range needs a tensor of the {batch} samples' times, shaped ({batch},)")
        if not self._seen_times and bool((t < 0).any() | (t > 1).any()):
            raise ValueError(f"t: {t.min():g} to {t.max():g}; times run from 0, noise, to 1, data: divide timesteps")
        self._seen_times = True
        return ((t >= low) & (t <= high)).float()


def _check_fit(student: int, teacher: int, features: Mapping[int, Tensor], mask: Tensor | None) -> None:
    shapes = [tuple(features[number].shape) for number in (student, teacher)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise ValueError(
            f"pair [{student}, {teacher}]: the blocks give {shapes[0]} and {shapes[1]} as (batch, tokens, channels), "
            "which have to be the same; of attached blocks let select= drop text tokens, or choose another pair"
        )
    if mask is not None and tuple(mask.shape) != shapes[0][:2]:
        raise ValueError(f"mask: {tuple(mask.shape)} is not (batch, tokens) of the blocks' outputs, {shapes[0][:2]}")


class LayerSyncConfig(RegularizerConfig):
    """The ``regularizer`` section for LayerSync; the keys are :class:`LayerSync`'s arguments."""

    name: Literal["layersync"] = "layersync"
    pairs: Literal["auto"] | list[Annotated[list[int], Field(min_length=2, max_length=2)]] = "auto"
    weight: float = Field(0.2, ge=0)
    schedule: WeightSchedule = WeightSchedule()
    t_range: tuple[float, float] = (0.0, 1.0)
    similarity: Similarity = "cosine"
    stop_gradient: bool = True

    def check(self, depth: int) -> None:  # noqa: D102
        self.build(depth)

    def build(self, depth: int) -> LayerSync:
        """The loss for a backbone of ``depth`` blocks. Raises :class:`InputError` where the settings do not fit."""
        return LayerSync(**self.model_dump(exclude={"name", "schedule"}), schedule=self.schedule, depth=depth)

    def warnings(self) -> list[str]:  # noqa: D102
        return ["regularizer.weight is 0: the run is a baseline run"] if self.weight == 0 else []


class LayerSyncRegularizer(Regularizer):
    """LayerSync in the trainer's slot. Logs ``similarity/STUDENT-TEACHER``."""

    Config = LayerSyncConfig

    def __init__(self, sync: LayerSync):
        super().__init__()
        self.sync = sync

    @classmethod
    def from_config(cls, config: RegularizerConfig, depth: int, hidden_size: int) -> LayerSyncRegularizer:  # noqa: D102
        assert isinstance(config, LayerSyncConfig)
        return cls(config.build(depth))

    def taps(self, step: int) -> tuple[int, ...]:  # noqa: D102
        return self.sync.taps()

    def forward(self, context: StepContext) -> RegularizerOutput:  # noqa: D102
        loss, similarity = self.sync(context.features, t=context.t, mask=context.token_mask, step=context.step)
        logs = {f"similarity/{student}-{teacher}": value for (student, teacher), value in similarity.items()}
        return RegularizerOutput(loss.to(context.x_t.device), logs)
