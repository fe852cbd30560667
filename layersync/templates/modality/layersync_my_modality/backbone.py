"""Backbone: the network, layersync's transformer.

It cuts latents into patches along every axis, is told time and label by adaptive layer norms, and gives out the blocks
that LayerSync aligns. REPLACE: only for a network of your own, then see :class:`layersync.core.adapter.Backbone`.
"""

from __future__ import annotations

from typing import Literal

from layersync.core.transformer import TransformerConfig


class BackboneConfig(TransformerConfig):
    """The ``backbone`` section of a recipe; shapes and classes follow from tokenizer and data."""

    name: Literal["transformer"] = "transformer"
