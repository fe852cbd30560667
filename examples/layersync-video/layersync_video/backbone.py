"""The backbone: the core's transformer, whose tokens are blocks of height x width x frames that all see each other."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from layersync.core.transformer import PositiveInt, TransformerConfig


class VideoTransformerConfig(TransformerConfig):
    """The ``backbone`` section."""

    name: Literal["transformer"] = "transformer"
    patch_size: PositiveInt | list[PositiveInt] = Field([4, 4, 2], description="Height, width, frames of a token.")
