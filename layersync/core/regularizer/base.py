"""The slot that every representation loss plugs into.

A regularizer registers its class under the entry-point group ``layersync.regularizers``; a recipe's ``regularizer``
section names it and holds its settings. It never touches the backbone: it says which block outputs it wants, and gets
them with everything else that one training step knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from layersync.core.adapter import BackboneOutput, Section
from layersync.core.errors import InputError
from layersync.core.interpolant import Interpolant
from layersync.core.plugin import GROUPS, Plugin, calling, class_of, load_class, registered, reported, signature

REGULARIZER_GROUP = GROUPS[1]


@dataclass(frozen=True)
class StepContext:
    """What a regularizer may look at in one micro-batch. Latents are shaped as the tokenizer says."""

    x1: Tensor
    x_t: Tensor
    t: Tensor
    features: Mapping[int, Tensor]
    """Block outputs (batch, tokens, channels) for the taps that were asked for."""
    token_mask: Tensor | None
    """(batch, tokens), True on real tokens; ``None`` when all are."""
    step: int
    ema_forward: Callable[..., BackboneOutput]
    """The averaged network on arguments of the backbone's own; costs a forward pass when called, nothing otherwise."""
    x0: Tensor
    """The noise in ``x_t``: with ``interpolant`` it gives the same sample at another time."""
    condition: Mapping[str, Tensor]
    """What the backbone was given, dropped conditions as "none"."""
    mask: Tensor | None
    """(batch, frames), True on real frames, as the backbone was given it."""
    interpolant: Interpolant


class RegularizerOutput(NamedTuple):
    """``loss``: float32 scalar, already weighted, added to the flow loss. ``logs``: scalars by name."""

    loss: Tensor
    logs: dict[str, Tensor]


class RegularizerConfig(Section):
    """The ``regularizer`` section of a recipe."""

    def check(self, depth: int) -> None:
        """Raise :class:`InputError` when the settings do not fit a backbone of ``depth`` blocks."""

    def check_batch(self, size: int) -> None:
        """Raise :class:`InputError` when ``size`` samples at once, those of all processes, are too few for the loss."""

    def warnings(self) -> list[str]:
        """One line for each setting that can have no effect where it stands."""
        return []


class Regularizer(nn.Module, ABC):
    """A loss on what the network thinks. Its own parameters, if any, are optimized and saved with the backbone's."""

    Config: ClassVar[type[RegularizerConfig]]

    @classmethod
    @abstractmethod
    def from_config(cls, config: RegularizerConfig, depth: int, hidden_size: int) -> Regularizer:
        """The regularizer for a backbone of ``depth`` blocks with tokens of ``hidden_size`` channels."""

    @abstractmethod
    def taps(self, step: int) -> tuple[int, ...]:
        """Blocks whose outputs are wanted at ``step``, numbered from 1."""

    @abstractmethod
    def forward(self, context: StepContext) -> RegularizerOutput:
        """Loss and logs of one micro-batch."""


class NoRegularizerConfig(RegularizerConfig):
    """The baseline: the flow loss alone."""

    name: str = "none"


class NoRegularizer(Regularizer):
    """The baseline: no taps, no loss."""

    Config = NoRegularizerConfig

    @classmethod
    def from_config(cls, config: RegularizerConfig, depth: int, hidden_size: int) -> NoRegularizer:  # noqa: D102
        return cls()

    def taps(self, step: int) -> tuple[int, ...]:  # noqa: D102
        return ()

    def forward(self, context: StepContext) -> RegularizerOutput:  # noqa: D102
        return RegularizerOutput(torch.zeros((), device=context.x_t.device), {})


@cache
def load_regularizer(name: str) -> type[Regularizer]:
    """The class registered as ``name``.

    Raises:
        InputError: for a name that no package registers, or several do, and for a plug-in that cannot be imported, is
            no :class:`Regularizer` or lacks a part of it. One line that names package, class and method.
    """
    plugin = load_class(REGULARIZER_GROUP, name, "regularizer.name")
    with reported(f"{plugin.owner}: reading its attributes"):
        return _checked(plugin)


def wanted_taps(regularizer: Regularizer, step: int, depth: int) -> tuple[int, ...]:
    """Its taps at ``step``. Raises :class:`InputError` for what are no blocks of a network of ``depth``."""
    with calling(regularizer, "taps"):
        found = regularizer.taps(step)
    whole = isinstance(found, Collection) and all(isinstance(tap, Integral) and 1 <= tap <= depth for tap in found)
    if not whole:
        wanted = f"block numbers from 1 to {depth}, such as (1, {depth})"
        raise InputError(f"{class_of(regularizer)}.taps: expected {wanted}; got {found!r}")
    return tuple(map(int, found))


def regularized(regularizer: Regularizer, context: StepContext) -> RegularizerOutput:
    """Its loss and logs. Raises :class:`InputError` for others than scalar tensors."""
    with calling(regularizer, "forward"):
        found = regularizer(context)
    where = f"{class_of(regularizer)}.forward"
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise InputError(f"{where}: expected a RegularizerOutput, a loss and logs by name; got {_described(found)}")
    for name, value in {"the loss": found[0], **{f"logs[{name!r}]": value for name, value in found[1].items()}}.items():
        if not (isinstance(value, Tensor) and value.ndim == 0):
            raise InputError(f"{where}, {name}: expected a scalar tensor; got {_described(value)}")
    return RegularizerOutput(*found)


def _described(value: object) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _checked(plugin: Plugin) -> type[Regularizer]:
    kind = plugin.loaded
    if not issubclass(kind, Regularizer):
        raise InputError(
            f"{plugin.owner}: {kind.__name__} is no subclass of layersync.core.regularizer.base.Regularizer"
        )
    for member in sorted(kind.__abstractmethods__):
        wanted = getattr(Regularizer, member)
        purpose = (wanted.__doc__ or "").splitlines()[0]
        raise InputError(f"{plugin.owner}: {kind.__name__}.{member} is missing, method {signature(wanted)}: {purpose}")
    config = getattr(kind, "Config", None)
    if not (isinstance(config, type) and issubclass(config, RegularizerConfig)):
        raise InputError(
            f"{plugin.owner}: {kind.__name__}.Config is {config!r}; it is the RegularizerConfig of its recipe section"
        )
    return kind


def installed_regularizers() -> tuple[dict[str, type[Regularizer]], dict[str, InputError]]:
    """Every regularizer that loads, and the error of every other, each by name and in alphabetical order."""
    kinds, broken = {}, {}
    for name in sorted(registered(REGULARIZER_GROUP)):
        try:
            kinds[name] = load_regularizer(name)
        except InputError as error:
            broken[name] = error
    return kinds, broken
