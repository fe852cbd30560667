"""Building a latent cache: shards of bounded size, written by any number of processes, resumed after any end.

A shard holds the latents of :data:`SHARD_EXAMPLES` consecutive examples in all their variants. On disk, in the folder
of the cache::

    plan.json                  how many examples there are, how many to a shard, how large a file may be
    shard-00007.bin            float32 rows, one frame each (one sample each, for latents without frames)
    shard-00007-1.bin          and on, where one file would be larger than SHARD_BYTES
    shard-00007.json           written last: its files with their CRC-32, labels, captions, lengths. Now it is finished
    index.npz captions.json    of all shards, once all are finished
    meta.json                  written last of all: now the cache is complete
    verified.json              which files were read again and found whole, with size and time

Processes agree by file locks, one a shard: whoever holds the lock of a shard encodes it, and a lock goes with its
process. So ``torchrun`` and commands started by hand, on one machine or on several at a file system that has locks,
share the work, and after a crash only the shards that were being written are encoded again.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from layersync.core.adapter import Example, ExampleDataset, LatentSpec, Tokenizer
from layersync.core.device import float32_products
from layersync.core.errors import InputError
from layersync.core.packaged import sync_path
from layersync.core.plugin import PluginError, calling, class_of
from layersync.core.progress import progress
from layersync.core.reading import read_ahead, reading_threads
from layersync.core.run import atomic_write

logger = logging.getLogger(__name__)

FORMAT = 4
ENCODE_BATCH = 32
ENCODE_BYTES = 256 * 2**20
"""Samples that are encoded together pass it by one example at most: whole recordings are large."""
SHARD_EXAMPLES = 2048
SHARD_BYTES = 512 * 2**20
"""No file is larger, unless a single clip is."""
LOG_EVERY = 60
"""Seconds between lines about progress, where stderr is no terminal."""
CHECKED_AT_ONCE = 4


@dataclass(frozen=True)
class ShardFile:
    """One file of rows."""

    name: str
    rows: int
    bytes: int
    crc32: int


@dataclass
class Shard:
    """What ``shard-N.json`` holds; ``frames`` has an entry for each variant of each example."""

    files: list[ShardFile] = field(default_factory=list)
    row_shape: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    skipped: int = 0


@dataclass(frozen=True)
class Plan:
    """How a data set is divided."""

    format: int
    count: int
    shard_examples: int
    shard_bytes: int
    num_variants: int

    @property
    def num_shards(self) -> int:
        """How many shards there are; at least one."""
        return max(1, -(-self.count // self.shard_examples))

    def examples(self, number: int) -> range:
        """Examples of shard ``number``, from 0."""
        return range(number * self.shard_examples, min((number + 1) * self.shard_examples, self.count))


def complete(target: Path) -> bool:
    """Whether the cache in ``target`` is there as a whole, every file as long as it should be."""
    try:
        meta = json.loads((target / "meta.json").read_text())
        there = (target / "index.npz").is_file() and (target / "captions.json").is_file()
        return there and all((target / file["name"]).stat().st_size == file["bytes"] for file in meta["files"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def build(target: Path, dataset: ExampleDataset, tokenizer: Tokenizer, *, limit: int | None = None) -> None:
    """Encode what is missing of the cache in ``target``, beside other processes; returns when it is complete.

    ``limit`` encodes the first examples alone. Work goes on in shards as it was begun. Raises :class:`InputError` for
    an unreadable sample, unless the data set says to skip such, and for a stored form that is not laid out as the
    tokenizer's ``latent``; finished shards stay.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    plan = _agree(target, Plan(FORMAT, count, SHARD_EXAMPLES, SHARD_BYTES, len(dataset.variants)))
    try:
        _encode(target, plan, dataset, tokenizer)
        with _lock(target):
            if not complete(target):
                _merge(target, plan, tokenizer)
    except InputError:
        _discard(target)
        raise


def _agree(target: Path, wanted: Plan) -> Plan:
    """The plan that was begun with, else ``wanted``."""
    with _lock(target):
        target.mkdir(exist_ok=True)
        if not complete(target):  # it would vouch for files that are about to be written again
            (target / "meta.json").unlink(missing_ok=True)
        file = target / "plan.json"
        try:
            found = Plan(**json.loads(file.read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            found = None
        if found is not None and (found.format, found.count) == (wanted.format, wanted.count):
            return found
        for old in target.glob("shard-*"):
            old.unlink()
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(asdict(wanted)))
        return wanted


def _encode(target: Path, plan: Plan, dataset: ExampleDataset, tokenizer: Tokenizer) -> None:
    with _pace(plan, sum(len(plan.examples(n)) for n in range(plan.num_shards) if _finished(target, n))) as advance:
        while missing := [number for number in range(plan.num_shards) if not _finished(target, number)]:
            claimed = 0
            for number in missing:
                try:
                    with FileLock(target / f".shard-{number:05d}.lock", timeout=0):
                        if not _finished(target, number):
                            _write_shard(target, number, plan, dataset, tokenizer, advance)
                            claimed += 1
                except Timeout:  # another process is at it
                    continue
            if not claimed:
                with FileLock(target / f".shard-{missing[0]:05d}.lock"):  # until the other is done, or gone
                    pass


def _finished(target: Path, number: int) -> bool:
    try:
        shard = read_shard(target, number)
        return all((target / file.name).stat().st_size == file.bytes for file in shard.files)
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return False


def read_shard(target: Path, number: int) -> Shard:
    """What is known of a finished shard."""
    content = json.loads((target / f"shard-{number:05d}.json").read_text())
    return Shard(**{**content, "files": [ShardFile(**file) for file in content["files"]]})


def _write_shard(
    target: Path, number: int, plan: Plan, dataset: ExampleDataset, tokenizer: Tokenizer, advance: Any
) -> None:
    for torn in target.glob(f".shard-{number:05d}*.partial"):
        torn.unlink()
    shard, latent = Shard(), tokenizer.latent
    left = len(plan.examples(number))
    with (
        _RowFiles(target, number, plan.shard_bytes) as rows,
        closing(_readable(dataset, plan.examples(number), shard)) as examples,
    ):
        while left:
            samples: list[Any] = []
            sources: list[str] = []
            done = size = 0
            for example in islice(examples, ENCODE_BATCH):
                done += 1
                if example is not None:
                    with calling(dataset, "variant"):
                        samples += [dataset.variant(example.sample, name) for name in dataset.variants]
                    source = example.source or f"example {shard.examples[-1]}"
                    sources += [
                        f"{source} ({name})" if name != dataset.variants[0] else source for name in dataset.variants
                    ]
                    size += sum(map(_bytes_of, samples[-len(dataset.variants) :]))
                if size >= ENCODE_BYTES:
                    break
            for clip, source in zip(_encoded(tokenizer, samples, sources), sources, strict=True):
                laid = clip.movedim(latent.frame_axis, 0) if latent.variable else clip.unsqueeze(0)
                row = list(laid.shape[1:])
                shard.row_shape = shard.row_shape or row
                if row != shard.row_shape or not is_row(row, latent):
                    besides = ", besides frames and channels" if latent.variable else ", besides channels"
                    same = f" and all of one shape, {shard.row_shape} so far" if row != shard.row_shape else ""
                    raise InputError(
                        f"{class_of(tokenizer)}.encode: expected {list(latent.shape)}{besides}{same}; "
                        f"got {list(clip.shape)} of {source}"
                    )
                shard.frames.append(len(laid))
                rows.write(laid)
            advance(done)
            left -= done
        shard.files = rows.close()
    with atomic_write(target / f"shard-{number:05d}.json") as partial:
        partial.write_text(json.dumps(asdict(shard)))


def _bytes_of(sample: Any) -> int:
    """Bytes of an array, or of those that a dataclass holds; 0 for what does not say."""
    if is_dataclass(sample):
        return sum(_bytes_of(getattr(sample, each.name)) for each in fields(sample))
    return sample.nbytes if isinstance(sample, np.ndarray | Tensor) else 0


def _encoded(tokenizer: Tokenizer, samples: Sequence[Any], sources: Sequence[str]) -> Sequence[Tensor]:
    """The stored form of ``samples``: finite float32 tensors, one each, with the axes of ``latent``, of any length."""
    if not samples:
        return ()
    with float32_products(), calling(tokenizer, "encode"):
        found = tokenizer.encode(samples)
    where, axes = f"{class_of(tokenizer)}.encode", len(tokenizer.latent.shape)
    if not isinstance(found, Sequence) or len(found) != len(samples):
        given = len(found) if isinstance(found, Sequence) else type(found).__name__
        raise InputError(f"{where}: expected a list of {len(samples)} tensors, one a sample; got {given}")
    for clip, source in zip(found, sources, strict=True):
        if not isinstance(clip, Tensor) or (clip.dtype, clip.device.type) != (torch.float32, "cpu"):
            got = f"{clip.dtype} on {clip.device}" if isinstance(clip, Tensor) else type(clip).__name__
            raise InputError(f"{where}: expected float32 tensors on the CPU; got {got} of {source}")
        if clip.ndim != axes:
            wanted = list(tokenizer.latent.shape)
            raise InputError(f"{where}: expected {axes} axes, laid out as {wanted}; got {list(clip.shape)} of {source}")
        if tokenizer.latent.variable and not clip.shape[tokenizer.latent.frame_axis]:
            raise InputError(
                f"{where}: expected frames along axis {tokenizer.latent.frame_axis}; got {list(clip.shape)} of {source}"
            )
        if wrong := int((~torch.isfinite(clip)).sum()):
            raise InputError(
                f"{where}: expected finite numbers; got {wrong} of {clip.numel()} that are not, of {source}"
            )
    return found


def is_row(shape: Sequence[int], latent: LatentSpec) -> bool:
    """Whether ``shape`` is a row of ``latent``, a frame or all of it, with any channels: those stored may differ."""
    grid = latent.grid[:-1] if latent.variable else latent.grid
    return tuple(shape[:-1] if latent.sequence else shape[1:]) == grid and len(shape) == len(grid) + 1


def _readable(dataset: ExampleDataset, indices: Sequence[int], shard: Shard) -> Generator[Example | None]:
    """The examples; ``None`` for one that cannot be read, which is counted, where the data set says to skip them."""

    Read = tuple[Example, list[str]] | InputError

    def read(index: int) -> Read:
        try:
            with calling(dataset, "__getitem__"):
                example = dataset[index]
                return example, list(example.captions)
        except InputError as error:
            if dataset.on_error != "skip" or isinstance(error, PluginError):  # which is no matter of the sample
                raise
            return error

    def size(found: Read) -> int:
        return 0 if isinstance(found, InputError) else _bytes_of(found[0].sample)

    threads = reading_threads() if dataset.concurrent else 0
    with closing(read_ahead(read, indices, threads, size)) as found:
        for index, outcome in zip(indices, found, strict=True):
            if isinstance(outcome, InputError):
                logger.warning("skipped: %s", outcome)
                shard.skipped += 1
                yield None
                continue
            example, captions = outcome
            shard.labels.append(_label(example, dataset, index))
            shard.captions.append(captions)
            shard.examples.append(index)
            yield example


def _label(example: Example, dataset: ExampleDataset, index: int) -> int:
    label, count = example.label, len(dataset.classes)
    if not -1 <= label < count:
        wanted = f"a label from 0 to {count - 1}, an index into classes, or -1 for none" if count else "no label"
        raise InputError(
            f"{class_of(dataset)}.__getitem__: expected {wanted}{'' if count else ', as classes is empty'}; "
            f"got {label} of {example.source or f'example {index}'}"
        )
    return label


class _RowFiles:
    """Writes rows to the files of one shard; they get their names when it is closed, and vanish without that."""

    def __init__(self, target: Path, number: int, limit: int):
        self._target, self._stem, self._limit = target, f"shard-{number:05d}", limit
        self._files: list[ShardFile] = []
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> _RowFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
        for file in self._files:
            self._partial(file.name).unlink(missing_ok=True)

    def _partial(self, name: str) -> Path:
        return self._target / f".{name}.partial"

    def write(self, clip: Tensor) -> None:
        """Append (frames, ...) rows; all of a clip lie in one file."""
        content = clip.contiguous().float().numpy().tobytes()
        if self._stream is None or self._files[-1].bytes + len(content) > self._limit:
            self._open()
        stream, last = self._stream, self._files[-1]
        assert stream is not None
        stream.write(content)
        self._files[-1] = ShardFile(
            last.name, last.rows + len(clip), last.bytes + len(content), zlib.crc32(content, last.crc32)
        )

    def _open(self) -> None:
        if self._stream is not None:
            self._stream.close()
        name = f"{self._stem}-{len(self._files)}.bin" if self._files else f"{self._stem}.bin"
        self._files.append(ShardFile(name, 0, 0, 0))
        self._stream = self._partial(name).open("wb")

    def close(self) -> list[ShardFile]:
        """The files, safe on disk under their names."""
        if self._stream is not None:
            self._stream.close()
        for file in self._files:
            sync_path(self._partial(file.name))
            self._partial(file.name).rename(self._target / file.name)
        return self._files


def _merge(target: Path, plan: Plan, tokenizer: Tokenizer) -> None:
    shards = [read_shard(target, number) for number in range(plan.num_shards)]
    skipped = sum(shard.skipped for shard in shards)
    if not any(shard.labels for shard in shards):
        for shard_file in target.glob("shard-*.json"):
            shard_file.unlink()
        raise InputError(f"data: nothing could be read ({skipped} skipped)" if skipped else "data: is empty")
    shapes = [shard.row_shape for shard in shards if shard.labels]
    if differing := [shape for shape in shapes if shape != shapes[0]]:
        raise InputError(
            f"{class_of(tokenizer)}.encode: expected one shape for all data; got rows of {shapes[0]} and {differing[0]}"
        )
    frames = np.concatenate([np.array(shard.frames, dtype=np.int64) for shard in shards])
    starts = np.concatenate([[0], np.cumsum(frames)]).astype(np.int64)
    labels = np.concatenate([np.array(shard.labels, dtype=np.int64) for shard in shards])
    examples = np.concatenate([np.array(shard.examples, dtype=np.int64) for shard in shards])
    files = [asdict(file) for shard in shards for file in shard.files]
    meta = {
        "format": FORMAT,
        "bytes": sum(file["bytes"] for file in files),
        "row_shape": shapes[0],
        "num_variants": plan.num_variants,
        "skipped": skipped,
        "files": files,
    }
    with atomic_write(target / "index.npz") as partial, partial.open("wb") as stream:
        np.savez(stream, starts=starts, labels=labels, examples=examples)
    with atomic_write(target / "captions.json") as partial:
        partial.write_text(json.dumps([captions for shard in shards for captions in shard.captions]))
    with atomic_write(target / "meta.json") as partial:
        partial.write_text(json.dumps(meta) + "\n")
    for lock in target.glob(".shard-*.lock"):
        lock.unlink()


def _discard(target: Path) -> None:
    """Remove the folder after an error, if no shard is finished and no other process is at one."""
    with _lock(target), ExitStack() as held:
        if not target.is_dir() or any(target.glob("shard-*.json")):
            return
        try:
            for lock in target.glob(".shard-*.lock"):
                held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            return
        shutil.rmtree(target)


def verify(target: Path, files: Sequence[ShardFile]) -> None:
    """Compare every file with the checksum of what was written to it, once; again when its size or time changes.

    Raises :class:`InputError` naming the first damaged file.
    """
    if not _unverified(target, files):
        return
    with _lock(target):
        waiting = _unverified(target, files)
        size = sum(file.bytes for file in waiting)
        if size > 2**30:
            logger.info("checking %.1f GiB of latents, once", size / 2**30)
        with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
            sums = list(pool.map(lambda file: _checksum(target / file.name), waiting))
        for file, found in zip(waiting, sums, strict=True):
            if found != file.crc32:
                raise InputError(
                    f"latents: {target / file.name} is damaged, its checksum is not that of what was written; "
                    f"delete it and run again, and its shard alone is built anew"
                )
        known = {file.name: _identity(target / file.name) for file in files}
        with atomic_write(target / "verified.json") as partial:
            partial.write_text(json.dumps(known))


def _unverified(target: Path, files: Sequence[ShardFile]) -> list[ShardFile]:
    try:
        known = json.loads((target / "verified.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        known = {}
    return [file for file in files if known.get(file.name) != _identity(target / file.name)]


def _identity(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while part := stream.read(2**22):
            value = zlib.crc32(part, value)
    return value


def _lock(target: Path) -> FileLock:
    return FileLock(f"{target}.lock")


@contextmanager
def _pace(plan: Plan, done: int) -> Iterator[Any]:
    """Yield ``advance(count)``: a bar with the rate of this process, or a line a minute."""
    began = logged = time.monotonic()
    own = 0
    with progress("tokenizing", plan.count, columns=("samples/s",)) as bar:
        bar(done)

        def advance(count: int) -> None:
            nonlocal own, logged
            own += count
            now = time.monotonic()
            rate = own / max(now - began, 1e-9)
            bar(count, **{"samples/s": f"{rate:.1f}"})
            if now - logged > LOG_EVERY:
                logged = now
                logger.info(
                    "tokenized %s samples here, %.1f a second; %s of %s were there before",
                    f"{own:,}", rate, f"{done:,}", f"{plan.count:,}",
                )  # fmt: skip

        yield advance
