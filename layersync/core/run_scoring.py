"""Scores of one set of samples of a run: by its own classifier, by features, by nearness to its training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from layersync.core.adapter import Example, ExampleDataset, ModalityAdapter, Split, Tokenizer
from layersync.core.classifier import (
    WINDOWS_AT_ONCE,
    DomainClassifier,
    TrainingWindows,
    Windows,
    classifier_input,
    domain_classifier,
    inputs_of,
    labels_of,
)
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor
from layersync.core.featureset import FeatureSet, extract
from layersync.core.generation import GenerativeModel
from layersync.core.metric import MetricName, Needs
from layersync.core.parallel import Processes
from layersync.core.plugin import calling, class_of
from layersync.core.progress import progress
from layersync.core.recipe import Recipe
from layersync.core.reference import RealSet, SampleFiles
from layersync.core.results import Reference, Score
from layersync.core.scoring import score
from layersync.metrics import nearest_distances

HELD_OUT_NEIGHBOURS = 1_000


def classifier_of(
    recipe: Recipe, tokenizer: Tokenizer, folder: Path | None = None, *, keep: bool = True
) -> DomainClassifier:
    """In-domain classifiers of a recipe's data, as :func:`layersync.core.classifier.domain_classifier` keeps them."""
    train, held_out = recipe.adapter.dataset(recipe.data, "train"), recipe.adapter.dataset(recipe.data, "test")
    return domain_classifier(recipe.adapter, train, held_out if len(held_out) else None, tokenizer, folder, keep=keep)


@dataclass
class RunScorer:
    """Scores one set of samples of a run; what several metrics need is computed once.

    ``examples`` are this process's share of the samples by number, ``real`` what they are compared with.
    """

    model: GenerativeModel
    examples: Mapping[int, Example]
    real: RealSet
    extractors: Mapping[str, FeatureExtractor]
    processes: Processes
    shown: bool = False
    wordy: bool = False
    """Whether a metric compares the samples with their texts."""
    classifiers: Path | None = None
    """Where the classifiers are kept; the cache where it is ``None``."""
    _generated: dict[str, FeatureSet] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The run's."""
        return self.model.recipe

    def dataset(self, split: Split) -> ExampleDataset:
        """A split of the run's own data."""
        return self.recipe.adapter.dataset(self.recipe.data, split)

    @cached_property
    def classifier(self) -> DomainClassifier:
        """The in-domain classifiers of the run's data; the main process trains them when they are missing."""

        def make() -> DomainClassifier:
            return classifier_of(self.recipe, self.model.tokenizer, self.classifiers)

        if self.processes.main:
            make()
        self.processes.wait()
        return make()

    def generated(self, extractor: FeatureExtractor) -> FeatureSet:
        """Features of all samples."""
        if extractor.name not in self._generated:
            numbers, texts = list(self.examples), self.wordy and bool(extractor.text_streams)
            self._generated[extractor.name] = extract(
                extractor, self.examples.__getitem__, numbers, self.processes, texts=texts, shown=self.shown
            )
        return self._generated[extractor.name]

    def score(self, metric: MetricName) -> Score:
        """The score of one metric."""
        if metric.kind == "fd-classifier":
            return self._classifier_distance(metric.name)
        if metric.kind == "label-agreement":
            return self._label_agreement()
        if metric.kind == "nearest-training":
            return self._nearest_training()
        if metric.extractor is None:
            return own_score(self.recipe.adapter, metric, self.examples, self.processes)
        return self._by_features(metric, self.extractors[metric.extractor])

    def _by_features(self, metric: MetricName, extractor: FeatureExtractor) -> Score:
        generated = self.generated(extractor)
        if metric.needs not in (Needs.BOTH, Needs.BOTH_ROWS):
            return score(metric, generated, None, None)
        real = self.real.features(extractor, rows=metric.needs is Needs.BOTH_ROWS, shown=self.shown)
        return score(metric, generated, real, self.real.reference(real))

    def _classifier_distance(self, name: str) -> Score:
        """The mean of the Fréchet distances on the features of each classifier."""
        classifier = self.classifier
        generated = self.generated(classifier)
        real = self.real.features(classifier, rows=isinstance(self.real, SampleFiles), shown=self.shown)
        fd, reference = MetricName(name, "fd", classifier.name), self.real.reference(real)
        found = score(fd, generated, real, reference, streams=classifier.feature_streams)
        return replace(found, details={**found.details, "held_out_accuracy": classifier.accuracy})

    def _label_agreement(self) -> Score:
        from scipy.stats import binomtest

        found = self.generated(self.classifier)
        read = found.per_sample("logits").argmax(1)
        wanted = np.concatenate(self.processes.gather([labels_of(self.examples.values())]))
        asked = wanted >= 0
        if not asked.any():
            raise InputError("label-agreement: no sample was asked to be of a class")
        hits, count = int((read[asked] == wanted[asked]).sum()), int(asked.sum())
        bounds = binomtest(hits, count).proportion_ci(method="wilson")
        details = {
            "held_out_accuracy": self.classifier.accuracy,
            "chance": 1 / len(self.model.classes),
            "samples": count,
            "interval": "Wilson",
        }
        return Score(
            hits / count,
            (float(bounds.low), float(bounds.high)),
            found.extractor,
            None,
            details,
            found.checksum,
            found.preprocessing,
            count,
        )

    def _nearest_training(self) -> Score:
        tokenizer = self.model.tokenizer
        training = TrainingWindows(self.dataset("train"), tokenizer)
        unseen = Windows(self.dataset("test"), tokenizer, at_least=200, at_most=HELD_OUT_NEIGHBOURS)
        queries = [self._masked(list(self.examples.values())), _masked(*inputs_of(self.recipe.adapter, unseen)[:2])]
        nearest = [np.full(len(part), np.inf) for part in queries]
        count = 0
        with progress("nearest training samples", len(training), shown=self.shown) as advance:
            at_once = max(1, WINDOWS_AT_ONCE // training.places)
            for first in range(0, len(training), at_once):
                numbers = range(first, min(first + at_once, len(training)))
                if part := training.read(numbers):
                    reference = self._masked(part)
                    for found, points in zip(nearest, queries, strict=True):
                        if not len(points):  # of more processes than samples
                            continue
                        width = max(points.shape[-1], reference.shape[-1])
                        x, y = (F.pad(z, (0, width - z.shape[-1])).flatten(1).numpy() for z in (points, reference))
                        np.minimum(found, nearest_distances(x, y), out=found)
                count += len(part)
                advance(len(numbers))
        generated, real = np.concatenate(self.processes.gather([nearest[0]])), nearest[1]
        details = {
            "generated": float(np.median(generated)),
            "held_out": float(np.median(real)),
            "windows": count,
            "places_in_clips": training.places,
            "meaning": "median distance to the nearest training sample, over that of held-out samples; "
            "near 0: the training data is copied",
        }
        reference_set = Reference(self.recipe.data.name, "train", count)
        ratio = float(np.median(generated) / max(float(np.median(real)), 1e-12))
        return Score(ratio, None, "classifier-input", reference_set, details, num_samples=len(generated))

    def _masked(self, examples: Sequence[Example]) -> Tensor:
        if not examples:
            return torch.zeros(0, 1)
        return _masked(*classifier_input(self.recipe.adapter, examples))


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.reshape(len(x), *(1 for _ in x.shape[1:-1]), -1)


def own_score(
    adapter: ModalityAdapter, metric: MetricName, examples: Mapping[int, Example], processes: Processes
) -> Score:
    """A modality's own score of generated samples: the mean of its values, and 1.96 sd / sqrt(n) around it."""
    own = adapter.metrics()[metric.name]
    method = f"metrics()[{metric.name!r}]"
    with calling(adapter, method):
        local = np.asarray(own(list(examples.values())) if examples else [], dtype=np.float64)
    if local.shape != (len(examples),):
        raise InputError(
            f"{class_of(adapter)}.{method}: expected a number for each of {len(examples)} samples, an array "
            f"[{len(examples)}]; got {list(local.shape)}"
        )
    values: NDArray[np.float64] = np.concatenate(processes.gather([local]))
    if not np.isfinite(values).all():
        raise InputError(f"metric {metric.name}: {int((~np.isfinite(values)).sum())} of {len(values)} are not finite")
    half = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values))
    interval = (float(values.mean() - half), float(values.mean() + half))
    details = {"interval": "1.96 sd / sqrt(n) over samples", "median": float(np.median(values))}
    return Score(float(values.mean()), interval, "none", None, details, num_samples=len(values))
