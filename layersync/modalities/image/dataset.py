"""What sources of images share. Every source yields uint8 arrays (height, width, channels) with 1 or 3 channels."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from layersync.core.adapter import DataConfig, DataFacts, Example, ExampleDataset, Split
from layersync.core.errors import InputError
from layersync.core.paths import FINGERPRINT, Fingerprint
from layersync.modalities.image.decoding import LEFT_OUT, decode_image


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


HELD_OUT = "Share that is held out where the source has no split for it; 0: all is trained on."


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
        concurrent: bool = False,
    ):
        self._captions, self.concurrent = captions, concurrent
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


def row_name(table: str, index: int) -> str:
    """Of a table's row, what errors call it."""
    return f"{table}[{index}]"
