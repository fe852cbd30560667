"""Latents on disk: every sample is tokenized once, and read memory-mapped ever after.

The cache holds the stored form of whole clips, each in the variants that the data set lists; windows are cut when they
are read. It is keyed by the fingerprints of data and tokenizer, so that a change of either makes a new one. How it is
built, and what lies on disk: :mod:`layersync.core.shards`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import ExampleDataset, LatentSpec, Tokenizer, fingerprint_of
from layersync.core.draws import StepDraws
from layersync.core.errors import InputError
from layersync.core.packaged import cache_folder
from layersync.core.plugin import class_of
from layersync.core.shards import FORMAT, ShardFile, build, complete, is_row, verify

logger = logging.getLogger(__name__)

FIT_LIMIT = 10_000


@dataclass(frozen=True)
class LatentBatch:
    """Stored windows (batch, ...), their frame mask, and what their examples are conditioned on.

    ``label`` is (batch,) int64, -1 for unlabelled; ``captions`` holds one of the texts of each example, "" for none.
    """

    stored: Tensor
    mask: Tensor | None
    label: Tensor
    captions: tuple[str, ...]


def cache_key(dataset: ExampleDataset, tokenizer: Tokenizer) -> str:
    """Name of the cache of this data set under this tokenizer."""
    parts = [FORMAT, fingerprint_of(dataset), fingerprint_of(tokenizer), list(dataset.variants), dataset.on_error]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _mapped(path: Path, rows: int, values: int) -> np.ndarray:
    """A file of float32, memory-mapped. NumPy's own map would keep a file open, of which a process may have few."""
    mapped = torch.from_file(str(path), shared=False, size=rows * values, dtype=torch.float32).numpy()
    mapped.setflags(write=False)
    return mapped.reshape(rows, values)


class LatentCache:
    """Read access to a built cache. Made by :meth:`open`.

    ``labels`` is (examples,) int64, -1 for unlabelled; ``captions`` the texts of each, none or several; ``examples``
    says which index of the data set each entry is (unreadable ones are skipped where the data section says so);
    ``frames`` (examples,) how long each clip is.
    """

    def __init__(self, directory: Path, latent: LatentSpec):
        self.directory = directory
        self.latent = latent
        self.meta: dict[str, Any] = json.loads((directory / "meta.json").read_text())
        index = np.load(directory / "index.npz")
        self.starts, self.labels, self.examples = index["starts"], index["labels"], index["examples"]
        self.captions: list[list[str]] = json.loads((directory / "captions.json").read_text())
        self.num_variants: int = self.meta["num_variants"]
        self.row_shape: tuple[int, ...] = tuple(self.meta["row_shape"])
        files = [ShardFile(**file) for file in self.meta["files"]]
        verify(directory, files)
        values = math.prod(self.row_shape)
        self._files = [_mapped(directory / file.name, file.rows, values) for file in files]
        self._first_rows = np.concatenate([[0], np.cumsum([file.rows for file in files])])

    @classmethod
    def open(
        cls, dataset: ExampleDataset, tokenizer: Tokenizer, *, limit: int | None = None, directory: Path | None = None
    ) -> LatentCache:
        """The cache for these; what is missing of it is built first, beside other processes that do so too.

        ``limit`` encodes only the first examples, into ``directory`` (for a dry run). Raises :class:`InputError` for
        an unreadable sample, unless the data set says to skip such, for a stored form that is not laid out as the
        tokenizer's ``latent``, now or under the same fingerprint before, and for a file whose checksum is wrong.
        """
        root = directory or cache_folder("latents")
        target = root / cache_key(dataset, tokenizer)
        if not complete(target):
            build(target, dataset, tokenizer, limit=limit)
        cache = cls(target, tokenizer.latent)
        if not is_row(cache.row_shape, tokenizer.latent):
            raise InputError(
                f"{class_of(tokenizer)}.latent is {list(tokenizer.latent.shape)}, but the latents kept under its "
                f"fingerprint have rows of {list(cache.row_shape)}; it has to change with what encode returns"
            )
        if len(cache) and not -1 <= cache.labels.min() <= cache.labels.max() < max(len(dataset.classes), 1):
            raise InputError(
                f"{class_of(dataset)}: has labels from {cache.labels.min()} to {cache.labels.max()} of "
                f"{len(dataset.classes)} classes; a label is an index into the classes, or -1 for none"
            )
        if cache.meta["skipped"]:
            skipped = cache.meta["skipped"]
            total = skipped + len(cache)
            logger.warning("data: %d of %d samples could not be read and were skipped", skipped, total)
        return cache

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def frames(self) -> np.ndarray:
        """Length of each example's clip."""
        starts = self.starts[:: self.num_variants]
        lengths = self.starts[1 :: self.num_variants] - starts[: len(self)]
        return lengths.astype(np.int64)

    def stored(self, entry: int, variant: int = 0) -> Tensor:
        """The whole stored clip of one entry, laid out as latents are."""
        row = entry * self.num_variants + variant
        first, last = int(self.starts[row]), int(self.starts[row + 1])
        return self._laid_out(torch.from_numpy(self._span(first, last - first).copy()))

    def _span(self, first: int, count: int) -> np.ndarray:
        """``count`` rows of one clip from row ``first`` on: no clip lies in two files."""
        number = int(np.searchsorted(self._first_rows, first, side="right")) - 1
        start = first - int(self._first_rows[number])
        return self._files[number][start : start + count]

    def _gathered(self, rows: np.ndarray) -> np.ndarray:
        """Single rows from anywhere, (len(rows), values)."""
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        within = (rows - self._first_rows[numbers]).tolist()
        out = np.empty((len(rows), self._files[0].shape[1]), dtype=np.float32)
        for place, (number, row) in enumerate(zip(numbers.tolist(), within, strict=True)):  # faster than by file
            out[place] = self._files[number][row]
        return out

    def _laid_out(self, rows: Tensor) -> Tensor:
        """(..., frames, values) to (..., *latent) with frames on their axis."""
        if not self.latent.variable:
            return rows.reshape(*rows.shape[:-2], *self.row_shape)
        shaped = rows.reshape(*rows.shape[:-1], *self.row_shape)
        batch_axes = rows.ndim - 2
        return shaped.movedim(batch_axes, batch_axes + self.latent.frame_axis)

    def read(self, draws: StepDraws) -> LatentBatch:
        """The windows and conditions that ``draws`` name; shorter clips are padded with zeros and masked."""
        label = torch.from_numpy(self.labels[draws.indices])
        captions = tuple(
            drawn_caption(self.captions[index], float(position))
            for index, position in zip(draws.indices, draws.caption, strict=True)
        )
        variant = (draws.variant.double().numpy() * self.num_variants).astype(np.int64)
        entries = draws.indices * self.num_variants + np.minimum(variant, self.num_variants - 1)
        window = self.latent.num_frames
        if window is None:
            return LatentBatch(
                self._laid_out(torch.from_numpy(self._gathered(entries)[:, None])), None, label, captions
            )
        first, last = self.starts[entries], self.starts[entries + 1]
        room = np.maximum(last - first - window, 0) + 1
        first = first + np.minimum((draws.position.double().numpy() * room).astype(np.int64), room - 1)
        length = np.minimum(last - first, window)
        out = np.zeros((len(entries), window, math.prod(self.row_shape)), dtype=np.float32)
        for row in range(len(entries)):
            out[row, : length[row]] = self._span(int(first[row]), int(length[row]))
        mask = torch.from_numpy(np.arange(window)[None] < length[:, None])
        return LatentBatch(self._laid_out(torch.from_numpy(out)), mask, label, captions)

    def clips(self) -> Iterable[Tensor]:
        """Stored clips of all variants, evenly thinned to :data:`FIT_LIMIT` examples; can be walked again and again."""
        return _Clips(self)


def drawn_caption(captions: Sequence[str], position: float) -> str:
    """One of an example's texts by a draw in [0, 1); "" where it has none."""
    return captions[min(int(position * len(captions)), len(captions) - 1)] if captions else ""


class _Clips:
    def __init__(self, cache: LatentCache):
        self.cache = cache

    def __iter__(self) -> Iterator[Tensor]:
        count = len(self.cache)
        for entry in np.unique(np.linspace(0, count - 1, min(count, FIT_LIMIT)).astype(np.int64)):
            for variant in range(self.cache.num_variants):
                yield self.cache.stored(int(entry), variant)
