"""The motion backbone: the core's transformer over frames."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from layersync.core.transformer import TransformerConfig


class MotionTransformerConfig(TransformerConfig):
    """The ``backbone`` section of a motion recipe: one token for every ``patch_size`` frames."""

    name: Literal["transformer"] = "transformer"
    depth: PositiveInt = 12
    hidden_size: PositiveInt = 256
    num_heads: PositiveInt = 4
    patch_size: PositiveInt = 2
