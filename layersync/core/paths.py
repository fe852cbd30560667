"""Trees of files as data sets: paths, labels from names, splits, fingerprints."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from layersync.core.adapter import Split
from layersync.core.errors import InputError

HELD_OUT_EVERY = 10
HELD_OUT_NAMES = ("test", "val")
CONTENT_LIMIT = 4 * 2**30
Fingerprint = Literal["auto", "content", "stat"]
FINGERPRINT = "What tells that files changed: their content, or size and time. auto: content up to 4 GiB in all."


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


def held_out_folder(names: Iterable[str]) -> str | None:
    """Which of ``test`` and ``val`` is held out, where files lie below it and below ``train``; else ``None``.

    ``names`` are relative to the root of the tree, with ``/`` between folders.
    """
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    return next((name for name in HELD_OUT_NAMES if {"train", name} <= tops), None)


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
    root: Path,
    extensions: Sequence[str],
    split: Split,
    pattern: str | None = None,
    group: Callable[[Path], Hashable] | None = None,
) -> LabelledFiles:
    """Find the files of ``split`` below ``root`` and their labels.

    Labels are the group ``label`` of the regular expression ``pattern`` on the relative path, else the folder that
    holds a file, else none (all files in ``root`` itself). Splits are the subfolders ``train`` and ``test`` (or
    ``val``, as ImageNet has it) where both are there, else every tenth file of each label; with ``group``, every tenth
    group of files with the same one, whose label is its first file's. A million files take some ten seconds on a local
    disk.

    Raises:
        InputError: for a file instead of a folder, nothing readable in it, or a pattern that does not fit.
    """
    if not root.is_dir():
        raise InputError(f"data.path: {str(root)!r} is a file, not a folder")
    held_out = next((name for name in HELD_OUT_NAMES if (root / name).is_dir()), None)
    own_splits = held_out is not None and (root / "train").is_dir()
    bases = [root / "train", root / str(held_out)] if own_splits else [root]
    found = [(base, file) for base in bases for file in _files_below(base, tuple(extensions))]
    files = [file for _, file in found]
    if not files:
        raise InputError(f"data.path: nothing readable in {str(root)!r}; looked for {', '.join(extensions)}")
    compiled = label_pattern(pattern) if pattern is not None else None
    names = [_label_name(base, file, compiled) for base, file in found]
    classes = sorted(set(names) - {None})  # type: ignore[type-var]
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number.get(name, -1) for name in names])
    if own_splits:
        wanted = bases[0] if split == "train" else bases[1]
        rows = np.array([row for row, (base, _) in enumerate(found) if base == wanted], dtype=np.int64)
    elif group is not None:
        numbers: dict[Hashable, int] = {}
        group_of = np.array([numbers.setdefault(group(file), len(numbers)) for file in files])
        first = np.unique(group_of, return_index=True)[1]
        rows = np.flatnonzero(np.isin(group_of, held_out_rows(labels[first], split, HELD_OUT_EVERY)))
    else:
        rows = held_out_rows(labels, split, HELD_OUT_EVERY)
    kept = [files[row] for row in rows]
    return LabelledFiles(kept, labels[rows].tolist() if classes else None, [str(name) for name in classes])


def _files_below(base: Path, extensions: tuple[str, ...]) -> list[Path]:
    """Files with one of these endings, by path; nothing hidden, no linked folders. No file is looked at one by one."""
    found: list[Path] = []
    folders = [base]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.name.lower().endswith(extensions) and entry.is_file():
                    found.append(Path(entry.path))
    return sorted(found)


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


def fingerprint_files(
    root: Path, files: Sequence[Path], labels: Sequence[int] | None, how: Fingerprint = "content"
) -> str:
    """Hash of names, contents and labels, in order.

    ``how="stat"`` takes size and time of change of a file for its content: a file that is written again gives another
    fingerprint, and so does a copy of the tree that did not keep times. ``auto`` reads contents of up to
    :data:`CONTENT_LIMIT` bytes in all, and takes ``stat`` above: 150 GB are not read to find out that nothing changed.
    """
    stats = None if how == "content" else [file.stat() for file in files]
    if how == "auto" and stats is not None and sum(stat.st_size for stat in stats) <= CONTENT_LIMIT:
        stats = None
    digest = hashlib.blake2b(digest_size=16)
    prefix = len(root.parts)
    for index, file in enumerate(files):
        label = "" if labels is None else labels[index]
        if stats is None:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "blake2b").hexdigest()
        else:
            content = f"{stats[index].st_size}-{stats[index].st_mtime_ns}"
        digest.update(f"{'/'.join(file.parts[prefix:])}\0{label}\0{content}\n".encode())
    return digest.hexdigest()


def caption_files(root: Path, files: Sequence[Path]) -> dict[Path, Path]:
    """Text files with the names of ``files``, ``walk.txt`` beside ``walk.bvh``, by the file that they are about."""
    texts = {text.with_suffix(""): text for text in root.rglob("*.txt")}
    return {file: texts[file.with_suffix("")] for file in files if file.with_suffix("") in texts} if texts else {}


def read_captions(text: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty, each a caption. InputError for what is no UTF-8."""
    try:
        return tuple(line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text}: cannot be read as captions in UTF-8 ({error})") from None


def first_caption(text: Path) -> str:
    """The first of :func:`read_captions`: the text that a sample is scored with. InputError where there is none."""
    captions = read_captions(text)
    if not captions:
        raise InputError(f"{text}: holds no caption; its first line that is not empty is the sample's text")
    return captions[0]
