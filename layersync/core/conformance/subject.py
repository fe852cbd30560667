"""The adapter under examination, its parts made once on a few samples of a recipe; faults that say where."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import (
    Backbone,
    BackboneOutput,
    ConditionSpec,
    Example,
    ExampleDataset,
    ModalityAdapter,
    Split,
    Tokenizer,
)
from layersync.core.classifier import Windows
from layersync.core.condition import drop_condition
from layersync.core.draws import StepDraws, generator
from layersync.core.errors import InputError
from layersync.core.latents import LatentCache
from layersync.core.plugin import FAILURES, PluginError, raised
from layersync.core.recipe import Recipe

NUM_EXAMPLES = 16
BATCH = 6
NUM_WINDOWS = 48
TEXT_CHANNELS = 16
TEXT_TOKENS = 5
PERTURBATION = 0.05
"""Deviation of what is added to every weight: at their initialisation adaLN-Zero networks are the identity and have a
prediction of zero, on which nothing could be seen."""

Made = TypeVar("Made")


class Fault(InputError):
    """The adapter does not do what the core asks. One line: class and method, what was expected, what came."""


class NotApplicable(Exception):
    """A check has nothing to look at in this modality; the message says why."""


class Kept(Generic[Made]):
    """An attribute made on first use; the fault of an attempt is kept too, so that it is raised again unchanged."""

    def __init__(self, make: Callable[[Any], Made]):
        self.make, self.__doc__ = make, make.__doc__
        self.name = make.__name__

    @overload
    def __get__(self, subject: None, owner: type) -> Kept[Made]: ...
    @overload
    def __get__(self, subject: object, owner: type) -> Made: ...
    def __get__(self, subject: object, owner: type) -> Kept[Made] | Made:
        if subject is None:
            return self
        kept = vars(subject).setdefault("_kept", {})
        if self.name not in kept:
            try:
                kept[self.name] = self.make(subject)
            except Fault as fault:
                kept[self.name] = fault
        found = kept[self.name]
        if isinstance(found, Fault):
            raise found
        return found


def at(thing: object, method: str = "") -> str:
    """Where to look: module, class and method of ``thing``."""
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}{'.' if method else ''}{method}"


@contextmanager
def calling(where: str) -> Iterator[None]:
    """Turn whatever is raised inside into a :class:`Fault` of ``where``, with the line that raised it."""
    try:
        yield
    except (Fault, NotApplicable):
        raise
    except FAILURES as error:
        raise Fault(f"{where}: raised {raised(error)}") from error


def expect(holds: bool, where: str, expected: str, came: str) -> None:
    """Raise a :class:`Fault` of ``where`` unless ``holds``."""
    if not holds:
        raise Fault(f"{where}: expected {expected}; got {' '.join(came.split())}")


def same(a: Any, b: Any) -> bool:
    """Whether two samples are equal to the last bit, whatever they are made of."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if type(a).__eq__ is object.__eq__ and hasattr(a, "__dict__"):
        return same(vars(a), vars(b))
    return bool(a == b)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference over that of ``wanted``; infinite where something is not finite."""
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    found, wanted = found.detach().double(), wanted.detach().double()
    size = float(wanted.square().mean().sqrt())
    return float((found - wanted).square().mean().sqrt()) / max(size, 1e-12)


def readable(dataset: ExampleDataset, indices: Sequence[int]) -> list[tuple[int, Example]]:
    """The examples at ``indices``, without those that the data says to skip."""
    found = []
    for index in indices:
        with calling(f"{at(dataset, '__getitem__')}({index})"):
            try:
                example = dataset[index]
            except InputError as error:
                if dataset.on_error == "skip" and not isinstance(error, PluginError):
                    continue
                raise
        expect(
            isinstance(example, Example), f"{at(dataset, '__getitem__')}({index})", "an Example", repr(type(example))
        )
        found.append((index, example))
    return found


def spread(size: int, count: int) -> list[int]:
    """``count`` of the indices below ``size``, evenly spread; all where there are fewer."""
    return sorted({int(index) for index in np.linspace(0, size - 1, min(size, count))}) if size else []


class Batch(NamedTuple):
    """Latents (batch, ...), their frame mask, and what the backbone is given beside them."""

    x1: Tensor
    stored: Tensor
    mask: Tensor | None
    posterior: Tensor | None
    condition: dict[str, Tensor]
    x_t: Tensor
    t: Tensor


class _Some(ExampleDataset):
    """A few examples of a data set, as a data set."""

    def __init__(self, dataset: ExampleDataset, indices: Sequence[int]):
        self.dataset, self.indices = dataset, list(indices)
        self.fingerprint, self.classes, self.on_error = f"{dataset.fingerprint} {indices}", dataset.classes, "stop"
        self.variants, self.reference_variants = dataset.variants, dataset.reference_variants

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.dataset[self.indices[index]]

    def variant(self, sample: Any, name: str) -> Any:
        return self.dataset.variant(sample, name)


class Subject:
    """What the checks look at. Every part is made when it is first asked for; all randomness is counted."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.adapter: ModalityAdapter = recipe.adapter

    def where(self, method: str) -> str:
        """A method of the adapter, for messages."""
        return at(self.adapter, method)

    def dataset(self, split: Split) -> ExampleDataset:
        """A new data set of the recipe's ``data`` section."""
        with calling(f"{self.where('dataset')}(data, {split!r})"):
            found = self.adapter.dataset(self.recipe.data, split)
        expect(isinstance(found, ExampleDataset), self.where("dataset"), "an ExampleDataset", repr(type(found)))
        return found

    def new_tokenizer(self) -> Tokenizer:
        """A tokenizer of the recipe's section, not fitted."""
        with calling(self.where("tokenizer")):
            found = self.adapter.tokenizer(self.recipe.tokenizer)
        expect(isinstance(found, Tokenizer), self.where("tokenizer"), "a Tokenizer", repr(type(found)))
        return found

    @Kept
    def train(self) -> ExampleDataset:
        """The training split."""
        return self.dataset("train")

    @Kept
    def test(self) -> ExampleDataset:
        """The held-out split; may be empty."""
        return self.dataset("test")

    @Kept
    def examples(self) -> list[tuple[int, Example]]:
        """Some of the training split, with their indices."""
        with calling(at(self.train, "__len__")):
            size = len(self.train)
        expect(size > 0, at(self.train, "__len__"), "examples in the training split", f"{size}")
        found = readable(self.train, spread(size, NUM_EXAMPLES))
        expect(len(found) > 1, at(self.train, "__getitem__"), "examples that can be read", f"{len(found)} of {size}")
        return found

    @Kept
    def stored(self) -> list[Tensor]:
        """The stored form of :attr:`examples`, by a tokenizer that is not fitted."""
        tokenizer = self.new_tokenizer()
        with calling(at(tokenizer, "encode")):
            return list(tokenizer.encode([example.sample for _, example in self.examples]))

    @Kept
    def fitted(self) -> tuple[Tokenizer, Batch]:
        """A tokenizer fitted to :attr:`examples`, and a batch of their latents with noise in it."""
        tokenizer, dataset = self.new_tokenizer(), _Some(self.train, [index for index, _ in self.examples])
        self.check_stored(tokenizer, self.stored)
        with tempfile.TemporaryDirectory() as scratch:
            with calling(at(tokenizer, "encode")):
                cache = LatentCache.open(dataset, tokenizer, directory=Path(scratch))
            with calling(at(tokenizer, "fit")):
                tokenizer.fit(cache.clips())
            source, latent = generator(0, "probe"), tokenizer.latent
            entries = np.array(spread(len(cache), BATCH))
            count = len(entries)
            noise, posterior = (
                torch.from_numpy(source.standard_normal((count, *latent.shape), dtype=np.float32)) for _ in range(2)
            )
            position, zeros = torch.full((count,), 0.5), torch.zeros(count)
            read = cache.read(StepDraws(entries, zeros, zeros, zeros, position, noise, posterior, zeros))
        used = posterior if tokenizer.stochastic else None
        with calling(at(tokenizer, "latents")):
            x1 = tokenizer.latents(read.stored, used)
        where, wanted = at(tokenizer, "latents"), (count, *latent.shape)
        expect(isinstance(x1, Tensor), where, "a tensor", repr(type(x1)))
        expect(
            tuple(x1.shape) == wanted,
            where,
            f"{list(wanted)}, a batch of LatentSpec's {list(latent.shape)}",
            f"{list(x1.shape)} of stored {list(read.stored.shape)}",
        )
        expect(x1.dtype == torch.float32, where, "float32", str(x1.dtype))
        expect(x1.device == read.stored.device, where, f"latents on {read.stored.device}", str(x1.device))
        expect(bool(torch.isfinite(x1).all()), where, "finite latents", "some that are not")
        t = torch.linspace(0.15, 0.85, count)
        weights = t.reshape(-1, *(1 for _ in latent.shape))
        given = self._condition(read.label, source)
        return tokenizer, Batch(x1, read.stored, read.mask, used, given, weights * x1 + (1 - weights) * noise, t)

    def check_stored(self, tokenizer: Tokenizer, stored: Sequence[Tensor]) -> None:
        """Raise a :class:`Fault` unless ``stored`` is float32 on the CPU, laid out alike from sample to sample."""
        where, latent = at(tokenizer, "encode"), tokenizer.latent
        expect(
            len(stored) == len(self.examples), where, f"{len(self.examples)} tensors, one a sample", f"{len(stored)}"
        )
        first: tuple[int, ...] | None = None
        for (index, example), clip in zip(self.examples, stored, strict=True):
            what = f"sample {index} ({example.source})" if example.source else f"sample {index}"
            expect(isinstance(clip, Tensor), where, f"a tensor of {what}", repr(type(clip)))
            expect(clip.dtype == torch.float32, where, f"float32 of {what}", str(clip.dtype))
            expect(clip.device.type == "cpu", where, f"{what} on the CPU, where it is stored", str(clip.device))
            expect(
                clip.ndim == len(latent.shape), where, f"{what} laid out as {list(latent.shape)}", f"{list(clip.shape)}"
            )
            expect(bool(torch.isfinite(clip).all()), where, f"finite values of {what}", "some that are not")
            fixed = list(clip.shape)
            if latent.variable:
                expect(fixed[latent.frame_axis] > 0, where, f"frames of {what}", "none")
                del fixed[latent.frame_axis]
            first = first or tuple(fixed)
            besides = " besides frames" if latent.variable else ""
            expect(
                tuple(fixed) == first,
                where,
                f"one shape{besides} for every sample, {list(first)} as of sample {self.examples[0][0]}",
                f"{fixed} of {what}",
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """Of :attr:`fitted`."""
        return self.fitted[0]

    @property
    def batch(self) -> Batch:
        """Of :attr:`fitted`."""
        return self.fitted[1]

    @Kept
    def condition(self) -> ConditionSpec:
        """What the recipe's backbone is conditioned on; texts by embeddings of our own."""
        wanted, texts = self.recipe.condition.labels, self.recipe.condition.text_encoder is not None
        labelled = wanted == "required" or (wanted == "auto" and not texts)
        return ConditionSpec(len(self.train.classes) if labelled else 0, TEXT_CHANNELS if texts else 0)

    def _condition(self, label: Tensor, source: np.random.Generator) -> dict[str, Tensor]:
        given: dict[str, Tensor] = {"label": label} if self.condition.num_classes else {}
        if self.condition.text_channels:
            shape = (len(label), TEXT_TOKENS, TEXT_CHANNELS)
            given["text"] = torch.from_numpy(source.standard_normal(shape, dtype=np.float32))
            given["text_mask"] = torch.ones(shape[:2], dtype=torch.bool)
        return drop_condition(given, torch.arange(len(label)) == len(label) - 1, self.condition)

    def new_backbone(self) -> Backbone:
        """The recipe's network with its own initial weights."""
        with calling(self.where("backbone")), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.adapter.backbone(self.recipe.backbone, self.tokenizer.latent, self.condition)

    @Kept
    def backbone(self) -> Backbone:
        """The recipe's network in evaluation mode, every trained weight moved a little."""
        network = self.new_backbone()
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(PERTURBATION * torch.randn(parameter.shape, generator=source))
        return network.eval()

    def predict(self, taps: Sequence[int] = (), mask: Tensor | None = None, **changes: Any) -> BackboneOutput:
        """The backbone on the batch, or on what ``changes`` puts in place of ``x_t``, ``t`` or ``condition``."""
        given = {"x_t": self.batch.x_t, "t": self.batch.t, "condition": self.batch.condition, **changes}
        where = at(self.backbone, "forward")
        with calling(where):
            out = self.backbone(given["x_t"], given["t"], given["condition"], taps=taps, mask=mask)
        expect(isinstance(out, BackboneOutput), where, "a BackboneOutput", repr(type(out)))
        return out

    @Kept
    def windows(self) -> list[Example]:
        """Excerpts of the training data as scores see them; the first half is of one distribution with the second."""
        with calling(at(self.tokenizer, "window")):
            all_windows = Windows(self.train, self.tokenizer, at_least=NUM_WINDOWS)
            found = all_windows.read(spread(len(all_windows), NUM_WINDOWS))
        return [*found[::2], *found[1::2]]
