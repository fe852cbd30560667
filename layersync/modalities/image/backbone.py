"""SiT (arXiv 2401.08740) on the shared trunk, under the constructor keywords of its published code."""

from __future__ import annotations

from typing import Literal

from layersync.core.adapter import ConditionSpec, LatentSpec
from layersync.core.transformer import DiffusionTransformer, TransformerConfig


class SiT(DiffusionTransformer):
    """Scalable interpolant transformer on square latents.

    Takes the state dicts of published checkpoints strictly. Call it as ``model(x_t, t, {"label": y})``; the output's
    ``prediction`` is shaped as ``x_t``.

    Args:
        input_size: height and width of the latent.
        patch_size: side of a patch.
        in_channels: channels of the latent.
        hidden_size: channels of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``hidden_size``.
        num_classes: labels; 0 for an unconditional model.
        learn_sigma: twice the output channels, of which the second half is dropped.
        class_dropout_prob: above 0 the label table has a row more, for "none".
        qk_norm: RMS norm on queries and keys (not in published checkpoints).
        dropout: on the output of attention and MLP.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        class_dropout_prob: float = 0.1,
        qk_norm: bool = False,
        dropout: float = 0.0,
        text_channels: int = 0,
    ):
        super().__init__(
            grid=(input_size, input_size),
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            class_dropout_prob=class_dropout_prob,
            learn_sigma=learn_sigma,
            qk_norm=qk_norm,
            dropout=dropout,
            text_channels=text_channels,
        )


class SiTConfig(TransformerConfig):
    """The ``backbone`` section; S/2, B/2, L/2, XL/2 have 12/384/6, 12/768/12, 24/1024/16, 28/1152/16."""

    name: Literal["sit"] = "sit"
    patch_size: int = 2

    def build(self, latent: LatentSpec, condition: ConditionSpec) -> SiT:
        """The network for square latents of this shape."""
        return SiT(
            input_size=latent.grid[0],
            in_channels=latent.channels,
            num_classes=condition.num_classes,
            text_channels=condition.text_channels,
            **self.model_dump(exclude={"name"}),
        )
