"""``hf``: audio from a Hugging Face ``datasets`` source, on the hub or on this machine."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from layersync.core.adapter import DataConfig, Example, ExampleDataset, Split
from layersync.core.errors import InputError, nearest
from layersync.core.huggingface import (
    caption_column,
    captions_of,
    check_name,
    chosen_split,
    label_column,
    lines_of,
    table_labels,
)
from layersync.core.paths import (
    CONTENT_LIMIT,
    FINGERPRINT,
    Fingerprint,
    expand,
    expanded,
    fingerprint_files,
    read_named,
    sizes_and_times,
)
from layersync.modalities.audio.clip import read_clip
from layersync.modalities.audio.data import OnError, chosen_by_hash

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class HubConfig(DataConfig):
    """A source that ``datasets.load_dataset`` opens.

    ``path`` is a Parquet file, a folder (of Parquet files, or written by ``save_to_disk``, or of audio files, for which
    ``datasets`` needs torchcodec and ``name: folder`` does not), or the name of a data set on the hub, with ``subset``
    where it has several. The audio column is the one of type ``Audio``; the label
    column the one of type ``ClassLabel``, else one of strings, integers or booleans called ``label``; that of captions
    one called ``caption``, ``captions`` or ``text``: ``audio_column``, ``label_column`` and ``caption_column`` choose
    otherwise. The test split is the one that ``test_split`` names, else the source's ``test``, else its ``validation``,
    else ``test_fraction`` of the split that is trained on, chosen by a hash of the row number. ``fingerprint`` of what
    lies on the hub: ``stat`` is the one that ``datasets`` keeps.
    """

    name: Literal["hf"] = "hf"
    path: str
    subset: str | None = None
    audio_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    test_split: str | None = Field(None, description="Split that is held out; null: test, else validation.")
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    on_error: OnError = "stop"
    fingerprint: Fingerprint = Field("auto", description=FINGERPRINT)

    def build(self, split: Split) -> HubClips:
        """The rows of ``split`` in the order of the source."""
        return HubClips(self, split)


class HubClips(ExampleDataset):
    """Rows of a ``datasets`` table as clips, decoded by libsndfile when asked for."""

    def __init__(self, config: HubConfig, split: Split) -> None:
        from datasets import Audio

        splits = _opened(config)
        features = next(iter(splits.values())).features
        self._audio_column = _audio_column(config, features)
        self._label_column = label_column(features, config.label_column, config.path)
        self._caption_column = caption_column(features, config.caption_column, config.path)
        self.on_error = config.on_error
        chosen, self._rows = _rows_of_split(splits, split, config)
        self._name = f"{config.path} split {chosen}"
        self._labels: list[int | None] = []
        self.classes: tuple[str, ...] = ()
        if self._label_column is not None:
            self._labels, classes = table_labels(splits[chosen], splits, self._label_column)
            self.classes = tuple(classes)
        columns = [
            column for column in (self._audio_column, self._label_column, self._caption_column) if column is not None
        ]
        self._table = splits[chosen].select_columns(columns).cast_column(self._audio_column, Audio(decode=False))
        told = _print_of_source(config, splits[chosen])
        part = f"{config.subset} {chosen} {self._audio_column}"  # of the same files
        self.fingerprint = self._fingerprint(None if told is None else f"{told} {part}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._table[self._rows[index]]
        source = f"{self._name} row {self._rows[index]}"
        condition: dict[str, int | str | tuple[str, ...]] = {}
        if self._label_column is not None:
            if (label := self._labels[self._rows[index]]) is None:
                raise InputError(f"{source}: has no label")
            condition["label"] = label
        if self._caption_column is not None and (texts := captions_of(row[self._caption_column])):
            condition["text"] = texts
        return Example(read_clip(self._contents(row, source), source), condition, source)

    def _contents(self, row: dict[str, Any], source: str) -> bytes:
        """The encoded file of a row, which holds its bytes or names a path."""
        audio = row[self._audio_column] or {}
        if audio.get("bytes"):
            return bytes(audio["bytes"])
        if not audio.get("path"):
            raise InputError(f"{source}: holds no audio")
        try:
            return read_named(Path(audio["path"]))
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def _fingerprint(self, source: str | None) -> str:
        """Of each row's sound, label and text; of the ``source`` instead of sounds, where they are not to be read."""
        digest = hashlib.blake2b(repr((self.on_error, self.classes)).encode(), digest_size=16)
        table = self._table if source is None else self._table.remove_columns(self._audio_column)
        for number in self._rows:
            row = table[number] if table.column_names else {}  # of sounds alone nothing may be left
            try:
                contents = self._contents(row, f"{self._name} row {number}") if source is None else source.encode()
            except InputError as error:
                if self.on_error == "stop":
                    raise
                contents = str(error).encode()
            label = "" if self._label_column is None else row[self._label_column]
            text = "" if self._caption_column is None else row[self._caption_column]
            digest.update(
                f"{number}\0{label}\0{text}\0{hashlib.blake2b(contents, digest_size=16).hexdigest()}\n".encode()
            )
        return f"audio-hf-{digest.hexdigest()}"


def _print_of_source(config: HubConfig, table: Dataset) -> str | None:
    """Of files on this machine, and their sizes and times, or of a table from the hub; ``None`` to read contents."""
    path = expanded(config.path, "data.path")
    if path.exists():
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        if sizes_and_times(files, config.fingerprint) is None:
            return None
        return fingerprint_files(path.parent, files, None, "stat")
    large = config.fingerprint == "auto" and table.data.nbytes > CONTENT_LIMIT
    return str(table._fingerprint) if large or config.fingerprint == "stat" else None


def _opened(config: HubConfig) -> DatasetDict:
    """The splits of the source. Raises :class:`InputError` when there is no such source or it cannot be opened."""
    import datasets

    looks_local = config.path.startswith((".", "/", "~", "$")) or config.path.count("/") > 1
    path = expand(config.path, "data.path") if looks_local else expanded(config.path, "data.path")
    on_disk = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if path.exists() and not on_disk:
        check_name(path)
    try:
        if path.is_file():
            opened = datasets.load_dataset("parquet", config.subset, data_files=str(path))
        elif on_disk:
            opened = datasets.load_from_disk(str(path))
        else:
            opened = datasets.load_dataset(str(path) if path.is_dir() else config.path, config.subset)
    except Exception as error:  # noqa: BLE001 - also of HTTP clients below the library, others in each version
        reason, *more = lines_of(error)
        if config.subset is None and reason.startswith("Config name is missing"):
            raise InputError(f"data.subset: {config.path} has several; {' '.join(more[:1])}") from None
        raise InputError(f"data.path: datasets cannot open {config.path} ({reason})") from None
    return datasets.DatasetDict({"train": opened}) if isinstance(opened, datasets.Dataset) else opened


def _audio_column(config: HubConfig, features: dict[str, Any]) -> str:
    from datasets import Audio

    found = [name for name, feature in features.items() if isinstance(feature, Audio)]
    if config.audio_column is not None:
        if config.audio_column not in features:
            raise InputError(f"data.audio_column: {config.audio_column!r} is no column; {_columns(config, features)}")
        return config.audio_column
    if len(found) != 1:
        raise InputError(
            f"data.path: {config.path} has {len(found)} columns of type Audio, one is wanted; set data.audio_column "
            f"({_columns(config, features)})"
        )
    return found[0]


def _columns(config: HubConfig, features: dict[str, Any]) -> str:
    return nearest(config.audio_column or "", features)


def _rows_of_split(splits: DatasetDict, split: Split, config: HubConfig) -> tuple[str, list[int]]:
    """The source's split to read and the rows to take of it."""
    name, held_out = chosen_split(splits, split, config.test_split)
    if split == "train" and not held_out and config.test_fraction != HubConfig.model_fields["test_fraction"].default:
        own, _ = chosen_split(splits, "test", config.test_split)
        warnings.warn(f"data.test_fraction has no effect: {config.path} has a split {own}", stacklevel=4)
    numbers = range(len(splits[name]))
    test = chosen_by_hash([str(number) for number in numbers], config.test_fraction) if held_out else ()
    rows = [number for number in numbers if not held_out or (str(number) in test) == (split == "test")]
    if not rows and split == "train":
        raise InputError(f"data.path: no row of the source falls into the split {split}")
    return name, rows
