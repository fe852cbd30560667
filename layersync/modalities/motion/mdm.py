"""``mdm``: the transformer encoder of MDM (Human Motion Diffusion Model, arXiv 2209.14916), for latents of frames.

Parameter names, shapes and initialisation are those of ``model/mdm.py`` (``trans_enc``) of
github.com/GuyTevet/motion-diffusion-model, so that its checkpoints load by name. Text comes as embeddings; CLIP itself
is no part of the network. Unlike the core's trunk it is conditioned by one token in front of the frames, has no
adaLN-Zero, and normalises after each residual.

Shape letters: B batch, T frames, D hidden size, C channels of a frame, L text tokens, E text channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync.core.adapter import Backbone, BackboneOutput, ConditionSpec, LatentSpec, Section, check_taps
from layersync.core.errors import InputError
from layersync.core.interpolant import discrete_step
from layersync.core.pretrained import read_tensors


def sinusoids(positions: int, hidden_size: int) -> Tensor:
    """(positions, hidden_size) float32: sines in even channels, cosines in odd ones (arXiv 1706.03762, 3.5)."""
    place = torch.arange(positions, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, hidden_size, 2).float() * (-math.log(10000.0) / hidden_size))
    return torch.stack([torch.sin(place * frequency), torch.cos(place * frequency)], dim=-1).flatten(1)


class PositionTable(nn.Module):
    """Sinusoids of positions, which serve as those of diffusion steps too. Fixed, and so in no checkpoint."""

    pe: Tensor

    def __init__(self, positions: int, hidden_size: int, dropout: float):
        super().__init__()
        self.register_buffer("pe", sinusoids(positions, hidden_size), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens with their position added, dropped out in training."""
        dropped: Tensor = self.dropout(x_BTD + self.pe[: x_BTD.shape[1]])
        return dropped


class StepEmbedder(nn.Module):
    """Sinusoids of a diffusion step through two linear layers."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.time_embed = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )


class FrameEmbedder(nn.Module):
    """A frame to a token."""

    def __init__(self, channels: int, hidden_size: int):
        super().__init__()
        self.poseEmbedding = nn.Linear(channels, hidden_size)


class FrameHead(nn.Module):
    """A token to a frame."""

    def __init__(self, channels: int, hidden_size: int):
        super().__init__()
        self.poseFinal = nn.Linear(hidden_size, channels)


class LabelTable(nn.Module):
    """A row for each label."""

    def __init__(self, num_classes: int, hidden_size: int):
        super().__init__()
        self.action_embedding = nn.Parameter(torch.randn(num_classes, hidden_size))


class MDM(Backbone):
    """MDM's transformer encoder over frames.

    Args:
        num_frames: frames of a latent.
        in_channels: channels of a frame.
        hidden_size: channels of a token; even, and a multiple of ``num_heads``.
        depth: number of layers. They start as copies of one, as published.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over ``hidden_size``.
        dropout: in the layers and on the embedded tokens, in training.
        num_timesteps: diffusion steps; t in [0, 1] is of step round((1 - t) (num_timesteps - 1)).
        mask_frames: hide padded frames from attention. Published networks saw them.
        num_classes: labels; 0 for none.
        text_channels: channels of text embeddings; 0 for none. Of several tokens the mean is taken.

    Raises:
        InputError: for sizes that do not divide.
    """

    def __init__(
        self,
        num_frames: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
        num_timesteps: int,
        mask_frames: bool,
        num_classes: int = 0,
        text_channels: int = 0,
    ):
        super().__init__()
        if hidden_size % num_heads or hidden_size % 2:
            raise InputError(
                f"backbone.hidden_size: {hidden_size} is not even, or no multiple of num_heads, {num_heads}"
            )
        self.depth, self.num_classes, self.num_timesteps = depth, num_classes, num_timesteps
        self.mask_frames = mask_frames
        self.gradient_checkpointing = False
        self.input_process = FrameEmbedder(in_channels, hidden_size)
        self.sequence_pos_encoder = PositionTable(max(num_frames + 1, num_timesteps), hidden_size, dropout)
        layer = nn.TransformerEncoderLayer(
            hidden_size, num_heads, int(hidden_size * mlp_ratio), dropout, activation=F.gelu, batch_first=True
        )
        self.seqTransEncoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.embed_timestep = StepEmbedder(hidden_size)
        self.embed_text = nn.Linear(text_channels, hidden_size) if text_channels else None
        self.embed_action = LabelTable(num_classes, hidden_size) if num_classes else None
        self.output_process = FrameHead(in_channels, hidden_size)

    def _condition_token(self, t_B: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """(B, D). What is "none" counts as a vector of zeros before its projection."""
        step = discrete_step(t_B, self.num_timesteps)
        token: Tensor = self.embed_timestep.time_embed(self.sequence_pos_encoder.pe[step])
        if self.embed_text is not None:
            real = condition["text_mask"].unsqueeze(-1).to(token.dtype)
            pooled = (condition["text"] * real).sum(1) / real.sum(1).clamp_min(1)
            token = token + self.embed_text(pooled)
        if self.embed_action is not None:
            label = condition["label"]
            row = self.embed_action.action_embedding[label.clamp(max=self.num_classes - 1)]
            token = token + row * (label < self.num_classes)[:, None].to(row.dtype)
        return token

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Mapping[str, Tensor],
        *,
        taps: Sequence[int] = (),
        mask: Tensor | None = None,
    ) -> BackboneOutput:
        """Predict from ``x_t`` (B, T, C) at times ``t`` (B,); see :class:`layersync.core.adapter.Backbone`.

        Raises ValueError for a tap outside of 1 to ``depth``.
        """
        check_taps(taps, self.depth)
        frames = self.input_process.poseEmbedding(x_t)
        x = torch.cat([self._condition_token(t, condition).to(frames.dtype)[:, None], frames], dim=1)
        x = self.sequence_pos_encoder(x)
        hidden = None
        if self.mask_frames and mask is not None:
            hidden = F.pad(~mask, (1, 0), value=False)
        features: dict[int, Tensor] = {}
        for number, layer in enumerate(self.seqTransEncoder.layers, start=1):
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, None, hidden, use_reentrant=False)
            else:
                x = layer(x, src_key_padding_mask=hidden)
            if number in taps:
                features[number] = x[:, 1:]
        return BackboneOutput(self.output_process.poseFinal(x[:, 1:]), features, mask)


class MdmConfig(Section):
    """The ``backbone`` section for MDM's encoder; defaults are the published ones (``utils/model_util.py``)."""

    name: Literal["mdm"] = "mdm"
    depth: PositiveInt = 8
    hidden_size: PositiveInt = 512
    num_heads: PositiveInt = 4
    mlp_ratio: float = Field(2.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    num_timesteps: int = Field(1000, ge=2)
    """Diffusion steps; those of ``objective.num_timesteps`` where the path has steps."""
    mask_frames: bool = False
    """Hide padded frames from attention: off as in the paper, on as MDM's README recommends."""

    def build(self, latent: LatentSpec, condition: ConditionSpec) -> MDM:
        """The network for latents of this shape and conditions of this kind."""
        if not latent.sequence:
            raise InputError("backbone.name: mdm reads latents of frames; this tokenizer's have another layout")
        return MDM(
            num_frames=latent.grid[0],
            in_channels=latent.channels,
            num_classes=condition.num_classes,
            text_channels=condition.text_channels,
            **self.model_dump(exclude={"name"}),
        )


def read_mdm_checkpoint(path: Path) -> dict[str, Tensor]:
    """The network's weights out of a published checkpoint (``model000475000.pt``), by the names of :class:`MDM`.

    Averaged weights are taken where the file has them; CLIP's and the table of positions are left out. Nothing is
    unpickled but tensors. Raises :class:`InputError`, naming the file, for one of another kind.
    """
    stored = read_tensors(path, "MDM checkpoint")
    state = stored.get("model_avg", stored.get("model", stored))
    kept = {
        name: tensor.float()
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and not name.startswith("clip_model.") and not name.endswith("_pos_encoder.pe")
    }
    if "input_process.poseEmbedding.weight" not in kept or "seqTransEncoder.layers.0.linear1.weight" not in kept:
        raise InputError(f"MDM checkpoint: {path} holds no weights of MDM's encoder (arch trans_enc)")
    return kept
