"""Anybody's series in and out: ``.npz``, ``.npy``, ``.ts``, folders of CSV files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layersync.core.errors import InputError
from layersync.core.run import atomic_write
from layersync_timeseries.data import Series, SeriesDataset, read_csv, ts_dataset


def open_series(path: Path) -> SeriesDataset:
    """The series of a file or folder, in the order of rows or names.

    A ``.npy`` holds an array (n, steps, channels); an ``.npz`` has it as ``series``, and may have ``lengths`` (n,),
    how many steps of each are real, and ``labels`` (n,). Raises :class:`InputError` for anything else.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.csv"))
        if not files:
            raise InputError(f"{path}: holds no .csv file")
        return SeriesDataset([read_csv(file) for file in files], [str(file) for file in files])
    if path.suffix == ".ts":
        return ts_dataset(path)
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"{path}: a .ts, .npz or .npy file or a folder of .csv files is wanted")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"series": loaded} if path.suffix == ".npy" else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix} ({str(error).splitlines()[0]})") from None
    return _from_arrays(path, arrays)


def _from_arrays(path: Path, arrays: dict[str, np.ndarray]) -> SeriesDataset:
    series = arrays.get("series")
    if series is None or series.ndim != 3 or not np.issubdtype(series.dtype, np.floating):
        raise InputError(
            f"{path}: holds {', '.join(arrays) or 'nothing'}; floating series (n, steps, channels) is wanted"
        )
    lengths = arrays.get("lengths", np.full(len(series), series.shape[1]))
    if lengths.shape != (len(series),) or (lengths < 1).any() or (lengths > series.shape[1]).any():
        raise InputError(f"{path}: lengths must hold 1 to {series.shape[1]} for each of the {len(series)} series")
    labels = arrays.get("labels")
    if labels is not None and labels.shape != (len(series),):
        raise InputError(f"{path}: labels must hold one number for each of the {len(series)} series")
    cut = [values[:length].astype(np.float32) for values, length in zip(series, lengths, strict=True)]
    sources = [f"{path}, series {row + 1}" for row in range(len(cut))]
    return SeriesDataset(cut, sources, None if labels is None else labels.tolist())


def write_series(path: Path, samples: Sequence[Series], labels: Sequence[int] | None) -> None:
    """Write what :func:`open_series` reads: ``series``, zeros behind the end of each, ``lengths`` and ``labels``."""
    lengths = np.array([len(sample) for sample in samples])
    series = np.zeros((len(samples), lengths.max(), samples[0].shape[1]), dtype=np.float32)
    for row, sample in enumerate(samples):
        series[row, : len(sample)] = sample
    arrays: dict[str, Any] = {"series": series, "lengths": lengths}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    with atomic_write(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
