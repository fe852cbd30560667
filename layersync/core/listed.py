"""A data set that is a list: of samples in memory, or of what reads one when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layersync.core.adapter import Example, ExampleDataset
from layersync.core.plugin import reported


class ListedExamples(ExampleDataset):
    """Examples in the order of ``sources``. It can be pickled, for workers, where ``samples`` can.

    Args:
        samples: the samples themselves, or what reads sample ``i`` and raises :class:`InputError` where it cannot.
        sources: what each is called in messages.
        labels: indices into ``classes``; ``None`` for unlabelled data.
        classes: names of the labels.
        fingerprint: what tells that samples, labels or classes changed. It is found here for arrays in memory, and has
            to be given for anything else; ``layersync.core.paths.fingerprint_files`` makes one for files.
    """

    def __init__(
        self,
        samples: Sequence[Any] | Callable[[int], Any],
        sources: Sequence[str],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        fingerprint: str | None = None,
    ) -> None:
        sources = list(sources)  # what a table or an array gives: by position, whatever it is indexed by
        labels = None if labels is None else list(labels)
        if not callable(samples) and (fingerprint is None or hasattr(samples, "iloc")):
            samples = list(samples)
        for name, given in (("samples", samples), ("labels", labels)):
            if given is not None and not callable(given) and len(given) != len(sources):
                raise ValueError(f"{len(given)} {name} of {len(sources)} sources")
        if fingerprint is None:
            if callable(samples):
                raise ValueError("samples that are read when they are asked for need a fingerprint")
            fingerprint = fingerprint_arrays(samples, labels, classes)
        self._samples, self._sources, self._labels = samples, sources, labels
        self.fingerprint, self.classes = fingerprint, tuple(classes)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Example:
        """Example ``index``; ``label`` is left out of unlabelled data."""
        source, condition = self._sources[index], {}
        if self._labels is not None:
            condition["label"] = _whole(self._labels[index])
        if not callable(self._samples):
            return Example(self._samples[index], condition, source)
        with reported(f"{source}: reading it"):
            return Example(self._samples(index), condition, source)


def _whole(label: Any) -> Any:
    """A label as an integer, where its value is one: a table's may be of another type."""
    value = label.item() if hasattr(label, "item") else label
    return int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else value


def fingerprint_arrays(
    arrays: Sequence[NDArray[Any]], labels: Sequence[int] | None = None, classes: Sequence[str] = ()
) -> str:
    """Hash of values, types and shapes, labels and class names, in order."""
    named = None if labels is None else [_whole(label) for label in labels]
    digest = hashlib.blake2b(repr((named, tuple(classes))).encode(), digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
