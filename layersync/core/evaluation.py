"""Scores of a run: samples -> features -> statistics -> score, with the reference side cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from layersync.core.adapter import ExampleDataset, Split
from layersync.core.catalogue import check_metrics, metric_names
from layersync.core.classifier import DomainClassifier, Windows, domain_classifier
from layersync.core.draws import generator
from layersync.core.errors import InputError
from layersync.core.generation import GenerativeModel, load, sampling_settings
from layersync.core.packaged import cache_directory
from layersync.core.recipe import Recipe
from layersync.core.results import Evaluation, Reference, Score
from layersync.core.run import atomic_write
from layersync.metrics.frechet import frechet_between, gaussian
from layersync.metrics.neighbours import nearest_distances

BOOTSTRAP = 100
NEIGHBOUR_LIMIT = 10_000
NEEDS_LABELS = ("fd-classifier", "label-agreement")


@dataclass
class _Scorer:
    """Computes metrics of one set of generated samples; what several metrics need is computed once."""

    model: GenerativeModel
    samples: list[Any]
    labels: np.ndarray
    split: str

    @property
    def recipe(self) -> Recipe:
        return self.model.recipe

    def dataset(self, split: str) -> ExampleDataset:
        return self.recipe.adapter.dataset(self.recipe.data, split)  # type: ignore[arg-type]

    @cached_property
    def reference_set(self) -> ExampleDataset:
        return self.dataset(self.split)

    @cached_property
    def reference(self) -> tuple[list[Any], np.ndarray]:
        return Windows(self.reference_set, self.model.tokenizer).read()

    @cached_property
    def classifier(self) -> DomainClassifier:
        train = self.dataset("train")
        held_out = self.dataset("test")
        return domain_classifier(self.recipe.adapter, train, held_out if len(held_out) else None, self.model.tokenizer)

    @cached_property
    def classified(self) -> tuple[np.ndarray, np.ndarray]:
        return self.classifier(self.samples)

    def score(self, metric: str) -> Score:
        if metric == "fd-classifier":
            details = {"held_out_accuracy": self.classifier.accuracy}
            return self._frechet(self.classifier.name, lambda s: self.classifier(s)[0], self.classified[0], details)
        if metric == "label-agreement":
            return self._label_agreement()
        if metric == "nearest-training":
            return self._nearest_training()
        own = self.recipe.adapter.metrics()
        if metric in own:
            return Score(float(own[metric](self.samples)), None, metric, None, {})
        name = metric.removeprefix("fd-")
        extractor = self.recipe.adapter.features()[name]()
        return self._frechet(name, extractor, np.asarray(extractor(self.samples)), {})

    def _frechet(
        self, extractor: str, extract: Callable[[Sequence[Any]], np.ndarray], generated: np.ndarray, details: dict
    ) -> Score:
        real = self._reference_features(extractor, extract)
        statistics = gaussian(real)
        value = frechet_between(*gaussian(generated), *statistics)
        draws = []
        for number in range(BOOTSTRAP):
            rows = generator(0, "probe", number, 1).integers(len(generated), size=len(generated))
            draws.append(frechet_between(*gaussian(generated[rows]), *statistics))
        spread = np.percentile(np.array(draws) - np.mean(draws), [2.5, 97.5])
        interval = (float(max(0.0, value + spread[0])), float(value + spread[1]))
        reference = Reference(self.recipe.data.name, self.split, len(real))
        return Score(value, interval, extractor, reference, {**details, "features": int(generated.shape[1])})

    def _reference_features(self, extractor: str, extract: Callable[[Sequence[Any]], np.ndarray]) -> np.ndarray:
        tokenizer = self.model.tokenizer
        shape = list(tokenizer.latent.shape)
        parts = [self.reference_set.fingerprint, tokenizer.fingerprint, shape, extractor, self.split]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        path = cache_directory() / "features" / f"{key}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            features = np.asarray(extract(self.reference[0]))
            with atomic_write(path) as partial, partial.open("wb") as stream:
                np.save(stream, features)
        return np.load(path)

    def _label_agreement(self) -> Score:
        from scipy.stats import binomtest

        asked = self.labels >= 0
        if not asked.any():
            raise InputError("label-agreement: no sample was asked to be of a class")
        hits = int((self.classified[1][asked] == self.labels[asked]).sum())
        bounds = binomtest(hits, int(asked.sum())).proportion_ci(method="wilson")
        details = {
            "held_out_accuracy": self.classifier.accuracy,
            "chance": 1 / len(self.model.classes),
            "samples": int(asked.sum()),
        }
        interval = (float(bounds.low), float(bounds.high))
        return Score(hits / int(asked.sum()), interval, self.classifier.name, None, details)

    def _nearest_training(self) -> Score:
        training = self.reference[0] if self.split == "train" else Windows(
            self.dataset("train"), self.model.tokenizer
        ).read()[0]  # fmt: skip
        unseen = Windows(self.dataset("test"), self.model.tokenizer, at_least=200).read()[0]
        inputs = [self._masked(part) for part in (training[:NEIGHBOUR_LIMIT], self.samples, unseen[:1000])]
        widest = max(x.shape[-1] for x in inputs)
        reference, drawn, held_out = (F.pad(x, (0, widest - x.shape[-1])).flatten(1).numpy() for x in inputs)
        generated, real = nearest_distances(drawn, reference), nearest_distances(held_out, reference)
        details = {
            "generated": float(np.median(generated)),
            "held_out": float(np.median(real)),
            "meaning": "median distance to the nearest training sample, over that of held-out samples; "
            "near 0: the training data is copied",
        }
        reference_set = Reference(self.recipe.data.name, "train", len(reference))
        ratio = float(np.median(generated) / max(float(np.median(real)), 1e-12))
        return Score(ratio, None, "classifier-input", reference_set, details)

    def _masked(self, samples: Sequence[Any]) -> Tensor:
        x, mask = self.recipe.adapter.classifier_input(samples)
        return x if mask is None else x * mask.reshape(len(x), *(1 for _ in x.shape[1:-1]), -1)


def evaluate(
    run: str | Path,
    metrics: Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    step: int | None = None,
    weights: str = "ema",
    shown: bool = False,
) -> Evaluation:
    """Draw samples from a run and score them.

    Args:
        run: run directory.
        metrics: names as :func:`layersync.core.catalogue.metric_names` lists them; the recipe's own when left out.
        num_samples: how many to draw; the recipe's own number when left out.
        step: checkpoint to take; the newest when left out.
        weights: ``ema`` or ``model``.
        shown: whether progress bars are drawn.

    Raises:
        InputError: for an unknown metric, fewer than 2 samples, a run that does not exist, or data without labels
            where a metric needs them.
    """
    model = load(run, step=step, weights=weights)
    recipe = model.recipe
    chosen = list(metrics or recipe.evaluate.metrics)
    check_metrics(recipe.modality, chosen)
    count = recipe.evaluate.num_samples if num_samples is None else num_samples
    if count < 2:
        raise InputError(f"--num-samples: {count}; a score needs at least 2")
    if any(metric in NEEDS_LABELS for metric in chosen) and not model.classes:
        other = [name for name in metric_names(recipe.modality) if name not in NEEDS_LABELS]
        raise InputError(
            f"{' and '.join(NEEDS_LABELS)} need labels, data {recipe.data.name} has none; there are: {', '.join(other)}"
        )
    held_out: list[Split] = ["test"] if "nearest-training" in chosen else []
    for split in ("train", recipe.evaluate.reference, *held_out):
        if not len(recipe.adapter.dataset(recipe.data, split)):
            raise InputError(f"data {recipe.data.name}: split {split} is empty, {', '.join(chosen)} cannot be scored")
    seed = recipe.evaluate.seed
    conditions = model.conditions(count, seed=seed)
    latents, mask = model.sample_latents(conditions, seed=seed, shown=shown)
    scorer = _Scorer(model, model.decode(latents, mask), conditions.label.numpy(), recipe.evaluate.reference)
    scores = {metric: scorer.score(metric) for metric in chosen}
    settings = sampling_settings(recipe.sample, count, seed)
    result = Evaluation(str(run), model.step, weights, settings, scores)
    model.run.append("evaluation.jsonl", result.to_mapping())
    return result
