"""Features of a set of samples: extracted once, in one pass, shared over processes, kept on disk."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layersync.core.adapter import Example
from layersync.core.archive import opened_npz
from layersync.core.device import float32_products
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Rows, identity
from layersync.core.parallel import Processes
from layersync.core.plugin import calling, class_of
from layersync.core.progress import progress
from layersync.core.run import atomic_write
from layersync.metrics.frechet import GaussianStatistics

SUFFIXES = {"spatial": "_s"}
"""How ADM's reference files name the statistics of a stream that is not the first: ``mu_s``, ``sigma_s``."""
ROWS_AT_ONCE = 4096
"""Rows that wait to be counted together where they are not kept: one product of matrices for all of them."""


@dataclass(frozen=True)
class StreamFeatures:
    """One stream of a set: statistics of all its rows, and the rows (n, d) with the sample (n,) that each is of.

    ``rows`` and ``owner`` are ``None`` where statistics alone were wanted, or a file holds no more.
    """

    statistics: GaussianStatistics
    rows: Rows | None = None
    owner: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FeatureSet:
    """Features of ``num_samples`` samples (``None`` where a file does not say) by stream."""

    extractor: str
    checksum: str
    preprocessing: str
    streams: dict[str, StreamFeatures]
    num_samples: int | None
    texts: tuple[str, ...] | None = None

    def stream(self, name: str | None) -> StreamFeatures:
        """The stream of that name, the first for ``None``. Raises :class:`InputError` for one that is not there."""
        chosen = next(iter(self.streams)) if name is None else name
        if chosen not in self.streams:
            raise InputError(f"extractor {self.extractor} has no {chosen!r} here; it has: {', '.join(self.streams)}")
        return self.streams[chosen]

    def per_sample(self, name: str | None) -> Rows:
        """(samples, d) mean row of each sample, in order."""
        found = self.stream(name)
        if found.rows is None or found.owner is None:
            raise InputError(f"extractor {self.extractor}: statistics alone are not enough for this metric")
        _, sample, counts = np.unique(found.owner, return_inverse=True, return_counts=True)
        if len(found.rows) == len(counts):
            return found.rows
        sums = np.zeros((len(counts), found.rows.shape[1]), dtype=np.float64)
        np.add.at(sums, sample, found.rows)
        return (sums / counts[:, None]).astype(np.float32)


def extract(
    extractor: FeatureExtractor,
    read: Callable[[int], Example | None],
    numbers: Sequence[int],
    processes: Processes,
    *,
    texts: bool,
    rows: bool = True,
    shown: bool = False,
) -> FeatureSet:
    """Features of the samples ``numbers``, this process's share of the whole set; the same whole set on all.

    A million images have 20 GB of Inception's rows, all of which every process holds; their statistics are 100 MB.

    Args:
        extractor: what to run.
        read: gives the sample of a number, or ``None`` for one that is left out; called once for each, in order.
        numbers: numbers of this process's samples in the whole set.
        processes: who else is at it.
        texts: whether the samples' texts go through the extractor too; every sample has to have one then.
        rows: whether rows are kept, and not their statistics alone.
        shown: whether a progress bar is drawn.

    Raises:
        InputError: for features that are not finite (which extractor, how many, the first sample), or not rows of one
            width (which class and sample), and whatever ``read`` and the extractor raise.
    """
    widths: dict[str, int] = {}
    shares: dict[str, _Share] = {}
    found_texts: list[str] = []
    done: list[int] = []
    with progress(f"features of {extractor.name}", len(numbers), shown=shown) as advance:
        for first in range(0, len(numbers), extractor.batch_size):
            asked = numbers[first : first + extractor.batch_size]
            found = {number: example for number in asked if (example := read(number)) is not None}
            advance(len(asked))
            if not found:
                continue
            batch, examples = list(found), [_with_text(example, texts) for example in found.values()]
            with float32_products(), calling(extractor, "__call__"):
                streams = extractor(examples)
            _check_rows(extractor, streams, examples, widths)
            _check_finite(extractor, streams, examples)
            for name, found_rows in streams.items():
                shares.setdefault(name, _Share(widths[name], rows)).add(batch, found_rows)
            if texts:
                found_texts += [example.captions[0] for example in examples]
            done += batch
    return _gathered(extractor, shares, rows, done, found_texts if texts else None, processes)


class _Share:
    """One stream of this process's samples: rows with the sample that each is of, or statistics of those before."""

    def __init__(self, width: int, keep: bool):
        self.width, self.count, self._keep = width, 0, keep
        self._rows: list[Rows] = []
        self._owner: list[NDArray[np.int64]] = []
        self._counted = GaussianStatistics()

    def add(self, numbers: Sequence[int], rows: Sequence[Rows]) -> None:
        """Rows (n, d) of each of the samples ``numbers``."""
        self._rows += [np.array(part, dtype=np.float32) for part in rows]  # views would hold whole batches
        self.count += sum(map(len, rows))
        if self._keep:
            self._owner += [
                np.full(len(part), number, dtype=np.int64) for number, part in zip(numbers, rows, strict=True)
            ]
        elif self.count - (self._counted.count or 0) >= ROWS_AT_ONCE:
            self.statistics()

    def kept(self) -> tuple[Rows, NDArray[np.int64]]:
        """All rows, and the sample of each; given away."""
        rows, owner = np.concatenate(self._rows), np.concatenate(self._owner)
        self._rows, self._owner = [], []
        return rows, owner

    def statistics(self) -> GaussianStatistics:
        """Of all rows, which are not kept."""
        if self.count > (self._counted.count or 0):
            self._counted.update(np.concatenate(self._rows))
        self._rows = []
        return self._counted


def _with_text(example: Example, wanted: bool) -> Example:
    """The example with the first of its texts, without any where none is wanted. InputError where it has none."""
    if wanted and not example.captions:
        raise InputError(f"{example.source}: has no text, which this metric needs; put one beside it, as NAME.txt")
    condition = {key: value for key, value in example.condition.items() if key != "text"}
    return replace(example, condition=condition | {"text": example.captions[0]} if wanted else condition)


def _check_rows(
    extractor: FeatureExtractor, streams: dict[str, list[Rows]], examples: Sequence[Example], widths: dict[str, int]
) -> None:
    """InputError unless every sample has rows (n, d) of each stream, as wide as those before: ``widths`` by stream."""
    where = f"{class_of(extractor)}.__call__"
    if not isinstance(streams, dict):
        raise InputError(f"{where}: expected arrays by stream, a dict; got {type(streams).__name__}")
    if widths and set(streams) != set(widths):
        raise InputError(
            f"{where}: expected streams {', '.join(widths)}, as before; got {', '.join(streams) or 'none'}"
        )
    for name, rows in streams.items():
        if len(rows) != len(examples):
            raise InputError(f"{where}: expected {name} of {len(examples)} samples, an array each; got {len(rows)}")
        for example, part in zip(examples, rows, strict=True):
            width = part.shape[1] if isinstance(part, np.ndarray) and part.ndim == 2 else None
            if width is None or width != widths.setdefault(name, width):
                wanted = f"an array [n, {widths.get(name, 'd')}] of {name}"
                got = list(part.shape) if isinstance(part, np.ndarray) else type(part).__name__
                raise InputError(f"{where}: expected {wanted}; got {got} of {example.source}")


def _check_finite(extractor: FeatureExtractor, streams: dict[str, list[Rows]], examples: Sequence[Example]) -> None:
    for name, rows in streams.items():
        bad = [example.source for example, part in zip(examples, rows, strict=True) if not np.isfinite(part).all()]
        if bad:
            raise InputError(
                f"extractor {extractor.name}: {name} of {len(bad)} of {len(examples)} samples hold values that are not "
                f"finite numbers, the first of {bad[0]}"
            )


def _gathered(
    extractor: FeatureExtractor,
    shares: dict[str, _Share],
    keep: bool,
    numbers: list[int],
    texts: list[str] | None,
    processes: Processes,
) -> FeatureSet:
    """Put the shares of all processes together, in the order of the samples."""
    if len(set(processes.gather([identity(extractor)]))) > 1:
        raise InputError(
            f"extractor {extractor.name}: the processes of this launch have different weights of it; let "
            f"$LAYERSYNC_CACHE and the weights lie where all machines see them"
        )
    names = max(processes.gather([tuple(shares)]), key=len)  # a process without a sample of its own knows none
    streams = {}
    for name in names:
        local = [shares.pop(name)] if name in shares else []
        sizes = processes.gather([(share.width, share.count) for share in local])
        _check_widths(extractor, name, {width for width, _ in sizes})
        if (total := sum(count for _, count in sizes)) < 2:
            raise InputError(f"extractor {extractor.name}: {total} row of {name}; a score needs at least 2")
        streams[name] = _kept_rows(local, processes) if keep else _counted_rows(local, processes)
    whole = None
    if texts is not None:
        found = dict(pair for share in processes.gather([list(zip(numbers, texts, strict=True))]) for pair in share)
        whole = tuple(found[number] for number in sorted(found))
    count = sum(processes.gather([len(numbers)]))
    return FeatureSet(extractor.name, extractor.checksum, extractor.preprocessing, streams, count, whole)


def _kept_rows(local: Sequence[_Share], processes: Processes) -> StreamFeatures:
    found = processes.gather([share.kept() for share in local])
    rows, owner = (
        found[0][column] if len(found) == 1 else np.concatenate([share[column] for share in found]) for column in (0, 1)
    )
    if (np.diff(owner) < 0).any():
        order = np.argsort(owner, kind="stable")
        rows, owner = rows[order], owner[order]
    return StreamFeatures(GaussianStatistics.of(rows), rows, owner)


def _counted_rows(local: Sequence[_Share], processes: Processes) -> StreamFeatures:
    statistics = GaussianStatistics()
    for share in processes.gather([share.statistics() for share in local]):
        statistics.merge(share)
    return StreamFeatures(statistics)


def _check_widths(extractor: FeatureExtractor, stream: str, widths: set[int]) -> None:
    if len(widths) > 1:
        found = " and ".join(map(str, sorted(widths)))
        raise InputError(f"{class_of(extractor)}.__call__: expected {stream} of one width for all samples; got {found}")


def save_features(path: Path, features: FeatureSet, *, rows: bool = True) -> None:
    """Write a set as ``.npz``; without ``rows``, statistics alone, named as ADM's and pytorch-fid's files name them.

    ``mu`` and ``sigma`` are the first stream's, ``mu_s`` and ``sigma_s`` those of ``spatial``; ``layersync`` holds
    what they were made with, as JSON.
    """
    arrays: dict[str, Any] = {}
    counts = {}
    for number, (name, stream) in enumerate(features.streams.items()):
        suffix = _suffix(number, name)
        arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = stream.statistics.mean, stream.statistics.covariance
        counts[name] = stream.statistics.count
        if rows and stream.rows is not None and stream.owner is not None:
            arrays[f"rows{suffix}"], arrays[f"owner{suffix}"] = stream.rows, stream.owner
    about = {
        "extractor": features.extractor,
        "checksum": features.checksum,
        "preprocessing": features.preprocessing,
        "num_samples": features.num_samples,
        "counts": counts,
    }
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, layersync=np.array(json.dumps(about)), **arrays)


def load_features(path: Path, extractor: FeatureExtractor, *, rows: bool = True) -> FeatureSet:
    """Read what :func:`save_features` wrote, or statistics that another program did (``mu``, ``sigma``).

    Without ``rows``, those that the file holds are not read.

    Raises:
        InputError: for a file that is damaged, holds no statistics, or was made with another extractor, other weights
            or another preprocessing, naming both.
    """
    with opened_npz(path) as stored:
        left_out = ("arr_",) if rows else ("arr_", "rows", "owner")
        arrays = {name: stored[name] for name in stored.files if not name.startswith(left_out)}
    if "mu" not in arrays or "sigma" not in arrays:
        raise InputError(f"{path}: holds no statistics mu and sigma, but {', '.join(arrays) or 'nothing'}")
    about = _about(path, arrays)
    for key in ("extractor", "checksum", "preprocessing"):
        ours = {"extractor": extractor.name, "checksum": extractor.checksum, "preprocessing": extractor.preprocessing}
        if about and about[key] != ours[key]:
            raise InputError(f"{path}: was made with {key} {about[key]!r}, not {ours[key]!r}: not to be compared")
    streams = {}
    for number, name in enumerate(about["counts"] if about else extractor.streams):
        suffix = _suffix(number, name)
        if f"mu{suffix}" not in arrays:
            continue
        mean, covariance = arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"]
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
            raise InputError(f"{path}: mu{suffix} and sigma{suffix} are {shapes}, not [d] and [d, d]")
        count = about["counts"][name] if about else None
        statistics = GaussianStatistics(mean, covariance, count)
        streams[name] = StreamFeatures(statistics, arrays.get(f"rows{suffix}"), arrays.get(f"owner{suffix}"))
    samples = about["num_samples"] if about else None
    return FeatureSet(extractor.name, extractor.checksum, extractor.preprocessing, streams, samples)


def holds_statistics(path: Path) -> bool:
    """Whether ``path`` is an ``.npz`` with ``mu`` and ``sigma``."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return False
    with opened_npz(path) as archive:
        return {"mu", "sigma"} <= set(archive.files)


def _about(path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """What the file says it was made with; empty for a file of another program."""
    if "layersync" not in arrays:
        return {}
    try:
        about = json.loads(str(arrays["layersync"]))
        return {key: about[key] for key in ("extractor", "checksum", "preprocessing", "num_samples", "counts")}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: what it says of itself is damaged; make it anew") from None


def _suffix(number: int, name: str) -> str:
    return "" if number == 0 else SUFFIXES.get(name, f"_{name}")
