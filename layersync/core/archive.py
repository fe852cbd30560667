"""Samples as arrays in one file, ``.npz`` or ``.npy``: written at once or not at all, read without pickle.

Archives come from anywhere. Whatever is wrong with one is an :class:`InputError`: which exception numpy and zipfile
raise for a damaged file depends on which byte is wrong.
"""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import ArrayLike, NDArray

from layersync.core.errors import InputError
from layersync.core.packaged import atomic_write

_UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, SyntaxError, RuntimeError, OverflowError,
    MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError,
)  # fmt: skip
_LARGEST_LABEL = 2**31 - 1


@contextmanager
def opened_npz(path: Path) -> Iterator[NpzFile]:
    """The archive at ``path``; errors while it is open name the file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{path}: no readable npz file ({' '.join(str(error).split())})") from error


def read_arrays(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of these names in an ``.npz``, or the one array of an ``.npy`` under the first name of ``required``.

    Other arrays of an archive are not read. Raises :class:`InputError` for a file of another kind or content, one that
    is damaged, and one that lacks a required array.
    """
    if not path.exists():
        raise InputError(f"{path}: does not exist")
    if path.suffix == ".npy":
        try:
            with path.open("rb") as stream:
                arrays = {required[0]: np.lib.format.read_array(stream, allow_pickle=False)}
        except _UNREADABLE as error:
            raise InputError(f"{path}: no readable npy file ({' '.join(str(error).split())})") from None
    elif path.suffix == ".npz":
        with opened_npz(path) as archive:
            held = list(archive.files)
            arrays = {name: np.asarray(archive[name]) for name in (*required, *optional) if name in held}
    else:
        raise InputError(f"{path}: an .npz or .npy file is wanted")
    for name in required:
        if name not in arrays:
            raise InputError(f"{path}: has no array {name}; it holds {', '.join(held) or 'nothing'}")
    return arrays


def positive(path: Path, name: str, value: NDArray[Any]) -> float:
    """The one number in ``value``, ``name`` of the archive at ``path``. InputError unless finite and above 0."""
    if value.size != 1 or value.dtype.kind not in "iuf" or not 0 < value.item() < np.inf:
        raise InputError(f"{path}: {name} is {_described(value)}; one number above 0 is wanted")
    return float(value.item())


def write_arrays(path: Path, /, **arrays: ArrayLike | None) -> None:
    """Write an ``.npz``, whole or not at all; arrays that are ``None`` are left out."""
    given: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    with atomic_write(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **given)


def padded(samples: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Arrays that differ in their first axis as one (n, longest, ...), zeros behind the end of each, and lengths (n,).

    Their type is the first one's.
    """
    lengths = np.array([len(sample) for sample in samples])
    together = np.zeros((len(samples), lengths.max(), *samples[0].shape[1:]), dtype=samples[0].dtype)
    for row, sample in zip(together, samples, strict=True):
        row[: len(sample)] = sample
    return together, lengths


@dataclass(frozen=True)
class SampleArray:
    """``samples`` (n, ...) of a file, and ``beside``, what else is told of them."""

    path: Path
    samples: NDArray[Any]
    beside: Mapping[str, NDArray[Any]]

    @property
    def sources(self) -> list[str]:
        """What each sample is called in messages."""
        return [f"{self.path}[{row}]" for row in range(len(self.samples))]

    def labels(self) -> list[int] | None:
        """``labels`` (n,), whole numbers from 0; ``None`` without. Raises :class:`InputError` for others."""
        return None if "labels" not in self.beside else self._whole("labels", 0, _LARGEST_LABEL)

    def lengths(self) -> list[int]:
        """``lengths`` (n,): how much of a sample's first axis is real; all of it without.

        Raises :class:`InputError` for others than whole numbers from 1 to the size of that axis.
        """
        longest = self.samples.shape[1]
        return [longest] * len(self.samples) if "lengths" not in self.beside else self._whole("lengths", 1, longest)

    def positive(self, name: str, default: float) -> float:
        """The one number ``name``, such as a frame rate; ``default`` without. InputError unless finite and above 0."""
        return positive(self.path, name, self.beside.get(name, np.asarray(default)))

    def _whole(self, name: str, least: int, most: int) -> list[int]:
        values = self.beside[name]
        if values.shape != (len(self.samples),) or values.dtype.kind not in "iu":
            raise InputError(
                f"{self.path}: {name} is {_described(values)}; a whole number for each of the {len(self.samples)} "
                "samples is wanted"
            )
        if values.min() < least or values.max() > most:
            raise InputError(
                f"{self.path}: {name} go from {values.min()} to {values.max()}, not from {least} to {most}"
            )
        return [int(value) for value in values]


def read_samples(
    path: Path, name: str, axes: Sequence[str], kind: type[np.generic], beside: Sequence[str] = ()
) -> SampleArray:
    """Samples that lie in one array ``name`` of an ``.npz``, or are an ``.npy``.

    Args:
        axes: names of a sample's axes, for messages; the array has one more in front of them. None may be empty.
        kind: what its numbers are, a type of numpy's hierarchy such as ``np.floating`` or ``np.uint8``.
        beside: arrays that the archive may hold besides, out of ``labels``, ``lengths`` and names of single numbers.

    Raises:
        InputError: for what :func:`read_arrays` refuses, and an array of another shape or type.
    """
    arrays = read_arrays(path, (name,), beside)
    samples = arrays.pop(name)
    if samples.ndim != len(axes) + 1 or not samples.size or not np.issubdtype(samples.dtype, kind):
        wanted = f"{kind.__name__} [{', '.join(('n', *axes))}]"
        raise InputError(f"{path}: {name} is {_described(samples)}; {wanted} is wanted, none of them 0")
    return SampleArray(path, samples, arrays)


def _described(array: NDArray[Any]) -> str:
    """Type and shape, or the one number that it is."""
    if array.size == 1 and array.dtype.kind in "biuf":
        return f"{array.item():g}"
    return f"{array.dtype} {list(array.shape)}"
