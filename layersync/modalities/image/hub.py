"""Images from Hugging Face ``datasets``: from a hub, or from a folder of Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from layersync.core.adapter import Split
from layersync.core.errors import InputError
from layersync.core.paths import TEST_FRACTION, read_named
from layersync.modalities.image.dataset import HELD_OUT, Decoder, ImageDataset, LargeImageData, row_name


class HuggingFace(LargeImageData):
    """A Hugging Face ``datasets`` source: a hub id, or a local folder of Parquet files.

    The image column is the one of type ``Image``; the label column the one of type ``ClassLabel``, else one of strings,
    integers or booleans called ``label`` or ``cls``, whose different values are the classes (of integers that lie
    within ``num_classes``, 0 to that); that of captions one called caption, captions or text: ``label_column`` and
    ``caption_column`` choose otherwise. Without a split of its own, ``test_fraction`` is held out.
    """

    name: Literal["hf"] = "hf"
    label_column: str | None = Field(None, description="Column of labels: ClassLabel, strings, integers, booleans.")
    caption_column: str | None = Field(None, description="Column of texts, one or a list of them a row.")
    test_split: str | None = Field(None, description="Split that is held out; null: test, else validation.")
    test_fraction: float = Field(TEST_FRACTION, ge=0, le=0.5, description=HELD_OUT)
    subset: str | None = Field(None, description="Configuration of a source that has several.")
    streaming: bool = Field(
        False,
        description="Read row after row and keep nothing of the source on disk, rather than fetch all of it first.",
    )

    def build(self, split: Split) -> ImageDataset:  # noqa: D102
        from layersync.core.huggingface import (
            WEBDATASET_LABEL,
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
                self.path,
                split,
                self.num_examples,
                self.fingerprint,
                self.test_split,
                self.subset,
                test_fraction=self.test_fraction,
            )
            image = column_of_type(stream, "Image", self.path)
            label = label_column(stream.features, self.label_column, self.path)
            if label is not None:
                labels, classes = stream.labels(label, self.num_classes)
            rows: Any = stream
        else:
            table, fingerprint, splits = load_table(
                self.path, split, self.fingerprint, self.test_split, self.subset, test_fraction=self.test_fraction
            )
            image = column_of_type(table, "Image", self.path)
            label = label_column(table.features, self.label_column, self.path)
            if label is not None:
                labels, classes = table_labels(table, splits, label, self.num_classes)
            rows = table
        if label is not None:
            named = self.label_column is not None or label == WEBDATASET_LABEL
            fingerprint += print_of_labels(label, rows.features[label], classes, named=named)
        column = caption_column(rows.features, self.caption_column, self.path)
        fingerprint = self.oriented(fingerprint)
        images = _Rows(self.path, rows, image, column, self.decoder())
        dataset = ImageDataset(
            images.read,
            labels,
            fingerprint if column is None else f"{fingerprint}-{column}",
            size=len(rows),
            source=partial(row_name, self.path),
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
        return self.decode(*_stored(self.rows[index][self.image], row_name(self.path, index)))

    def captions_of(self, index: int) -> tuple[str, ...]:
        from layersync.core.huggingface import captions_of

        return captions_of(self.rows[index][self.text])


def _stored(content: dict[str, Any] | None, source: str) -> tuple[bytes, str]:
    """The image file in a row of a ``datasets`` table, which holds its bytes or names it; and ``source``."""
    if content is None:
        raise InputError(f"{source}: holds no image")
    try:
        return (content["bytes"] if content["bytes"] is not None else read_named(Path(content["path"]))), source
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
