"""The real side of a score: the data of a run, or anybody's samples or statistics. Features are made once and kept."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from layersync.core.adapter import Example, ExampleDataset, ModalityAdapter, Tokenizer, fingerprint_of
from layersync.core.classifier import Windows
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, identity
from layersync.core.featureset import FeatureSet, extract, holds_statistics, load_features, save_features
from layersync.core.metric import MetricName, Needs
from layersync.core.packaged import cache_folder, file_digest
from layersync.core.parallel import Processes
from layersync.core.plugin import code_digest
from layersync.core.results import Reference


class RealSet(Protocol):
    """What generated samples are compared with."""

    def features(self, extractor: FeatureExtractor, *, rows: bool, shown: bool = False) -> FeatureSet:
        """Its features; with ``rows``, not statistics alone."""
        ...

    def reference(self, features: FeatureSet) -> Reference:
        """How a score names it."""
        ...


CLIPS_AT_LEAST = 6
"""Of which nearest neighbours, the fifth at most, can be found."""


class RunData:
    """A split of the data that a run was trained on, cut to windows as the run's latents are.

    Statistics are of several windows of each clip where the data is small; rows are of one, since nearest neighbours
    and kernels would take overlapping windows for samples that are close together.
    """

    def __init__(self, dataset: ExampleDataset, tokenizer: Tokenizer, name: str, split: str, processes: Processes):
        self.windows, self.name, self.split, self.processes = Windows(dataset, tokenizer), name, split, processes
        self.once = Windows(dataset, tokenizer, at_least=1)
        code = code_digest(dataset, tokenizer)
        self._key = [dataset.fingerprint, tokenizer.fingerprint, list(tokenizer.latent.shape), split, code]

    def check(self, metrics: Sequence[MetricName]) -> None:
        """Raise :class:`InputError` for metrics of more clips than there are."""
        wanting = [metric.name for metric in metrics if metric.needs is Needs.BOTH_ROWS]
        if wanting and len(self.once) < CLIPS_AT_LEAST:
            raise InputError(
                f"metric {wanting[0]}: takes one window of each clip, at least {CLIPS_AT_LEAST}; data {self.name}, "
                f"split {self.split}, has {len(self.once)}: cut recordings into clips, or give --reference"
            )

    def features(self, extractor: FeatureExtractor, *, rows: bool, shown: bool = False) -> FeatureSet:
        """Its features. Windows are read as they are needed."""
        windows = self.once if rows else self.windows
        share = self.processes.share(len(windows))
        return _kept(
            self._key if len(windows) == len(self.windows) else [*self._key, "one window a clip"],
            extractor,
            self.processes,
            lambda: extract(
                extractor,
                windows.get,
                windows.by_clip(share),
                self.processes,
                texts=False,
                rows=rows,
                shown=shown,
            ),
            windows.get,
            rows=rows,
        )

    def reference(self, features: FeatureSet) -> Reference:
        """Data, split and number of windows."""
        return Reference(self.name, self.split, features.num_samples)


class SampleFiles:
    """Anybody's samples, by :meth:`ModalityAdapter.open_samples`, or statistics in an ``.npz``, or a file of both."""

    def __init__(
        self, adapter: ModalityAdapter, path: Path, option: str, processes: Processes, named: str | None = None
    ):
        """``named``: how a recipe names ``path``; scores then tell it by its content, on any machine."""
        self.named = named
        if not path.exists():
            raise InputError(f"{option}: {path} does not exist")
        self.adapter, self.path, self.option, self.processes = adapter, path, option, processes
        self.statistics = holds_statistics(path)
        self._examples: ExampleDataset | None = None

    @property
    def examples(self) -> ExampleDataset:
        """The samples. InputError for what holds none."""
        if self._examples is None:
            self._examples = self.adapter.open_samples(self.path)
            if len(self._examples) < 2:
                raise InputError(
                    f"{self.option}: {self.path} holds {len(self._examples)} sample; at least 2 are needed"
                )
        return self._examples

    def check(self, metrics: Sequence[MetricName]) -> None:
        """Raise :class:`InputError` for metrics that this cannot serve, and for samples that cannot be opened."""
        if not self.statistics or any(m.needs is Needs.BOTH_ROWS or m.kind == "fd-classifier" for m in metrics):
            _ = self.examples

    def check_statistics(self, metrics: Sequence[MetricName], extractors: Mapping[str, FeatureExtractor]) -> None:
        """Raise :class:`InputError` for statistics that are damaged, or of other extractors than the metrics'."""
        for metric in metrics if self.statistics else ():
            if metric.needs is Needs.BOTH and metric.extractor is not None:
                load_features(self.path, extractors[metric.extractor]).stream(metric.stream)

    def features(self, extractor: FeatureExtractor, *, rows: bool, shown: bool = False) -> FeatureSet:
        """Its features. A file that holds statistics and samples gives the statistics unless ``rows`` are wanted."""
        if self.statistics and not rows:
            return load_features(self.path, extractor, rows=False)
        return _kept(
            [fingerprint_of(self.examples)],
            extractor,
            self.processes,
            lambda: self.extracted(extractor, rows=rows, shown=shown),
            self.examples.__getitem__,
            rows=rows,
        )

    def extracted(
        self, extractor: FeatureExtractor, *, texts: bool = False, rows: bool = True, shown: bool = False
    ) -> FeatureSet:
        """Features of the samples, made anew; with ``texts`` those of their captions too."""
        share = self.processes.share(len(self.examples))
        return extract(extractor, self.examples.__getitem__, share, self.processes, texts=texts, rows=rows, shown=shown)

    def reference(self, features: FeatureSet) -> Reference:
        """The file's own name, whether all of it or statistics alone, and how many."""
        name = str(self.path)
        if self.named is not None:
            content = file_digest(self.path) if self.path.is_file() else fingerprint_of(self.examples)
            name = f"{self.named} ({content[:12]})"
        return Reference(name, "statistics" if self.statistics else "all", features.num_samples)


def _kept(
    key: Sequence[object],
    extractor: FeatureExtractor,
    processes: Processes,
    make: Callable[[], FeatureSet],
    read: Callable[[int], Example | None],
    *,
    rows: bool,
) -> FeatureSet:
    """Features out of the cache, of samples of which ``read`` gives the first; made and put there when missing.

    Statistics alone are kept in a file of their own, and come out of one with rows where that is there.
    """
    parts = [*key, identity(extractor), code_digest(extractor)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    names = [f"{digest}.npz"] if rows else [f"{digest}.npz", f"{digest}-statistics.npz"]
    paths = [cache_folder("features") / name for name in names]
    for path in paths:
        if all(processes.gather([path.is_file()])):
            if type(extractor).look is not FeatureExtractor.look and (first := read(0)) is not None:
                extractor.look(first)
            return load_features(path, extractor, rows=rows)
    found = make()
    if processes.main:
        try:
            save_features(paths[-1], found, rows=rows)
        except OSError as error:  # samples may have been drawn for hours by now
            warnings.warn(f"{paths[-1]}: features are not kept there ({error.strerror})", stacklevel=2)
    processes.wait()
    return found


def examples_of(
    samples: Sequence[object], labels: Sequence[int], captions: Sequence[str], start: int = 0
) -> dict[int, Example]:
    """Generated samples by number, with the labels (-1: none) and texts ("": none) that they were asked for."""
    found: dict[int, Example] = {}
    for row, (sample, label, caption) in enumerate(zip(samples, labels, captions, strict=True), start=start):
        condition = ({"label": label} if label >= 0 else {}) | ({"text": caption} if caption else {})
        found[row] = Example(sample, condition, f"generated sample {row}")
    return found
