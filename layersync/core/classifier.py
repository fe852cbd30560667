"""Small classifiers of the domain at hand: the feature extractor that every labelled data set brings with it.

They are trained on the labels of the training split and read before their last layer. A distance is taken on the
features of each and averaged, since what one of several classifiers as good sees of a gain differs. It is called
``fd-classifier``, never FID: it compares models of one data set, and nothing across data sets.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from layersync.core.adapter import Example, ExampleDataset, ModalityAdapter, Tokenizer, fingerprint_of, read_example
from layersync.core.draws import generator
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams
from layersync.core.packaged import cache_folder
from layersync.core.plugin import calling, class_of
from layersync.core.progress import progress
from layersync.core.run import atomic_write, writable_parent, write_tensors

VERSION = 5
VERSIONED_NAME = f"domain-classifier-v{VERSION}"
"""How names of classifiers begin, of which distances can be compared at all."""
MEMBERS = 3
"""How many classifiers a distance is averaged over."""
NUM_FEATURES = 64
STEPS = 500
BATCH = 64
LEARNING_RATE = 8e-3
WINDOW_LIMIT = 20_000
WINDOWS_AT_LEAST = 2_000
WINDOWS_AT_ONCE = 256
"""Raw ones in memory: of sounds some GB."""
PLACES_AT_MOST = 64
PLACES_IN_ALL = 10_000
BEFORE_ONE = 1 - 2**-20
"""Positions of windows are below 1."""


class ClassifierNetwork(nn.Module):
    """Convolutions, a mean over what is real, 64 features, classes. Inputs (batch, channels, *grid), 1-D or 2-D."""

    widths = (16, 32, 64, 96)

    def __init__(self, channels: int, axes: int, num_classes: int, strides: Sequence[int]):
        super().__init__()
        convolution: Any = nn.Conv1d if axes == 1 else nn.Conv2d
        norm: Any = nn.BatchNorm1d if axes == 1 else nn.BatchNorm2d
        kernel = 5 if axes == 1 else 3
        self.strides = tuple(strides)
        layers: list[nn.Module] = []
        for width, stride in zip(self.widths, self.strides, strict=True):
            convolved = convolution(channels, width, kernel, stride, kernel // 2, bias=False)
            layers.append(nn.Sequential(convolved, norm(width), nn.ReLU()))
            channels = width
        self.body = nn.Sequential(*layers)
        self.features = nn.Linear(channels, NUM_FEATURES)
        self.classes = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (batch, 64) and logits (batch, classes); ``mask`` (batch, frames) runs over the last axis."""
        real = None if mask is None else mask.reshape(len(x), *(1 for _ in x.shape[1:-1]), -1).to(x.dtype)
        hidden = x if real is None else x * real
        for layer in self.body:
            hidden = layer(hidden)
            if real is not None:
                stride = -(-real.shape[-1] // hidden.shape[-1])
                real = real[..., ::stride] if stride > 1 else real
                hidden = hidden * real
        if real is None:
            pooled = hidden.flatten(2).mean(2)
        else:
            weights = real.expand(-1, 1, *hidden.shape[2:])
            pooled = hidden.flatten(2).sum(2) / weights.flatten(2).sum(2)
        features = self.features(pooled)
        return features, self.classes(F.relu(features))


class Windows:
    """Windows of raw samples with their labels: what scores compare generated samples with.

    Every example and reference variant is there once; clips are cut at counted positions, several times where the
    data set is small, so that there are at least ``at_least`` windows. Of more than ``at_most`` examples and variants
    so many are picked at random, always the same ones.
    """

    def __init__(
        self,
        dataset: ExampleDataset,
        tokenizer: Tokenizer,
        at_least: int = WINDOWS_AT_LEAST,
        at_most: int | None = WINDOW_LIMIT,
    ):
        self.dataset, self.tokenizer = dataset, tokenizer
        self._read: dict[int, Example] = {}
        variants = dataset.reference_variants
        base = [(index, variant) for index in range(len(dataset)) for variant in variants]
        rounds = max(1, -(-at_least // len(base))) if tokenizer.latent.variable else 1
        if at_most is not None and len(base) > at_most:
            chosen = generator(0, "fit").permutation(len(base))[:at_most]
            base = [base[row] for row in sorted(chosen)]
        self.items = [(index, variant, number) for number in range(rounds) for index, variant in base]

    def __len__(self) -> int:
        return len(self.items)

    def get(self, item: int) -> Example | None:
        """The window of that number; ``None`` of a sample that cannot be read, where the data says to skip it."""
        index, variant, number = self.items[item]
        position = float(generator(0, "fit", number + 1, index).random())
        return next(iter(self._cut(index, variant, [position])), None)

    def _cut(self, index: int, variant: str, positions: Sequence[float]) -> list[Example]:
        """Windows of an example; none of one that cannot be read, where the data says to skip it."""
        if index not in self._read:
            self._read.clear()
            found = read_example(self.dataset, index)
            if found is None:
                return []
            self._read[index] = found
        example = self._read[index]
        with calling(self.dataset, "variant"):
            sample = self.dataset.variant(example.sample, variant)
        with calling(self.tokenizer, "window"):
            return [replace(example, sample=self.tokenizer.window(sample, position)) for position in positions]

    def read(self, numbers: Iterable[int] | None = None) -> list[Example]:
        """All windows, or those of ``numbers``, without those that :meth:`get` has not."""
        wanted = list(range(len(self.items)) if numbers is None else numbers)
        found = {item: self.get(item) for item in self.by_clip(wanted)}
        return [window for item in wanted if (window := found[item]) is not None]

    def by_clip(self, numbers: Iterable[int]) -> list[int]:
        """``numbers`` in an order in which each clip is decoded once for all of its windows."""
        return sorted(numbers, key=lambda item: self.items[item][:2])


class TrainingWindows(Windows):
    """All that a training draws from: every example in each of its variants, flipped ones too.

    Clips are cut at ``places`` evenly spread positions, up to 64, fewer where there are many clips; clips that have no
    room for that at one.
    """

    def __init__(self, dataset: ExampleDataset, tokenizer: Tokenizer):
        super().__init__(dataset, tokenizer, at_least=1, at_most=None)
        self.items = [(index, variant, 0) for index in range(len(dataset)) for variant in dataset.variants]
        self.places = 1
        if tokenizer.latent.variable:
            self.places = max(1, min(PLACES_AT_MOST, PLACES_IN_ALL // len(self.items)))

    def read(self, numbers: Iterable[int] | None = None) -> list[Example]:
        """All windows of the examples and variants of ``numbers``, or of all."""
        found = []
        for item in range(len(self.items)) if numbers is None else numbers:
            index, variant, _ = self.items[item]
            cuts = self._cut(index, variant, [0.0, BEFORE_ONE] if self.places > 1 else [0.5])
            if len(_different(cuts)) > 1:
                inner = np.linspace(0, BEFORE_ONE, self.places)[1:-1].tolist()
                cuts[1:1] = self._cut(index, variant, inner)
            found += _different(cuts)
        return found


def _different(cuts: Sequence[Example]) -> list[Example]:
    return list({pickle.dumps(cut.sample): cut for cut in cuts}.values())


def labels_of(examples: Iterable[Example]) -> np.ndarray:
    """Labels (examples,) int64, -1 for none."""
    return np.array([example.label for example in examples], dtype=np.int64)


class Ensemble(nn.ModuleList):
    """Classifiers of the same data, trained from other weights and draws: :data:`MEMBERS` of one ``settings``."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(ClassifierNetwork(**settings) for _ in range(MEMBERS))
        self.settings = settings

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Features (batch, 64) of each, and the logarithm of their mean probabilities (batch, classes)."""
        features, logits = zip(*(network(x, mask) for network in self), strict=True)
        return list(features), torch.stack(logits).log_softmax(-1).logsumexp(0) - math.log(len(self))


class DomainClassifier(FeatureExtractor):
    """Trained classifiers. ``accuracy``, of their mean, is on the held-out split, ``None`` where there is none."""

    feature_streams = tuple(f"features-{number}" for number in range(1, MEMBERS + 1))
    """Those of the features of each."""
    streams = (*feature_streams, "logits")
    batch_size = 256

    def __init__(self, adapter: ModalityAdapter, ensemble: Ensemble, accuracy: float | None, checksum: str):
        self.adapter, self.ensemble, self.accuracy, self.checksum = adapter, ensemble.eval(), accuracy, checksum
        self.name = f"{VERSIONED_NAME}-{checksum[:8]}"
        self.preprocessing = f"what the {adapter.name} modality gives its classifier to read"
        self._first: tuple[list[int], str] | None = None

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Features (64) of each classifier and the logits (classes) of all, one row a sample.

        Raises :class:`InputError` for samples of other channels, or that are read in another size than those before.
        """
        x, mask = classifier_input(self.adapter, examples)
        channels = self.ensemble.settings["channels"]
        if x.shape[1] != channels:
            raise InputError(
                f"{examples[0].source}: has {x.shape[1]} channels, the classifier of this data reads {channels}"
            )
        if mask is None:
            size, first = self._first = self._first or (list(x.shape[2:]), examples[0].source)
            if list(x.shape[2:]) != size:
                raise InputError(
                    f"{examples[0].source}: is read as {list(x.shape[2:])} and {first} as {size}, by classifiers that "
                    f"know one size; bring one to the other's size"
                )
        features, logits = self.ensemble(x, mask)
        found = dict(zip(self.streams, [*features, logits], strict=True))
        return {stream: list(rows[:, None].numpy()) for stream, rows in found.items()}


def domain_classifier(
    adapter: ModalityAdapter,
    train: ExampleDataset,
    held_out: ExampleDataset | None,
    tokenizer: Tokenizer,
    folder: Path | None = None,
    *,
    keep: bool = True,
) -> DomainClassifier:
    """The classifiers of this data set, trained when they are not in the cache yet.

    Processors of another kind round otherwise, and train others. Scores that are to be compared across machines
    take them from one ``folder``, which gets a copy of the cache's where it has none, unless ``keep`` is false.

    Raises:
        InputError: for a folder that cannot be written to, and a file in it that is no classifier.
    """
    first = _first_readable(train)
    with calling(tokenizer, "window"):
        window = replace(first, sample=tokenizer.window(first.sample, 0.5))
    seen, _ = classifier_input(adapter, [window])
    reads = hashlib.sha256(seen.numpy().tobytes()).hexdigest()  # changes when what the classifier reads does
    splits = [fingerprint_of(train), fingerprint_of(held_out) if held_out else ""]
    parts = [VERSION, adapter.name, reads, *splits, tokenizer.fingerprint, list(tokenizer.latent.shape)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    cached = cache_folder("classifiers") / f"{key}.safetensors"
    if folder is not None and not keep and not (folder / cached.name).is_file():
        folder = None
    path = cached if folder is None else folder / cached.name
    if not path.is_file():
        writable_parent(path, "--classifiers")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # runs of a comparison come here at the same time, and must agree
            if folder is not None and not path.is_file():
                domain_classifier(adapter, train, held_out, tokenizer)
                with atomic_write(path) as partial:
                    shutil.copyfile(cached, partial)
            elif not path.is_file():
                ensemble = _train(adapter, train, tokenizer)
                accuracy = _accuracy(adapter, ensemble, held_out, tokenizer) if held_out is not None else None
                metadata = {"settings": json.dumps(ensemble.settings), "accuracy": json.dumps(accuracy)}
                with atomic_write(path) as partial:
                    write_tensors(partial, ensemble.state_dict(), metadata)
    return _read(adapter, path)


def _read(adapter: ModalityAdapter, path: Path) -> DomainClassifier:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
            ensemble = Ensemble(json.loads(metadata["settings"]))
            ensemble.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
            accuracy = json.loads(metadata["accuracy"])
    except PermissionError as error:
        raise InputError(f"{path}: may not be read ({error.strerror}); its owner is another account") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise InputError(f"{path}: is damaged, or no classifier of layersync; delete it, or bring it back") from None
    return DomainClassifier(adapter, ensemble, accuracy, _checksum(ensemble))


def _checksum(ensemble: Ensemble) -> str:
    """SHA-256 of the weights: one for the same networks, whose file may hold what it says of it in another order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(ensemble.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def classifier_input(adapter: ModalityAdapter, examples: Sequence[Example]) -> tuple[Tensor, Tensor | None]:
    """What :class:`ClassifierNetwork` reads of ``examples``. Raises :class:`InputError` for what it cannot."""
    x, mask = adapter.classifier_input([example.sample for example in examples])
    if not isinstance(x, Tensor) or x.ndim not in (3, 4):
        raise InputError(
            f"{class_of(adapter)}.classifier_input: expected a tensor (batch, channels, *grid) with a 1-D or 2-D grid; "
            f"got {list(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
        )
    return x, mask


def inputs_of(adapter: ModalityAdapter, windows: Windows) -> tuple[Tensor, Tensor | None, np.ndarray]:
    """What :class:`ClassifierNetwork` reads of all windows, in their order, and their labels.

    Raw windows, which are much larger, are held some at a time. Shorter inputs are padded with zeros that ``mask`` is
    false on.
    """
    parts: list[tuple[Tensor, Tensor | None]] = []
    labels: list[np.ndarray] = []
    items: list[int] = []
    order = windows.by_clip(range(len(windows)))
    for first in range(0, len(order), WINDOWS_AT_ONCE):
        read = {item: found for item in order[first : first + WINDOWS_AT_ONCE] if (found := windows.get(item))}
        if read:
            parts.append(classifier_input(adapter, list(read.values())))
            labels.append(labels_of(read.values()))
            items += read
    if not parts:
        raise InputError("data: nothing could be read")
    frames = max(x.shape[-1] for x, _ in parts)
    rows = torch.from_numpy(np.argsort(items))
    x = torch.cat([F.pad(x, (0, frames - x.shape[-1])) for x, _ in parts])[rows]
    masks = [F.pad(mask, (0, frames - mask.shape[-1])) for _, mask in parts if mask is not None]
    return x, torch.cat(masks)[rows] if masks else None, np.concatenate(labels)[rows.numpy()]


def _first_readable(dataset: ExampleDataset) -> Example:
    for index in range(len(dataset)):
        if (found := read_example(dataset, index)) is not None:
            return found
    raise InputError("data: nothing could be read")


def _train(adapter: ModalityAdapter, dataset: ExampleDataset, tokenizer: Tokenizer) -> Ensemble:
    x, mask, labels = inputs_of(adapter, Windows(dataset, tokenizer))
    labelled = torch.from_numpy(labels >= 0)
    x, mask = x[labelled], None if mask is None else mask[labelled]
    target = torch.from_numpy(labels)[labelled]
    strides = [2 if min(x.shape[2:]) >= 32 else 1, 2, 2, 1]
    settings: dict[str, Any] = {
        "channels": x.shape[1],
        "axes": x.ndim - 2,
        "num_classes": len(dataset.classes),
        "strides": strides,
    }
    with torch.random.fork_rng(devices=[]), progress("training classifiers", MEMBERS * STEPS) as advance:
        torch.manual_seed(0)
        ensemble = Ensemble(settings)
        if x.ndim == 4:  # a third faster on a CPU
            ensemble, x = ensemble.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        for number, network in enumerate(ensemble):
            optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
            for step in range(STEPS):
                drawn = generator(0, "fit", step, 2**32 + number)
                rows = torch.from_numpy(drawn.integers(len(x), size=min(BATCH, len(x))))
                logits = network(x[rows], None if mask is None else mask[rows])[1]
                loss = F.cross_entropy(logits, target[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)
    return ensemble


def _accuracy(
    adapter: ModalityAdapter, ensemble: Ensemble, dataset: ExampleDataset, tokenizer: Tokenizer
) -> float | None:
    x, mask, labels = inputs_of(adapter, Windows(dataset, tokenizer, at_least=500))
    ensemble.eval()
    with torch.inference_mode():
        batches = [slice(first, first + BATCH) for first in range(0, len(x), BATCH)]
        logits = [ensemble(x[rows], None if mask is None else mask[rows])[1] for rows in batches]
    found = torch.cat(logits).argmax(1).numpy()
    labelled = labels >= 0
    return float((found == labels)[labelled].mean()) if labelled.any() else None
