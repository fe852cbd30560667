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
    try:
        expanded = Path(os.path.expandvars(path)).expanduser()
        exists = expanded.exists()
    except (RuntimeError, OSError):  # no such user; a name that is too long
        exists = False
    if not exists:
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


def labelled_files(root: Path, extensions: Sequence[str], split: Split, pattern: str | None = None) -> LabelledFiles:
    """Find the files of ``split`` below ``root`` and their labels.

    Labels are the group ``label`` of the regular expression ``pattern`` on the relative path, else the folder that
    holds a file, else none (all files in ``root`` itself). Splits are the subfolders ``train`` and ``test`` where both
    are there, else every tenth file of each label.

    Raises:
        InputError: for a file instead of a folder, nothing readable in it, or a pattern that does not fit.
    """
    if not root.is_dir():
        raise InputError(f"data.path: {str(root)!r} is a file, not a folder")
    own_splits = (root / "train").is_dir() and (root / "test").is_dir()
    bases = [root / "train", root / "test"] if own_splits else [root]
    found = [(base, f) for base in bases for f in sorted(base.rglob("*")) if _wanted(f, base, extensions)]
    files = [file for _, file in found]
    if not files:
        raise InputError(f"data.path: nothing readable in {str(root)!r}; looked for {', '.join(extensions)}")
    compiled = label_pattern(pattern) if pattern is not None else None
    names = [_label_name(base, file, compiled) for base, file in found]
    classes = sorted(set(names) - {None})  # type: ignore[type-var]
    labels = np.array([classes.index(name) if name is not None else -1 for name in names])
    if own_splits:
        rows = np.array([row for row, (base, _) in enumerate(found) if base.name == split], dtype=np.int64)
    else:
        rows = held_out_rows(labels, split, HELD_OUT_EVERY)
    kept = [files[row] for row in rows]
    return LabelledFiles(kept, labels[rows].tolist() if classes else None, [str(name) for name in classes])


def _wanted(file: Path, base: Path, extensions: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(base).parts)
    return file.suffix.lower() in extensions and not hidden and file.is_file()


def _label_name(base: Path, file: Path, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is None:
        return None if file.parent == base else file.parent.name
    match = pattern.search(file.relative_to(base).as_posix())
    if match is None:
        raise InputError(f"data.labels: {pattern.pattern!r} does not fit {file}")
    return match["label"]


def label_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression, checked to have a group named ``label``. InputError where it is none or has none."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.labels: {pattern!r} is no regular expression ({error})") from None
    if "label" not in compiled.groupindex:
        raise InputError(f"data.labels: {pattern!r} has no group named label, such as (?P<label>[^/]+)")
    return compiled


def fingerprint_files(root: Path, files: Sequence[Path], labels: Sequence[int] | None) -> str:
    """Hash of names, contents and labels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for index, file in enumerate(files):
        label = "" if labels is None else labels[index]
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "blake2b").hexdigest()
        digest.update(f"{file.relative_to(root).as_posix()}\0{label}\0{content}\n".encode())
    return digest.hexdigest()
