"""Hugging Face ``datasets`` sources: hub ids and local Parquet, columns found by feature type."""

from __future__ import annotations

import glob
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layersync.core.adapter import Split
from layersync.core.errors import InputError, nearest
from layersync.core.paths import TEST_FRACTION, Fingerprint, expanded, fingerprint_files, held_out_ranks
from layersync.core.pretrained import first_line

WEBDATASET_LABEL = "cls"
HELD_OUT_EVERY = 10
"""Rows of a stream, of which one is held out: :data:`TEST_FRACTION`."""

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset


def load_table(
    path: str,
    split: Split,
    how: Fingerprint = "content",
    test_split: str | None = None,
    subset: str | None = None,
    *,
    test_fraction: float = TEST_FRACTION,
) -> tuple[Dataset, str, DatasetDict]:
    """The rows of ``split``, a fingerprint of them, and all of the source's own splits.

    Images and audio stay undecoded bytes in the rows.

    ``path`` is a hub id, a local folder or a Parquet file; of a hub id everything is fetched first, and kept by
    ``datasets``. A source that has no ``test`` (or ``validation``) split has ``test_fraction`` of its rows held out,
    evenly; ``test_split`` names another. A source without ``train`` is trained on its first split, of those that
    ``test_split`` does not name.
    ``subset`` is its configuration, where it has several.
    ``how`` local files are fingerprinted: see :func:`~layersync.core.paths.fingerprint_files`.
    InputError when it cannot be loaded.
    """
    found, local = _loaded(path, subset, streaming=False)
    name, held_out = chosen_split(found, split, test_split)
    table = found[name]
    if held_out:
        chosen = held_out_ranks(np.arange(len(table)), test_fraction)
        table = table.select(np.flatnonzero(chosen if split == "test" else ~chosen))
    table = _undecoded(table)
    usual = chosen_split(found, split, None)  # the files say which it is; another one has to be named
    part = split if (name, held_out) == usual else f"{name}-{split}"
    part = part if subset is None else f"{subset}-{part}"
    if held_out and test_fraction != TEST_FRACTION:
        part += f"-{test_fraction:g}"
    if not held_out and split == "train" and test_fraction != TEST_FRACTION:
        _warn_of_fraction(path)
    return table, f"{_print_of_files(local, how) if local else table._fingerprint}-{part}", found


def open_stream(
    path: str,
    split: Split,
    num_examples: int | None,
    how: Fingerprint = "content",
    test_split: str | None = None,
    subset: str | None = None,
    *,
    test_fraction: float = TEST_FRACTION,
) -> tuple[Stream, str]:
    """The rows of ``split`` one after another, nothing of the source kept on disk, and a fingerprint of them.

    As :func:`load_table`. How many rows there are comes from the source's metadata or from local Parquet files; where
    neither says it, ``num_examples`` are read and none are held out. InputError when nothing says it.
    """
    if test_fraction not in (0, TEST_FRACTION):
        raise InputError(f"data.test_fraction: {test_fraction:g}; of a stream {TEST_FRACTION:g} is held out, or 0")
    found, local = _loaded(path, subset, streaming=True)
    name, held_out = chosen_split(found, split, test_split)
    if not held_out and split == "train" and test_fraction != TEST_FRACTION:
        _warn_of_fraction(path)
    total = _num_rows(path, subset, name, found[name])
    if total is not None:
        kept = total // HELD_OUT_EVERY if test_fraction else 0
        count = (kept if split == "test" else total - kept) if held_out else total
    elif split == "test":
        count = 0
    elif num_examples is None:
        raise InputError(f"data.num_examples: {path!r} does not say how many rows {name} has; give their number")
    else:
        count = num_examples
    every = split if held_out and total is not None and test_fraction else None
    if local:
        source = _print_of_files(local, how)
    else:  # the addresses of the files name the revision that they are of
        source = hashlib.sha256(json.dumps(sorted(map(str, _data_files(path, subset, name)))).encode()).hexdigest()
    part = name if subset is None else f"{subset}-{name}"
    return Stream(_undecoded(found[name]), count, every, path), f"{source}-{part}-{split}-{count}"


class Stream:
    """Rows of a streamed source by index. Going forward is cheap; going back, or in another order, starts anew."""

    def __init__(self, rows: IterableDataset, count: int, held_out: Split | None, path: str):
        self.features = rows.features or {}
        self.path = path
        self._rows, self._count, self._held_out = rows, count, held_out
        self._iterator: Iterator[dict[str, Any]] = iter(())
        self._next, self._at, self._row = 0, -1, dict[str, Any]()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self._at:
            return self._row
        place = self._place(index)
        if self._at < 0 or place < self._next:
            self._iterator, self._next = iter(self._rows.skip(place)), place
        try:
            while self._next <= place:
                row = next(self._iterator)
                self._next += 1
        except StopIteration:
            raise InputError(f"data.num_examples: {self.path!r} ends before row {place + 1}") from None
        except Exception as error:
            where = f"{self.path}: the stream broke off at row {self._next}"
            raise OSError(f"{where} ({first_line(error)}); run it again") from error
        self._at, self._row = index, row
        return row

    def _place(self, index: int) -> int:
        """Row of the source: every tenth is held out where there is no split for that."""
        if self._held_out is None:
            return index
        return index + index // (HELD_OUT_EVERY - 1) if self._held_out == "train" else (index + 1) * HELD_OUT_EVERY - 1

    def labels(self, column: str, num_classes: int | None) -> tuple[StreamedLabels, list[str]]:
        """The labels in ``column``, each read with its row, and the class names; as :func:`table_labels`.

        A column of bare numbers does not say how many classes there are: ``num_classes`` has to, and numbers are from
        0. One of strings does not say which, and is refused with :class:`InputError`.
        """
        feature = self.features[column]
        if type(feature).__name__ == "ClassLabel":
            return StreamedLabels(self, column, len(feature.names), UNLABELLED), list(feature.names)
        if holds_truths(feature):
            return StreamedLabels(self, column, len(TRUTHS)), list(TRUTHS)
        if holds_strings(feature):
            raise InputError(
                f"data.streaming: the labels of {self.path!r}, {column}, are strings, and a stream does not say which "
                f"there are; set it to false, or give a column of type ClassLabel"
            )
        if num_classes is None:
            raise InputError(f"data.num_classes: the labels of {self.path!r} are numbers; say how many there are")
        return StreamedLabels(self, column, num_classes), [str(label) for label in range(num_classes)]


class StreamedLabels(Sequence[int]):
    """One column of a :class:`Stream`. InputError for a label that is none of the classes, from ``least`` on."""

    def __init__(self, stream: Stream, column: str, num_classes: int, least: int = 0):
        self._stream, self._column, self._num_classes, self._least = stream, column, num_classes, least

    def __len__(self) -> int:
        return len(self._stream)

    def __getitem__(self, index: Any) -> Any:
        label = self._stream[index][self._column]
        if label is None or not self._least <= label < self._num_classes:
            where = f"{self._stream.path}[{index}]"
            raise InputError(f"{where}: its label {label} is none of the {self._num_classes} classes")
        return int(label)


def _loaded(path: str, subset: str | None, *, streaming: bool) -> tuple[Any, Path | None]:
    """The splits, and where they lie if they are on this machine."""
    from datasets import load_dataset

    local = expanded(path, "data.path")
    if local.exists():
        check_name(local)
    source = str(local) if local.exists() else path
    try:
        if local.is_file() and local.suffix == ".parquet":
            return load_dataset("parquet", subset, data_files=source, streaming=streaming), local
        return load_dataset(source, subset, streaming=streaming), local if local.exists() else None
    except Exception as error:  # noqa: BLE001 - also of HTTP clients below the library, and RuntimeError for scripts
        reason, *more = lines_of(error)
        if subset is None and reason.startswith("Config name is missing"):
            raise InputError(f"data.subset: {path!r} has several; {' '.join(more[:1])}") from None
        raise InputError(f"data.path: {path!r} is no data set that can be loaded ({reason})") from None


def lines_of(error: Exception) -> list[str]:
    """What ``datasets`` says went wrong, at least one line; of a data set that could not be generated, why not."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        return str(error.__cause__).splitlines() or [type(error.__cause__).__name__]
    return str(error).splitlines() or [type(error).__name__]


def check_name(path: Path) -> None:
    """Raise :class:`InputError` for a name that ``datasets`` takes for a pattern, and reads other files of."""
    name = path if path.is_file() else path.resolve()  # as it does with folders
    if glob.has_magic(str(name)):
        raise InputError(f"data.path: {name}: datasets reads *, ? and [ in names as patterns; rename it")


def _warn_of_fraction(path: str) -> None:
    warnings.warn(f"data.test_fraction has no effect: {path} has a split that is held out", stacklevel=4)


def chosen_split(found: Any, split: Split, test_split: str | None) -> tuple[str, bool]:
    """The source's own name for ``split``, and whether rows of it have to be held out because it has no other.

    Raises :class:`InputError` for a ``test_split`` that is none of ``found``, or all of it.
    """
    if test_split is not None and test_split not in found:
        raise InputError(f"data.test_split: {test_split!r} is no split of the source; it has {', '.join(found)}")
    own = test_split or next((name for name in ("test", "validation") if name in found), None)
    others = [name for name in found if name != test_split]
    if not others:
        raise InputError(f"data.test_split: {test_split!r} is the source's only split, which leaves none to train on")
    train = "train" if "train" in others else others[0]
    if own is not None and (test_split is not None or train == "train"):
        return (train if split == "train" else own), False
    return train, True


def _undecoded(table: Any) -> Any:
    from datasets import Audio, Image

    for name, feature in (table.features or {}).items():
        if isinstance(feature, Image | Audio):
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def _print_of_files(local: Path, how: Fingerprint) -> str:
    files = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else [local]
    return fingerprint_files(local.parent, files, None, how)


def _data_files(path: str, subset: str | None, split: str) -> list[str]:
    from datasets import load_dataset_builder

    local = expanded(path, "data.path")
    if local.is_file():
        return [str(local)]
    builder = load_dataset_builder(str(local) if local.exists() else path, subset)
    return list((builder.config.data_files or {}).get(split, ()))


def _num_rows(path: str, subset: str | None, split: str, rows: IterableDataset) -> int | None:
    """From the source's metadata, else from the footers of Parquet files on this machine."""
    splits = rows.info.splits or {}
    if split in splits and splits[split].num_examples:
        return int(splits[split].num_examples)
    files = _data_files(path, subset, split)
    if files and all(file.endswith(".parquet") and Path(file).is_file() for file in files):
        from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

        return sum(read_metadata(file).num_rows for file in files)
    return None


def column_of_type(table: Dataset | Stream, kind: str, path: str) -> str:
    """The one column whose feature class is named ``kind``. InputError when there is none or more than one."""
    found = [name for name, feature in table.features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        columns = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in table.features.items())
        raise InputError(f"data.path: {path!r} has {len(found)} columns of type {kind}; its columns: {columns}")
    return found[0]


UNLABELLED = -1
"""What ``datasets`` writes into a column of type ``ClassLabel`` for a row without a label."""
TRUTHS = (str(False), str(True))
"""The classes of a column of booleans."""
LABELS = "strings, integers or booleans"


def label_column(features: Mapping[str, Any], given: str | None, path: str) -> str | None:
    """The column of labels: ``given``, the one of type ``ClassLabel``, or one called ``label`` (WebDataset's: ``cls``).

    Labels are strings, integers or booleans. Warns of a column called so that holds none. Raises
    :class:`InputError` for a given column that is not there or holds none, and for several ``ClassLabel``.
    """
    if given is not None:
        if given not in features:
            raise InputError(f"data.label_column: {given!r} is no column in {path!r}; {nearest(given, features)}")
        if not _holds_labels(features[given]):
            kind = _kind(features[given])
            raise InputError(f"data.label_column: {given!r} is no column of {LABELS} in {path!r}; it holds {kind}")
        return given
    found = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if len(found) > 1:
        raise InputError(f"data.path: {path!r} has several columns of labels; set data.label_column to one of {found}")
    name = next((name for name in ("label", WEBDATASET_LABEL) if name in features), None)
    if found or name is None:
        return found[0] if found else None
    if not _holds_labels(features[name]):
        kind = _kind(features[name])
        warnings.warn(f"data.path: {name} of {path!r} holds {kind}, and no labels: those are {LABELS}", stacklevel=2)
        return None
    return name


def _holds_labels(feature: Any) -> bool:
    kind, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    return kind == "ClassLabel" or (
        kind == "Value" and (holds_strings(feature) or holds_truths(feature) or "int" in dtype)
    )


def _kind(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__


def holds_truths(feature: Any) -> bool:
    """Whether a column of this feature holds booleans."""
    return getattr(feature, "dtype", None) == "bool"


def table_labels(
    table: Dataset, splits: DatasetDict, column: str, num_classes: int | None = None
) -> tuple[list[int | None], list[str]]:
    """Class numbers of the rows, ``None`` where there is none, and the class names.

    Names are those of a ``ClassLabel``, in which -1 is no label; of booleans, False and True; of others, their
    different values in all ``splits``, sorted. Integers that lie within ``num_classes`` are class numbers themselves.
    Warns of a -1 among integers from 0 on.
    """
    values, feature = table[column][:], table.features[column]
    if type(feature).__name__ == "ClassLabel":
        return values, list(feature.names)
    if holds_truths(feature):
        return [None if value is None else int(value) for value in values], list(TRUTHS)
    known = sorted({value for rows in splits.values() for value in rows.unique(column)} - {None})
    if not holds_strings(feature):
        if num_classes is not None and known and known[0] >= 0 and known[-1] < num_classes:
            known = list(range(num_classes))
        elif known[:2] == [UNLABELLED, 0]:
            warnings.warn(
                f"data.label_column: -1 in {column} is a class like others; rows without a label are empty there, or "
                f"-1 in a column of type ClassLabel",
                stacklevel=2,
            )
    number = {value: index for index, value in enumerate(known)}
    return [number.get(value) for value in values], [str(value) for value in known]


def print_of_labels(column: str, feature: Any, classes: Sequence[str], *, named: bool) -> str:
    """What to add to the fingerprint of a source for where labels come from and how they are numbered.

    ``named``: whether the column was chosen. Nothing for ``ClassLabel`` and for integers that are class numbers.
    """
    if type(feature).__name__ == "ClassLabel":
        return f"-label:{column}" if named else ""
    integers = not holds_strings(feature) and not holds_truths(feature)
    renumbered = integers and classes != [str(number) for number in range(len(classes))]
    return (f"-label:{column}" if named or not integers else "") + ("-renumbered" if renumbered else "")


CAPTION_COLUMNS = ("caption", "captions", "text")


def caption_column(features: Mapping[str, Any], given: str | None, path: str) -> str | None:
    """The column of texts: ``given``, else the first of :data:`CAPTION_COLUMNS` that holds strings, or ``None``.

    Raises :class:`InputError` for a column that is not there or holds no strings.
    """
    if given is not None:
        if not holds_strings(features.get(given)):
            known = nearest(given, features)
            raise InputError(f"data.caption_column: {given!r} is no column of texts in {path!r}; {known}")
        return given
    return next((name for name in CAPTION_COLUMNS if holds_strings(features.get(name))), None)


def holds_strings(feature: Any) -> bool:
    """Whether a column of this feature holds a string or a list of strings a row."""
    inner = getattr(feature, "feature", feature)  # of a list of strings
    return getattr(inner, "dtype", None) in ("string", "large_string")


def captions_of(value: Any) -> tuple[str, ...]:
    """The texts in a row, one or several; empty ones are none."""
    texts = [value] if isinstance(value, str) else list(value or ())
    return tuple(text.strip() for text in texts if text and text.strip())
