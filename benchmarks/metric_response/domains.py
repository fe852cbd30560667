"""The three domains: which real samples, which damages, which scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator, default_rng
from scipy.special import softmax

from benchmarks.metric_response import damage
from layersync.core.adapter import Example, ExampleDataset, load_adapter
from layersync.core.classifier import domain_classifier, labels_of
from layersync.core.features import FeatureExtractor
from layersync.metrics import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_audio_distance,
    kernel_distance,
    precision_recall,
)

Apply = Callable[[Any, float, Generator], Any]
"""Sample, level and noise to a damaged sample."""


@dataclass(frozen=True)
class Damage:
    """``levels`` go from little to much. ``apply`` is ``None`` where a set is damaged, not its samples."""

    name: str
    unit: str
    levels: tuple[float, float, float, float]
    apply: Apply | None


class Domain(ABC):
    """Real samples in a clean reference set and a pool beside it, from which a seed draws what is damaged."""

    name: ClassVar[str]
    folder: ClassVar[str]
    """Below ``$LAYERSYNC_DATA``."""
    metrics: ClassVar[tuple[str, ...]]
    damages: ClassVar[tuple[Damage, ...]]
    num_reference: ClassVar[int]
    num_generated: ClassVar[int]

    def __init__(self, data: Path) -> None:
        self.adapter = load_adapter(self.name)
        self.dataset = self.open(data / self.folder)
        self.read = cache(self.dataset.__getitem__)
        self.reference, self.pool = self.split()

    @abstractmethod
    def open(self, folder: Path) -> ExampleDataset:
        """All samples that reference and pool are taken from."""

    @abstractmethod
    def scores(self, examples: Sequence[Example]) -> dict[str, float]:
        """Of a generated set, one for each of ``metrics``."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What the scores were taken on."""

    def split(self) -> tuple[list[int], list[int]]:
        """Numbers of the reference samples and of the pool."""
        order = default_rng(0).permutation(len(self.dataset)).tolist()
        return order[: self.num_reference], order[self.num_reference :]

    def drawn(self, seed: int) -> list[int]:
        """Numbers of the samples that ``seed`` draws from the pool."""
        return default_rng(seed).permutation(self.pool)[: self.num_generated].tolist()

    def score(self, seed: int, kind: Damage | None = None, level: float = 0) -> dict[str, float]:
        """Of the set that ``seed`` draws, damaged; as it is for ``None``."""
        examples = [self.read(number) for number in self.drawn(seed)]
        if kind is not None and kind.apply is not None:
            examples = [
                replace(example, sample=kind.apply(example.sample, level, default_rng([seed, number])))
                for number, example in enumerate(examples)
            ]
        return self.scores(examples)


def features(extractor: FeatureExtractor, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """(samples, d) of each stream of an extractor with one row a sample."""
    parts: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(examples), extractor.batch_size):
        for stream, rows in extractor(examples[first : first + extractor.batch_size]).items():
            parts.setdefault(stream, []).extend(rows)
    return {stream: np.concatenate(rows) for stream, rows in parts.items()}


def identified(extractor: FeatureExtractor) -> dict[str, Any]:
    """What a score says of its extractor."""
    return {"name": extractor.name, "sha256": extractor.checksum, "preprocessing": extractor.preprocessing}


def without_noise(function: Callable[[Any, float], Any]) -> Apply:
    """A damage that draws nothing."""
    return lambda sample, level, rng: function(sample, level)


class Images(Domain):
    """CIFAR-10's test images, which the classifier that gives the features was not trained on."""

    name, folder = "image", "cifar10"
    metrics = ("fd", "kd", "precision", "recall", "density", "coverage", "is")
    damages = (
        Damage("blur", "deviation of the Gaussian in pixels", (0.5, 0.75, 1, 1.5), without_noise(damage.blurred)),
        Damage("noise", "deviation in grey levels of 255", (8, 16, 32, 64), damage.noisy_image),
        Damage("missing classes", "of 10; mean of 10 choices", (2, 5, 7, 8), None),
        Damage("missing, one choice", "of 10", (2, 5, 7, 8), None),
    )
    choices: ClassVar[dict[str, tuple[int, ...]]] = {
        "missing classes": tuple(range(10)),
        "missing, one choice": (0,),
    }
    """Where in the seed's circle of classes the missing ones begin, so that every class is missing equally often."""
    num_reference, num_generated = 2000, 1000

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        config = self._config(data / self.folder)
        tokenizer = self.adapter.tokenizer(self.adapter.sections["tokenizer"]["pixels"](name="pixels"))
        train = self.adapter.dataset(config, "train")
        self.classifier = domain_classifier(self.adapter, train, self.dataset, tokenizer)
        self.real = features(self.classifier, [self.read(number) for number in self.reference])[
            self.classifier.feature_streams[0]
        ]

    def _config(self, folder: Path) -> Any:
        return self.adapter.sections["data"]["hf"].model_validate({"name": "hf", "path": str(folder)})

    def open(self, folder: Path) -> ExampleDataset:
        return self.adapter.dataset(self._config(folder), "test")

    def split(self) -> tuple[list[int], list[int]]:
        """As many of each class in the reference."""
        self.labels = labels_of(self.read(number) for number in range(len(self.dataset)))
        by_class = [default_rng(0).permutation(np.flatnonzero(self.labels == label)) for label in self._classes()]
        each = self.num_reference // len(by_class)
        reference, pool = (
            np.concatenate([numbers[part] for numbers in by_class]) for part in (slice(each), slice(each, None))
        )
        return reference.tolist(), pool.tolist()

    def _classes(self) -> range:
        return range(len(self.dataset.classes))

    def drawn(self, seed: int, missing: int = 0, first: int = 0) -> list[int]:
        """As many of each class that is left; ``seed`` lays the classes out in a circle."""
        rng = default_rng(seed)
        pool = rng.permutation(self.pool)
        left = np.roll(rng.permutation(self._classes()), -first)[missing:]
        counts = np.full(len(left), self.num_generated // len(left))
        counts[: self.num_generated % len(left)] += 1
        rows = [pool[self.labels[pool] == label][:count] for label, count in zip(left, counts, strict=True)]
        return np.concatenate(rows).tolist()

    def score(self, seed: int, kind: Damage | None = None, level: float = 0) -> dict[str, float]:
        if kind is None or kind.apply is not None:
            return super().score(seed, kind, level)
        sets = [self.drawn(seed, int(level), first) for first in self.choices[kind.name]]
        scores = [self.scores([self.read(number) for number in numbers]) for numbers in sets]
        return {metric: float(np.mean([score[metric] for score in scores])) for metric in self.metrics}

    def scores(self, examples: Sequence[Example]) -> dict[str, float]:
        found = features(self.classifier, examples)
        x, probabilities = (
            found[self.classifier.feature_streams[0]],
            softmax(found["logits"].astype(np.float64), axis=1),
        )
        return {
            "fd": frechet_distance(x, self.real),
            "kd": float(kernel_distance(x, self.real)),
            **precision_recall(x, self.real)._asdict(),
            **density_coverage(x, self.real)._asdict(),
            "is": float(inception_score(probabilities)),
        }

    def about(self) -> dict[str, Any]:
        return {**identified(self.classifier), "held_out_accuracy": self.classifier.accuracy}


class Sounds(Domain):
    """Spoken digits, on a network of published weights."""

    name, folder = "audio", "spoken-digits"
    metrics = ("fd-ge2e", "kad-ge2e", "kd-ge2e")
    damages = (
        Damage("clipping", "dB cut off below the peak", (6, 12, 18, 24), without_noise(damage.clipped)),
        Damage("noise", "signal over noise in dB", (30, 20, 10, 0), damage.noisy_clip),
        Damage("low-pass", "cut-off in Hz", (3000, 2000, 1000, 500), without_noise(damage.low_passed)),
    )
    num_reference, num_generated = 500, 300

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.extractor = self.adapter.features()["ge2e"](None)
        self.real = features(self.extractor, [self.read(number) for number in self.reference])["features"]

    def open(self, folder: Path) -> ExampleDataset:
        return self.adapter.open_samples(folder)

    def scores(self, examples: Sequence[Example]) -> dict[str, float]:
        x = features(self.extractor, examples)["features"]
        return {
            "fd-ge2e": frechet_distance(x, self.real),
            "kad-ge2e": float(kernel_audio_distance(x, self.real)),
            "kd-ge2e": float(kernel_distance(x, self.real)),
        }

    def about(self) -> dict[str, Any]:
        return identified(self.extractor)


class Motions(Domain):
    """Motion-capture clips, scored by formulas of their joints."""

    name, folder = "motion", "motion-bvh"
    metrics = ("foot-skating", "jitter", "floor-penetration", "fd-kinetic", "fd-geometric")
    damages = (
        Damage("frozen feet", "share of the clip", (0.25, 0.5, 0.75, 1), without_noise(damage.frozen_feet)),
        Damage("jitter", "deviation in mm", (2, 5, 10, 20), damage.shaken),
        Damage("faster", "times the speed", (1.25, 1.5, 2, 3), without_noise(damage.stretched)),
        Damage("slower", "times the speed", (0.8, 0.65, 0.5, 0.35), without_noise(damage.stretched)),
    )
    num_reference, num_generated = 300, 200

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.extractors = {name: self.adapter.features()[name](None) for name in ("kinetic", "geometric")}
        clean = [self.read(number) for number in self.reference]
        self.real = {name: self._rows(name, clean) for name in self.extractors}

    def open(self, folder: Path) -> ExampleDataset:
        return self.adapter.open_samples(folder)

    def _rows(self, name: str, examples: Sequence[Example]) -> np.ndarray:
        return features(self.extractors[name], examples)["features"]

    def scores(self, examples: Sequence[Example]) -> dict[str, float]:
        own = self.adapter.metrics()
        return {
            **{name: float(own[name](examples).mean()) for name in ("foot-skating", "jitter", "floor-penetration")},
            **{f"fd-{name}": frechet_distance(self._rows(name, examples), rows) for name, rows in self.real.items()},
        }

    def about(self) -> dict[str, Any]:
        return {name: identified(extractor) for name, extractor in self.extractors.items()}


DOMAINS: dict[str, type[Domain]] = {kind.name: kind for kind in (Images, Sounds, Motions)}
