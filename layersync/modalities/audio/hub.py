"""``hf``: audio from a Hugging Face ``datasets`` source, on the hub or on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from layersync.core.adapter import DataConfig, Example, ExampleDataset, Split
from layersync.core.errors import InputError, nearest
from layersync.core.huggingface import caption_column, captions_of
from layersync.core.paths import expand, expanded
from layersync.modalities.audio.clip import read_clip
from layersync.modalities.audio.data import OnError, chosen_by_hash

if TYPE_CHECKING:
    from datasets import DatasetDict

_TEST_SPLITS = ("test", "validation")


class HubConfig(DataConfig):
    """A source that ``datasets.load_dataset`` opens.

    ``path`` is a Parquet file, a folder (of Parquet or audio files, or written by ``save_to_disk``), or the name of a
    data set on the hub, with ``subset`` where it has several. The audio column is the one of type ``Audio``; the label
    column the one of type ``ClassLabel``, else one called ``label``; that of captions one called ``caption``,
    ``captions`` or ``text``: ``audio_column``, ``label_column`` and ``caption_column`` choose otherwise. The test
    split is the source's ``test``, else its ``validation``, else ``test_fraction`` of ``train``, chosen by a hash of
    the row number.
    """

    name: Literal["hf"] = "hf"
    path: str
    subset: str | None = None
    audio_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    on_error: OnError = "stop"

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
        self._label_column = _label_column(config, features)
        self._caption_column = caption_column(features, config.caption_column, config.path)
        self.on_error = config.on_error
        self.classes = _classes(splits, self._label_column)
        self._index = {name: index for index, name in enumerate(self.classes)}
        chosen, rows = _rows_of_split(splits, split, config.test_fraction)
        self._name = f"{config.path} split {chosen}"
        self._rows = rows
        columns = [
            column for column in (self._audio_column, self._label_column, self._caption_column) if column is not None
        ]
        self._table = splits[chosen].select_columns(columns).cast_column(self._audio_column, Audio(decode=False))
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._table[self._rows[index]]
        source = f"{self._name} row {self._rows[index]}"
        condition: dict[str, int | str | tuple[str, ...]] = {}
        if self._label_column is not None:
            condition["label"] = self._label(row[self._label_column], source)
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
            return Path(audio["path"]).read_bytes()
        except OSError as error:
            raise InputError(f"{source}: {audio['path']} cannot be read ({error.strerror})") from None

    def _label(self, value: object, source: str) -> int:
        if isinstance(value, int) and not self._named_labels and 0 <= value < len(self.classes):
            return value
        if self._named_labels and str(value) in self._index:
            return self._index[str(value)]
        raise InputError(f"{source}: its label {value!r} is none of the {len(self.classes)} classes")

    @property
    def _named_labels(self) -> bool:
        from datasets import ClassLabel

        return not isinstance(self._table.features[self._label_column], ClassLabel)

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(repr((self.on_error, self.classes)).encode(), digest_size=16)
        for number in self._rows:
            row = self._table[number]
            try:
                contents = self._contents(row, f"{self._name} row {number}")
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


def _opened(config: HubConfig) -> DatasetDict:
    """The splits of the source. Raises :class:`InputError` when there is no such source or it cannot be opened."""
    import datasets

    looks_local = config.path.startswith((".", "/", "~", "$")) or config.path.count("/") > 1
    path = expand(config.path, "data.path") if looks_local else expanded(config.path, "data.path")
    try:
        if path.is_file():
            opened = datasets.load_dataset("parquet", config.subset, data_files=str(path))
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            opened = datasets.load_from_disk(str(path))
        else:
            opened = datasets.load_dataset(str(path) if path.is_dir() else config.path, config.subset)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason, *more = str(error).splitlines() or [type(error).__name__]
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


def _label_column(config: HubConfig, features: dict[str, Any]) -> str | None:
    from datasets import ClassLabel, Value

    if config.label_column is not None:
        if not isinstance(features.get(config.label_column), (ClassLabel, Value)):
            raise InputError(
                f"data.label_column: {config.label_column!r} is no column of labels; {_columns(config, features)}"
            )
        return config.label_column
    found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(found) > 1:
        raise InputError(f"data.path: {config.path} has several label columns; set data.label_column to one of {found}")
    if not found and isinstance(features.get("label"), Value):
        return "label"
    return found[0] if found else None


def _columns(config: HubConfig, features: dict[str, Any]) -> str:
    return nearest(config.audio_column or config.label_column or "", features)


def _classes(splits: DatasetDict, column: str | None) -> tuple[str, ...]:
    """Names of the labels: the column's own, else its different values in all splits, sorted."""
    from datasets import ClassLabel

    if column is None:
        return ()
    feature = next(iter(splits.values())).features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values = {value for table in splits.values() for value in table.unique(column) if value is not None}
    return tuple(str(value) for value in sorted(values))


def _rows_of_split(splits: DatasetDict, split: Split, fraction: float) -> tuple[str, list[int]]:
    """The source's split to read and the rows to take of it."""
    own_test = next((name for name in _TEST_SPLITS if name in splits), None)
    if split == "test" and own_test is not None:
        return own_test, list(range(len(splits[own_test])))
    if "train" not in splits:
        raise InputError(f"data.path: the source has no split train; there are: {', '.join(sorted(splits))}")
    numbers = range(len(splits["train"]))
    held_out = set() if own_test else chosen_by_hash([str(number) for number in numbers], fraction)
    rows = [number for number in numbers if (str(number) in held_out) == (split == "test")]
    if not rows and split == "train":
        raise InputError(f"data.path: no row of the source falls into the split {split}")
    return "train", rows
