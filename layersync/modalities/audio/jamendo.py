"""``mtg-jamendo``: music with tags, in the layout of the MTG-Jamendo dataset (Bogdanov et al., 2019).

The audio is what the dataset's ``download.py --unpack`` leaves (``00/7400.mp3``, of low quality ``00/7400.low.mp3``);
splits and tags are the tables of the repository github.com/MTG/mtg-jamendo-dataset. Nothing of either ships here.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from layersync.core.adapter import DataConfig, DataFacts, Example, ExampleDataset, Split
from layersync.core.errors import InputError
from layersync.core.paths import expand
from layersync.modalities.audio.clip import check_header, read_clip
from layersync.modalities.audio.data import OnError

logger = logging.getLogger(__name__)

COLUMNS = ("TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS")
HYPHEN = "---"
"""Between the category of a tag and its name: ``mood/theme---happy``."""


class MtgJamendoConfig(DataConfig):
    """A split of MTG-Jamendo.

    ``path`` is the folder with the tracks (``00`` to ``99``), ``metadata`` a checkout of the dataset's repository;
    left out, the same folder. ``subset`` chooses the table by its tags, as the repository's baseline does. Training
    takes the ``train`` table of ``split_number``, the held-out split its ``held_out`` one. ``label: first-tag`` gives
    each track the first of its tags, in the table's alphabetical order, as its label; captions are all of its tags in
    any case. ``seconds`` reads only so much of each track, around its middle. ``on_error: skip`` leaves missing and
    unreadable tracks out, and counts them.
    """

    name: Literal["mtg-jamendo"] = "mtg-jamendo"
    path: str
    metadata: str | None = None
    subset: Literal["all", "moodtheme", "genre", "instrument", "top50tags"] = "moodtheme"
    split_number: int = Field(0, ge=0, le=4)
    quality: Literal["full", "low"] = "full"
    held_out: Literal["test", "validation"] = "test"
    label: Literal["none", "first-tag"] = "none"
    seconds: float | None = Field(None, gt=0)
    on_error: OnError = "stop"

    def facts(self) -> DataFacts:
        """Tracks are unlabelled unless their first tag is the label; how many there are only the table says."""
        return DataFacts(num_classes=0 if self.label == "none" else None)

    def build(self, split: Split) -> MtgJamendo:
        """The tracks of ``split``, in the table's order."""
        return MtgJamendo(self, split)


@dataclass(frozen=True)
class Track:
    """A row of a table: where the track lies below the audio folder, and its tags as ``category---name``."""

    path: str
    tags: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The tags without their categories."""
        return tuple(tag.partition(HYPHEN)[2] for tag in self.tags)


class MtgJamendo(ExampleDataset):
    """Tracks, decoded when asked for; ``text`` is their tags, such as ``energetic, happy``.

    The fingerprint covers names, sizes and tags: to hash 152 GB of audio would take longer than a training's start.
    """

    concurrent = True

    def __init__(self, config: MtgJamendoConfig, split: Split) -> None:
        root = expand(config.path, "data.path")
        tables = _tables_folder(root if config.metadata is None else expand(config.metadata, "data.metadata"), config)
        self.on_error = config.on_error
        self._seconds = config.seconds
        self.classes = _classes(tables, config) if config.label == "first-tag" else ()
        table = _table(tables, config, "train" if split == "train" else config.held_out)
        self._tracks, self._files = _present(root, read_tracks(table), config)
        if self.on_error == "stop":
            for file in self._files:
                check_header(file)
        digest = hashlib.blake2b(repr((config.seconds, self.on_error, self.classes)).encode(), digest_size=16)
        for track, file in zip(self._tracks, self._files, strict=True):
            digest.update(f"{file.name}\0{track}\0{file.stat().st_size}\n".encode())
        self.fingerprint = f"mtg-jamendo-{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        track, file = self._tracks[index], self._files[index]
        condition: dict[str, int | str] = {"text": ", ".join(track.names)}
        if self.classes:
            condition["label"] = self.classes.index(track.names[0])
        return Example(read_clip(file, str(file), self._seconds), condition, str(file))


def read_tracks(file: Path) -> list[Track]:
    """The rows of a table of the dataset. Raises :class:`InputError`, naming the line, for one of another layout."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.metadata: {file} cannot be read as a table ({error})") from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise InputError(f"data.metadata: {file} does not begin with the columns {', '.join(COLUMNS)}")
    tracks = []
    for number, row in enumerate(rows[1:], start=2):
        tags = tuple(row[len(COLUMNS) - 1 :])
        relative = Path(row[3]) if len(row) >= len(COLUMNS) else None
        if relative is None or relative.is_absolute() or ".." in relative.parts or not relative.suffix:
            raise InputError(f"data.metadata: {file} line {number} names no track and its tags")
        if not all(tag.partition(HYPHEN)[2] for tag in tags):
            raise InputError(f"data.metadata: {file} line {number}: a tag is no category{HYPHEN}name: {list(tags)}")
        tracks.append(Track(relative.as_posix(), tags))
    if not tracks:
        raise InputError(f"data.metadata: {file} lists no track")
    return tracks


def _tables_folder(metadata: Path, config: MtgJamendoConfig) -> Path:
    folder = metadata / "data" / "splits" / f"split-{config.split_number}"
    if not folder.is_dir():
        key = "data.path" if config.metadata is None else "data.metadata"
        raise InputError(
            f"{key}: {metadata} has no data/splits/split-{config.split_number}; set data.metadata to a checkout of "
            f"github.com/MTG/mtg-jamendo-dataset"
        )
    return folder


def _table(folder: Path, config: MtgJamendoConfig, part: str) -> Path:
    subset = "" if config.subset == "all" else f"_{config.subset}"
    return folder / f"autotagging{subset}-{part}.tsv"


def _classes(folder: Path, config: MtgJamendoConfig) -> tuple[str, ...]:
    """The first tags of the tracks of both splits, sorted."""
    tables = (_table(folder, config, part) for part in ("train", config.held_out))
    return tuple(sorted({track.names[0] for table in tables for track in read_tracks(table)}))


def _present(root: Path, tracks: list[Track], config: MtgJamendoConfig) -> tuple[list[Track], list[Path]]:
    """The tracks whose files are there. Raises :class:`InputError` where none is, or one is not and may not lack."""
    named = [(track, root / _file_name(track, config.quality)) for track in tracks]
    found = [(track, file) for track, file in named if file.is_file()]
    missing = len(named) - len(found)
    if missing and (config.on_error == "stop" or not found):
        first = next(file for _, file in named if not file.is_file())
        other: Literal["full", "low"] = "low" if config.quality == "full" else "full"
        there = any((root / _file_name(track, other)).is_file() for track in tracks)
        remedy = f"set data.quality: {other}, which is there" if there else "fetch them with the dataset's download.py"
        skip = ", or set data.on_error: skip" if found else ""
        raise InputError(f"data.path: {missing} of {len(named)} tracks are missing, such as {first}; {remedy}{skip}")
    if missing:
        logger.warning("data: %d of %d tracks are not there and were left out", missing, len(named))
    return [track for track, _ in found], [file for _, file in found]


def _file_name(track: Track, quality: Literal["full", "low"]) -> str:
    """``48/948.mp3``, or ``48/948.low.mp3`` as the tracks of low quality are called."""
    return track.path if quality == "full" else str(Path(track.path).with_suffix(".low.mp3"))
