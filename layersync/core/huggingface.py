"""Hugging Face ``datasets`` sources: hub ids and local Parquet, columns found by feature type."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layersync.core.adapter import Split
from layersync.core.errors import InputError
from layersync.core.paths import HELD_OUT_EVERY, fingerprint_files

if TYPE_CHECKING:
    from datasets import Dataset


def load_table(path: str, split: Split) -> tuple[Dataset, str]:
    """The rows of ``split`` and a fingerprint of them; images and audio stay undecoded bytes.

    ``path`` is a hub id, a local folder or a Parquet file. A source that has no ``test`` (or ``validation``) split has
    every tenth row held out. InputError when it cannot be loaded.
    """
    from datasets import Audio, DatasetDict, Image, load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    local = Path(os.path.expandvars(path)).expanduser()
    source = str(local) if local.exists() else path
    try:
        parquet = local.is_file() and local.suffix == ".parquet"
        found: DatasetDict = load_dataset("parquet", data_files=source) if parquet else load_dataset(source)
    except (DatasetNotFoundError, DatasetsError, ConnectionError, FileNotFoundError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"data.path: {path!r} is no data set that can be loaded ({reason})") from None
    held_out = next((name for name in ("test", "validation") if name in found), None)
    if held_out is not None and "train" in found:
        table = found["train" if split == "train" else held_out]
    else:
        whole = found[next(iter(found))]
        chosen = np.arange(len(whole)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        table = whole.select(np.flatnonzero(chosen if split == "test" else ~chosen))
    for name, feature in table.features.items():
        if isinstance(feature, Image | Audio):
            table = table.cast_column(name, type(feature)(decode=False))
    if local.exists():
        files = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else [local]
        return table, f"{fingerprint_files(local.parent, files, None)}-{split}"
    return table, f"{table._fingerprint}-{split}"


def column_of_type(table: Dataset, kind: str, path: str) -> str:
    """The one column whose feature class is named ``kind``. InputError when there is none or more than one."""
    found = [name for name, feature in table.features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        columns = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in table.features.items())
        raise InputError(f"data.path: {path!r} has {len(found)} columns of type {kind}; its columns: {columns}")
    return found[0]


def label_column(table: Dataset) -> tuple[str | None, list[str]]:
    """The ``ClassLabel`` column, else an integer column named label, and the class names; (None, []) without one."""
    for name, feature in table.features.items():
        if type(feature).__name__ == "ClassLabel":
            return name, list(feature.names)
    if "label" in table.features and np.issubdtype(np.asarray(table["label"][:1]).dtype, np.integer):
        return "label", [str(label) for label in range(max(table["label"][:]) + 1)]
    return None, []
