"""Trees of files as data sets: paths, labels from names, splits, fingerprints."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layersync.core.adapter import Split
from layersync.core.errors import InputError

HELD_OUT_EVERY = 10


def expand(path: str, key: str) -> Path:
    """``path`` with ``~`` and ``$VARIABLES`` expanded. InputError naming ``key`` when nothing is there."""
    expanded = Path(os.path.expandvars(path)).expanduser()
    if not expanded.exists():
        raise InputError(f"{key}: {path!r} does not exist")
    return expanded


def held_out_rows(labels: np.ndarray, split: Split, every: int = 5) -> np.ndarray:
    """Row numbers of a split in which every ``every``-th row of each label is held out."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    held_out = rank % every == every - 1
    return np.flatnonzero(held_out if split == "test" else ~held_out)


@dataclass(frozen=True)
class LabelledFiles:
    """Files of a split in a fixed order; ``labels`` index ``classes``, and are ``None`` for unlabelled trees."""

    files: list[Path]
    labels: list[int] | None
    classes: list[str]


def labelled_files(
    root: Path, extensions: Sequence[str], split: Split, pattern: str | None = None, test_files: str | None = None
) -> LabelledFiles:
    """Find the files of ``split`` below ``root`` and their labels.

    Labels are the group ``label`` of the regular expression ``pattern`` on the relative path, else the folder that
    holds a file, else none (all files in ``root`` itself). Splits are the subfolders ``train`` and ``test`` where both
    are there, else the files that the regular expression ``test_files`` finds, else every tenth file of each label.

    Raises:
        InputError: for a file instead of a folder, nothing readable in it, or a pattern that does not fit.
    """
    if not root.is_dir():
        raise InputError(f"data.path: {str(root)!r} is a file, not a folder")
    own_splits = (root / "train").is_dir() and (root / "test").is_dir()
    base = root / split if own_splits else root
    files = sorted(f for f in base.rglob("*") if f.suffix.lower() in extensions and f.is_file())
    if not files:
        raise InputError(f"data.path: nothing readable in {str(base)!r}; looked for {', '.join(extensions)}")
    names = _label_names(base, files, pattern)
    classes = sorted(set(names) - {None})  # type: ignore[type-var]
    labels = np.array([classes.index(name) if name is not None else -1 for name in names])
    if own_splits:
        rows = np.arange(len(files))
    elif test_files is not None:
        chosen = np.array([bool(re.search(test_files, file.relative_to(base).as_posix())) for file in files])
        if not chosen.any():
            raise InputError(f"data.test_files: {test_files!r} finds none of the {len(files)} files")
        rows = np.flatnonzero(chosen if split == "test" else ~chosen)
    else:
        rows = held_out_rows(labels, split, HELD_OUT_EVERY)
    kept = [files[row] for row in rows]
    return LabelledFiles(kept, labels[rows].tolist() if classes else None, [str(name) for name in classes])


def _label_names(base: Path, files: Sequence[Path], pattern: str | None) -> list[str | None]:
    if pattern is None:
        return [None if file.parent == base else file.parent.name for file in files]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.labels: {pattern!r} is no regular expression ({error})") from None
    if "label" not in compiled.groupindex:
        raise InputError(f"data.labels: {pattern!r} has no group named label, such as (?P<label>[^/]+)")
    names: list[str | None] = []
    for file in files:
        match = compiled.search(file.relative_to(base).as_posix())
        if match is None:
            raise InputError(f"data.labels: {pattern!r} does not fit {file}")
        names.append(match["label"])
    return names


def fingerprint_files(root: Path, files: Sequence[Path], labels: Sequence[int] | None) -> str:
    """Hash of names, contents and labels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for index, file in enumerate(files):
        label = "" if labels is None else labels[index]
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "blake2b").hexdigest()
        digest.update(f"{file.relative_to(root).as_posix()}\0{label}\0{content}\n".encode())
    return digest.hexdigest()
