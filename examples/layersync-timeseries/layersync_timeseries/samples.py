"""Anybody's series in and out: ``.npz``, ``.npy``, ``.ts``, folders of CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from layersync.core.archive import padded, read_samples, write_arrays
from layersync.core.errors import InputError
from layersync_timeseries.data import Series, SeriesDataset, read_csv, ts_dataset


def open_series(path: Path) -> SeriesDataset:
    """The series of a file or folder, in the order of rows or names.

    A ``.npy`` holds an array (n, steps, channels); an ``.npz`` has it as ``series``, and may have ``lengths`` (n,),
    how many steps of each are real, and ``labels`` (n,). Raises :class:`InputError` for anything else.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.csv") if file.is_file())
        if not files:
            raise InputError(f"{path}: holds no .csv file")
        return SeriesDataset([read_csv(file) for file in files], [str(file) for file in files])
    if path.suffix == ".ts":
        return ts_dataset(path)
    found = read_samples(path, "series", ("steps", "channels"), np.floating, ("lengths", "labels"))
    cut = [series[:length].astype(np.float32) for series, length in zip(found.samples, found.lengths(), strict=True)]
    return SeriesDataset(cut, found.sources, found.labels())


def write_series(path: Path, samples: Sequence[Series], labels: Sequence[int] | None) -> None:
    """Write what :func:`open_series` reads: ``series``, zeros behind the end of each, ``lengths`` and ``labels``."""
    series, lengths = padded(samples)
    write_arrays(path, series=series, lengths=lengths, labels=labels)
