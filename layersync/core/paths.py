"""Trees of files as data sets: paths, labels from names, splits, fingerprints."""

from __future__ import annotations

import hashlib
import heapq
import os
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path, PurePath
from typing import Literal, TypeVar

import numpy as np

from layersync.core.adapter import Split
from layersync.core.errors import InputError

TEST_FRACTION = 0.1
"""That is held out of data without a split of its own."""
HELD_OUT_NAMES = ("test", "val")
SHARD_DIGITS = 5
"""Of the names of folders into which tools put a thousand files each, such as FFHQ's ``00000``."""
CONTENT_LIMIT = 4 * 2**30
STATS_AT_ONCE, STATS_IN_TURN = 16, 500
Fingerprint = Literal["auto", "content", "stat"]
FINGERPRINT = "What tells that files changed: their content, or size and time. auto: content up to 4 GiB in all."
UNREADABLE = "unreadable"
"""What stands in fingerprints for the content of a file that cannot be read and is skipped."""

Read = TypeVar("Read")


def expanded(path: str, key: str) -> Path:
    """``path`` with ``~`` and ``$VARIABLES`` expanded. InputError naming ``key`` when nothing is left of it."""
    if not (text := os.path.expandvars(path)).strip():
        raise InputError(f"{key}: {path!r} names nothing; a file or folder is wanted")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def expand(path: str, key: str) -> Path:
    """:func:`expanded`. InputError naming ``key`` when nothing is there."""
    found = expanded(path, key)
    try:
        exists = found.exists()
    except OSError:  # a name that is too long
        exists = False
    if not exists:
        raise InputError(f"{key}: {path!r} does not exist")
    return found


def as_text(name: str) -> str:
    """A file's or folder's name as text: bytes that are no UTF-8 stand as ``\\xe9`` in it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_bytes(text: str) -> bytes:
    """``text``, which may hold names of files, as bytes to be hashed, whatever encoding the names are in."""
    return text.encode("utf-8", "surrogateescape")


def read_file(file: Path) -> bytes:
    """The content of ``file``. InputError naming it when it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from None


def read_named(file: Path) -> bytes:
    """:func:`read_file` of what data from elsewhere name: a regular file, not a device, which may never end."""
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: cannot be read (no regular file)")
    return read_file(file)


def read_or_skip(read: Callable[[Path], Read], file: Path, skip: bool) -> Read | None:
    """What ``read`` makes of ``file``. One that cannot be read gives ``None`` with ``skip``, else InputError."""
    try:
        return read(file)
    except OSError as error:
        if skip:
            return None
        raise _unreadable(file, error) from None


def _unreadable(path: object, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror or error})")


def held_out_folder(names: Iterable[str]) -> str | None:
    """Which of ``test`` and ``val`` is held out, where files lie below it and below ``train``; else ``None``.

    ``names`` are relative to the root of the tree, with ``/`` between folders.
    """
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    return next((name for name in HELD_OUT_NAMES if {"train", name} <= tops), None)


def held_out_rows(labels: np.ndarray, split: Split, fraction: float = 0.2) -> np.ndarray:
    """Row numbers of a split in which ``fraction`` of the rows of each label is held out, every fifth for 0.2."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    held_out = held_out_ranks(rank, fraction)
    return np.flatnonzero(held_out if split == "test" else ~held_out)


def held_out_ranks(rank: np.ndarray, fraction: float) -> np.ndarray:
    """Which of the numbers from 0 on are held out, spread evenly; counted in whole numbers, so that 0.1 is a tenth."""
    part = Fraction(str(fraction)).limit_denominator(10**9)
    return (rank + 1) * part.numerator // part.denominator > rank * part.numerator // part.denominator


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
    *,
    test_fraction: float = TEST_FRACTION,
    skip: bool = False,
) -> LabelledFiles:
    """Find the files of ``split`` below ``root``, as :func:`files_below` does, and their labels.

    Labels are the group ``label`` of the regular expression ``pattern`` on the relative path, else the folder that
    holds a file, else none (all files in ``root`` itself); folders of one name in different places are one label, which
    is warned of. Splits are the subfolders ``train`` and ``test`` (or ``val``, as ImageNet has it; of both, where only
    ``val`` has labels) where files lie in both, else ``test_fraction`` of the files of each label is held out; with
    ``group``, of the groups of files with the same one, whose label is its first file's. A million files take some ten
    seconds on a local disk.

    Raises:
        InputError: for a file instead of a folder, nothing readable in it, or a pattern that does not fit.
    """
    if not root.is_dir():
        raise InputError(f"data.path: {str(root)!r} is a file, not a folder")
    training = root / "train"
    apart = [root / name for name in HELD_OUT_NAMES if (root / name).is_dir()] if training.is_dir() else []
    below = {
        base: files_below(base, tuple(extensions), skip=skip) for base in ([training, *apart] if apart else [root])
    }
    held_out = [base for base in apart if below[base]]
    own_splits = bool(held_out)
    if own_splits and pattern is None:  # of a challenge, test has none
        held_out.sort(key=lambda base: all(file.parent == base for file in below[base]))
    bases = [training, held_out[0]] if own_splits else [training] if apart else [root]
    if own_splits and held_out[0].name != next(name for name in HELD_OUT_NAMES if root / name in held_out):
        warnings.warn(f"data.path: {held_out[0]} is held out, not {held_out[1]}, which has no labels", stacklevel=4)
    if own_splits and split == "train" and test_fraction != TEST_FRACTION:
        held = held_out[0].name
        warnings.warn(f"data.test_fraction has no effect: {root} has folders train and {held}", stacklevel=4)
    found = [(base, file) for base in bases for file in below[base]]
    files = [file for _, file in found]
    if not files:
        raise InputError(f"data.path: nothing readable in {str(root)!r}; looked for {', '.join(extensions)}")
    compiled = label_pattern(pattern) if pattern is not None else None
    names = [_label_name(base, file, compiled) for base, file in found]
    if compiled is None and split == "train":
        warn_of_merged(found, stacklevel=5)
        _warn_of_odd_labels(found, names, stacklevel=5)
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
        rows = np.flatnonzero(np.isin(group_of, held_out_rows(labels[first], split, test_fraction)))
    else:
        rows = held_out_rows(labels, split, test_fraction)
    kept = [files[row] for row in rows]
    return LabelledFiles(kept, labels[rows].tolist() if classes else None, [str(name) for name in classes])


def files_below(base: Path, extensions: tuple[str, ...], *, skip: bool = False, given: str = "data.path") -> list[Path]:
    """Files with one of these endings, by path; nothing hidden. Only links are looked at one by one.

    Linked folders are read as others are, but each folder once, so that a link that leads back ends there: where it
    lies itself, else by the first link to it; links to what is read already are warned of, as ``given``. With ``skip``
    folders that cannot be read are left out with a warning; else they are an :class:`InputError`.
    """
    found: list[Path] = []
    again: list[str] = []
    read: set[Path] = set()
    links = [str(base)]
    while links:
        link = heapq.heappop(links)
        folders = [(Path(link), Path(link).resolve())]
        if folders[0][1] in read:
            again.append(link)
        while folders:
            folder, real = folders.pop()
            if real in read:
                continue
            read.add(real)
            if (entries := read_or_skip(_visible, folder, skip)) is None:
                warnings.warn(f"{given}: {folder} cannot be read, and is left out", stacklevel=2)
                continue
            for entry in entries:
                linked = Path(entry.path) if entry.is_symlink() else None
                if linked is not None and read_or_skip(Path.is_dir, linked, skip):
                    heapq.heappush(links, entry.path)
                elif linked is None and entry.is_dir():
                    folders.append((Path(entry.path), real / entry.name))
                elif entry.name.lower().endswith(extensions) and (
                    entry.is_file() if linked is None else read_or_skip(Path.is_file, linked, skip)
                ):
                    found.append(Path(entry.path))
    if again:
        more = f" and {len(again) - 1} more" if len(again) > 1 else ""
        warnings.warn(f"{given}: links to folders that are read already are left out: {again[0]}{more}", stacklevel=2)
    return sorted(found)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def warn_of_merged(found: Sequence[tuple[Path, Path]], stacklevel: int) -> None:
    """Of folders that become one label though they are several, such as ``cat/images`` and ``dog/images``.

    ``found``: the folder of a split, or the root, and a file below it.
    """
    folders: dict[str, set[str]] = {}
    for folder, base in {(file.parent, base) for base, file in found if file.parent != base}:
        folders.setdefault(folder.name, set()).add(folder.relative_to(base).as_posix())
    merged = {name: sorted(places) for name, places in folders.items() if len(places) > 1}
    for name in sorted(merged)[:1]:
        first, second, *more = map(as_text, merged[name])
        others = f" and {len(more)} more" if more else ""
        warnings.warn(
            f"data.path: folders {first} and {second}{others} become one label, {as_text(name)!r}; a pattern in "
            f"data.labels says what the label is instead",
            stacklevel=stacklevel,
        )


def _warn_of_odd_labels(found: Sequence[tuple[Path, Path]], names: Sequence[str | None], stacklevel: int) -> None:
    """Of folders that look like shards, and of a held-out split without labels beside training data that has some."""
    numbers = sorted({name for name in names if name is not None})
    if len(numbers) > 1 and all(name.isdecimal() and len(name) >= SHARD_DIGITS for name in numbers):
        warnings.warn(
            f"data.path: folders {numbers[0]} to {numbers[-1]} become {len(numbers)} labels; where they are parts of a "
            f"set, say condition.labels: ignored, or by a pattern in data.labels what the label is",
            stacklevel=stacklevel,
        )
    labelled = {base: False for base, _ in found}
    for (base, _), name in zip(found, names, strict=True):
        labelled[base] = labelled[base] or name is not None
    if len(labelled) > 1 and len(set(labelled.values())) > 1:
        flat = next(base for base, has in labelled.items() if not has)
        warnings.warn(
            f"data.path: files in {flat} have no labels, others have; sort them into folders of the same names",
            stacklevel=stacklevel,
        )


def _label_name(base: Path, file: Path, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is None:
        return None if file.parent == base else as_text(file.parent.name)
    match = pattern.search(as_text(file.relative_to(base).as_posix()))
    if match is None:
        raise InputError(f"data.labels: {pattern.pattern!r} does not fit {file}")
    return match["label"]


def label_in_name(pattern: str, name: str) -> str | None:
    """What the group ``label`` of ``pattern`` finds in a file's name, none of it in the ending; ``None`` if nothing.

    It is searched in the name without its ending first, then, for patterns that name the ending, with it.
    """
    name = as_text(name)
    stem = PurePath(name).stem
    match = re.search(pattern, stem) or re.search(pattern, name)
    return match["label"] or None if match is not None and match.end("label") <= len(stem) else None


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
    root: Path,
    files: Sequence[Path],
    labels: Sequence[int] | None,
    how: Fingerprint = "content",
    *,
    skip: bool = False,
) -> str:
    """Hash of names, contents and labels, in order. With ``skip`` files that cannot be read stop nothing.

    ``how="stat"`` takes size and time of change of a file for its content: a file that is written again gives another
    fingerprint, and so does a copy of the tree that did not keep times. ``auto`` reads contents of up to
    :data:`CONTENT_LIMIT` bytes in all, and takes ``stat`` above: 150 GB are not read to find out that nothing changed.
    """
    stats = sizes_and_times(files, how, skip=skip)
    digest = hashlib.blake2b(digest_size=16)
    prefix = len(root.parts)
    for index, file in enumerate(files):
        label = "" if labels is None else labels[index]
        if stats is None:
            content = read_or_skip(_content_digest, file, skip) or UNREADABLE
        else:
            content = "{}-{}".format(*stats[index])
        digest.update(name_bytes(f"{'/'.join(file.parts[prefix:])}\0{label}\0{content}\n"))
    return digest.hexdigest()


def sizes_and_times(files: Sequence[Path], how: Fingerprint, *, skip: bool = False) -> list[tuple[int, int]] | None:
    """Of each file, where they stand for its content as ``how`` says; ``None`` where contents are to be read."""
    if how == "content":
        return None

    def look(first: int) -> list[tuple[int, int]]:
        part = files[first : first + STATS_IN_TURN]
        return [read_or_skip(_size_and_time, file, skip) or (0, 0) for file in part]

    with ThreadPoolExecutor(STATS_AT_ONCE) as threads:  # over a network each one waits a while
        stats = list(chain.from_iterable(threads.map(look, range(0, len(files), STATS_IN_TURN))))
    return None if how == "auto" and sum(size for size, _ in stats) <= CONTENT_LIMIT else stats


def _size_and_time(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _content_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def caption_files(files: Sequence[Path]) -> dict[Path, Path]:
    """Text files with the names of ``files``, ``walk.txt`` beside ``walk.bvh``, by the file that they are about."""
    folders = {file.parent for file in files}
    texts = {text for folder in folders for text in folder.iterdir() if text.suffix == ".txt"}
    return {file: text for file in files if (text := file.with_suffix(".txt")) in texts} if texts else {}


def read_captions(text: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty, each a caption. InputError for what is no UTF-8."""
    try:
        return tuple(line.strip() for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text}: cannot be read as captions in UTF-8 ({error})") from None


def first_caption(text: Path) -> str:
    """The first of :func:`read_captions`: the text that a sample is scored with. InputError where there is none."""
    captions = read_captions(text)
    if not captions:
        raise InputError(f"{text}: holds no caption; its first line that is not empty is the sample's text")
    return captions[0]
