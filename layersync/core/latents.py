"""Latents on disk: every sample is tokenized once, and read memory-mapped ever after.

The cache holds the stored form of whole clips, each in the variants that the data set lists; windows are cut when they
are read. It is keyed by the fingerprints of data and tokenizer, so that a change of either makes a new one. A lock
keeps two processes from building the same cache twice. On disk: ``rows.bin``, float32 rows one frame each (one sample
each, for latents without frames), ``index.npz`` with where clips begin and their labels, ``captions.json`` with the
texts of each example, ``meta.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from layersync.core.adapter import ExampleDataset, LatentSpec, Tokenizer
from layersync.core.draws import StepDraws
from layersync.core.errors import InputError
from layersync.core.packaged import cache_directory
from layersync.core.progress import progress

logger = logging.getLogger(__name__)

FORMAT = 3
ENCODE_BATCH = 32
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
    parts = [FORMAT, dataset.fingerprint, tokenizer.fingerprint, list(dataset.variants), dataset.on_error]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


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
        shape = (int(self.starts[-1]), math.prod(self.row_shape))
        self.rows = np.memmap(directory / "rows.bin", dtype=np.float32, mode="r", shape=shape)

    @classmethod
    def open(
        cls, dataset: ExampleDataset, tokenizer: Tokenizer, *, limit: int | None = None, directory: Path | None = None
    ) -> LatentCache:
        """The cache for these, built when it is missing.

        ``limit`` encodes only the first examples, into ``directory`` (for a dry run). Raises :class:`InputError` for
        an unreadable sample, unless the data set says to skip such.
        """
        root = directory or cache_directory() / "latents"
        root.mkdir(parents=True, exist_ok=True)
        target = root / cache_key(dataset, tokenizer)
        if not _complete(target):
            with FileLock(str(target) + ".lock"):
                if not _complete(target):
                    _build(target, dataset, tokenizer, limit)
        cache = cls(target, tokenizer.latent)
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
        return self._laid_out(torch.from_numpy(self.rows[self.starts[row] : self.starts[row + 1]].copy()))

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
            _chosen(self.captions[index], float(position))
            for index, position in zip(draws.indices, draws.caption, strict=True)
        )
        variant = (draws.variant.double().numpy() * self.num_variants).astype(np.int64)
        entries = draws.indices * self.num_variants + np.minimum(variant, self.num_variants - 1)
        window = self.latent.num_frames
        if window is None:
            return LatentBatch(self._laid_out(torch.from_numpy(self.rows[entries][:, None])), None, label, captions)
        first, last = self.starts[entries], self.starts[entries + 1]
        room = np.maximum(last - first - window, 0) + 1
        first = first + np.minimum((draws.position.double().numpy() * room).astype(np.int64), room - 1)
        length = np.minimum(last - first, window)
        out = np.zeros((len(entries), window, self.rows.shape[1]), dtype=np.float32)
        for row in range(len(entries)):
            out[row, : length[row]] = self.rows[first[row] : first[row] + length[row]]
        mask = torch.from_numpy(np.arange(window)[None] < length[:, None])
        return LatentBatch(self._laid_out(torch.from_numpy(out)), mask, label, captions)

    def clips(self, limit: int = FIT_LIMIT) -> Iterable[Tensor]:
        """Stored clips of all variants, evenly thinned to ``limit`` examples; can be walked again and again."""
        return _Clips(self, limit)


def _chosen(captions: Sequence[str], position: float) -> str:
    return captions[min(int(position * len(captions)), len(captions) - 1)] if captions else ""


class _Clips:
    def __init__(self, cache: LatentCache, limit: int):
        self.cache, self.limit = cache, limit

    def __iter__(self) -> Iterator[Tensor]:
        count = len(self.cache)
        for entry in np.unique(np.linspace(0, count - 1, min(count, self.limit)).astype(np.int64)):
            for variant in range(self.cache.num_variants):
                yield self.cache.stored(int(entry), variant)


def _complete(target: Path) -> bool:
    try:
        meta = json.loads((target / "meta.json").read_text())
        index = (target / "index.npz").is_file() and (target / "captions.json").is_file()
        return index and (target / "rows.bin").stat().st_size == meta["bytes"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def _build(target: Path, dataset: ExampleDataset, tokenizer: Tokenizer, limit: int | None) -> None:
    count = len(dataset) if limit is None else min(limit, len(dataset))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        partial = Path(scratch) / "cache"
        partial.mkdir()
        frames: list[int] = []
        labels: list[int] = []
        examples: list[int] = []
        captions: list[tuple[str, ...]] = []
        row_shape: tuple[int, ...] = ()
        latent = tokenizer.latent
        skipped = 0
        with (partial / "rows.bin").open("wb") as rows, progress("tokenizing", count) as advance:
            for first in range(0, count, ENCODE_BATCH):
                samples, batch = [], range(first, min(first + ENCODE_BATCH, count))
                for index in batch:
                    try:
                        example = dataset[index]
                        samples += [dataset.variant(example.sample, name) for name in dataset.variants]
                    except InputError as error:
                        if dataset.on_error != "skip":
                            raise
                        logger.warning("skipped: %s", error)
                        skipped += 1
                        continue
                    labels.append(example.label)
                    captions.append(example.captions)
                    examples.append(index)
                for clip in tokenizer.encode(samples) if samples else ():
                    laid = clip.movedim(latent.frame_axis, 0) if latent.variable else clip.unsqueeze(0)
                    row_shape = tuple(laid.shape[1:])
                    frames.append(len(laid))
                    rows.write(laid.contiguous().to(torch.float32).numpy().tobytes())
                advance(len(batch))
        if not labels:
            raise InputError(f"data: nothing could be read ({skipped} skipped)" if skipped else "data: is empty")
        starts = np.concatenate([[0], np.cumsum(frames)]).astype(np.int64)
        np.savez(partial / "index.npz", starts=starts, labels=np.array(labels), examples=np.array(examples))
        (partial / "captions.json").write_text(json.dumps(captions))
        meta = {
            "format": FORMAT,
            "bytes": (partial / "rows.bin").stat().st_size,
            "row_shape": row_shape,
            "num_variants": len(dataset.variants),
            "skipped": skipped,
        }
        (partial / "meta.json").write_text(json.dumps(meta) + "\n")
        if target.exists():
            target.rename(Path(scratch) / "broken")
        partial.rename(target)
