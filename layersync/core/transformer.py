"""The trunk that every built-in backbone shares: an adaLN-Zero transformer on a grid of any dimension.

Parameter names, shapes and initialisation are those of the published SiT checkpoints (arXiv 2401.08740), so that a
two-dimensional trunk loads them strictly. Blocks are numbered from 1; block outputs are returned only when asked for.

Shape letters: B batch, C channels of a latent, T tokens, D hidden size, H heads, L text tokens, E text channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync.core.adapter import Backbone, BackboneOutput, ConditionSpec, LatentSpec, Section, check_taps
from layersync.core.errors import InputError


def sincos_positions(hidden_size: int, grid: Sequence[int]) -> Tensor:
    """Fixed sine-cosine embedding (tokens, hidden_size) of the cells of ``grid``, float32.

    Channels are split evenly over the axes, the last axis first, each part as (sines, cosines) of
    position / 10000^(i / n): SiT's table for two axes. What does not divide evenly stays 0.
    """
    share = hidden_size // (2 * len(grid))
    frequency = 1.0 / 10000 ** (torch.arange(share, dtype=torch.float64) / share)
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    parts = []
    for axis in reversed(axes):
        angle = axis.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=1)
    return F.pad(table, (0, hidden_size - table.shape[1])).float()


def modulate(x_BTD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Shift and scale every token of a sample alike (adaptive layer norm, DiT eq. in section 3.2)."""
    return torch.addcmul(shift_BD.unsqueeze(1), x_BTD, 1 + scale_BD.unsqueeze(1))


class PatchEmbed(nn.Module):
    """Non-overlapping patches of a 1-, 2- or 3-D grid to tokens, in row-major order."""

    def __init__(self, patch_size: tuple[int, ...], in_channels: int, hidden_size: int):
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(patch_size)]
        self.proj = convolution(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) to (B, T, D)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """t in [0, 1] to a vector: 256 sinusoids (cosines first), then two linear layers."""

    num_frequencies = 256

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.num_frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t_B: Tensor) -> Tensor:
        """(B,) to (B, D)."""
        half = self.num_frequencies // 2
        steps = torch.arange(half, dtype=torch.float32, device=t_B.device)
        angle = t_B.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    """A row per class, and one for "none" at index ``num_classes`` where ``none_row`` is true."""

    def __init__(self, num_classes: int, hidden_size: int, none_row: bool):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + int(none_row), hidden_size)

    def forward(self, label_B: Tensor) -> Tensor:
        """(B,) int64 to (B, D)."""
        return self.embedding_table(label_B)


class TextEmbedder(nn.Module):
    """Token embeddings of a text encoder: pooled for adaLN, projected for cross-attention.

    A text without a single real token (``text_mask`` all False) is "none": it has a learned vector of its own.
    """

    def __init__(self, text_channels: int, hidden_size: int):
        super().__init__()
        self.proj = nn.Linear(text_channels, hidden_size)
        self.none = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, text_BLE: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """To pooled (B, D), tokens (B, 1 + L, D) with the "none" token first, and their mask (B, 1 + L)."""
        tokens = self.proj(text_BLE)
        real = mask_BL.unsqueeze(-1).to(tokens.dtype)
        count = real.sum(1)
        none = self.none.to(tokens.dtype)
        pooled = torch.where(count > 0, (tokens * real).sum(1) / count.clamp_min(1), none)
        keys = torch.cat([none.expand(len(tokens), 1, -1), tokens], dim=1)
        empty = ~mask_BL.any(1, keepdim=True)
        return pooled, keys, torch.cat([empty, mask_BL], dim=1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's SDPA, (B, H, T, head) each; ``mask`` broadcasts to (B, H, T, keys), True where a key is seen.

    On a CPU in float32 whatever the autocast: the backward pass of its bf16 kernel is 2 to 10 times slower than the
    float32 one at the token counts that fit a CPU (torch 2.14, AVX-512 bf16, 16 to 256 tokens).
    """
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(v.dtype)


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's SDPA; ``mask`` (B, T) hides padded tokens from everyone."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        head = hidden_size // num_heads
        self.q_norm = nn.RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).reshape(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        hidden = None if mask_BT is None else mask_BT[:, None, None, :]
        out = attention(q, k, v, hidden)
        return self.proj(out.transpose(1, 2).reshape(B, T, D))


class CrossAttention(nn.Module):
    """Latent tokens attend to text tokens; the output projection starts at zero, so that text enters gently."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BTD: Tensor, text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """(B, T, D) and (B, L, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        head = D // self.num_heads
        q = self.q(self.norm(x_BTD)).reshape(B, T, self.num_heads, head).transpose(1, 2)
        k, v = self.kv(text_BLD).reshape(B, -1, 2, self.num_heads, head).permute(2, 0, 3, 1, 4).unbind(0)
        out = attention(q, k, v, mask_BL[:, None, None, :])
        return self.proj(out.transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    """Two linear layers with a tanh-approximated GELU between."""

    def __init__(self, hidden_size: int, mlp_hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, mlp_hidden_size)
        self.fc2 = nn.Linear(mlp_hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """A transformer block whose norms and gates are set by the condition; the identity at initialisation."""

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float, qk_norm: bool, dropout: float, with_text: bool
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.cross_attn = CrossAttention(hidden_size, num_heads) if with_text else None
        self.dropout = dropout

    def forward(
        self, x_BTD: Tensor, c_BD: Tensor, mask_BT: Tensor | None, text: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD).chunk(6, dim=1)
        attended = self.attn(modulate(self.norm1(x_BTD), shift1, scale1), mask_BT)
        x_BTD = torch.addcmul(x_BTD, gate1.unsqueeze(1), F.dropout(attended, self.dropout, self.training))
        if self.cross_attn is not None and text is not None:
            x_BTD = x_BTD + self.cross_attn(x_BTD, *text)
        fed = self.mlp(modulate(self.norm2(x_BTD), shift2, scale2))
        return torch.addcmul(x_BTD, gate2.unsqueeze(1), F.dropout(fed, self.dropout, self.training))


class FinalLayer(nn.Module):
    """Modulated norm, then a linear layer to the values of a patch; zero at initialisation."""

    def __init__(self, hidden_size: int, patch_volume: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_volume * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x_BTD: Tensor, c_BD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, patch volume * out_channels)."""
        shift, scale = self.adaLN_modulation(c_BD).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x_BTD), shift, scale))


class DiffusionTransformer(Backbone):
    """adaLN-Zero transformer over patches of a latent grid, conditioned on time, labels and text.

    Args:
        grid: cells per axis, (height, width), (mels, frames), (frames,) or (height, width, frames); each a multiple of
            its patch.
        patch_size: cells per patch and axis; one number for all axes, or one each.
        in_channels: channels of the latent.
        hidden_size: channels of a token; a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``hidden_size``.
        num_classes: labels; 0 for none.
        class_dropout_prob: above 0 the label table has a row more, for "none". Nothing is dropped in here.
        text_channels: channels of text embeddings; 0 for none.
        learn_sigma: twice the output channels, of which the second half is dropped (published SiT checkpoints).
        qk_norm: RMS norm on queries and keys.
        dropout: on the output of attention and MLP, in training.
        sequence: latents are (batch, frames, channels) rather than (batch, channels, *grid).

    Raises:
        InputError: for sizes that do not divide.
    """

    def __init__(
        self,
        grid: Sequence[int],
        patch_size: int | Sequence[int],
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        class_dropout_prob: float = 0.1,
        text_channels: int = 0,
        learn_sigma: bool = False,
        qk_norm: bool = False,
        dropout: float = 0.0,
        sequence: bool = False,
    ):
        super().__init__()
        self.grid = tuple(grid)
        self.patch_size = (
            (patch_size,) * len(self.grid) if isinstance(patch_size, int) else tuple(int(p) for p in patch_size)
        )
        check_sizes(self.grid, self.patch_size, hidden_size, num_heads)
        self.in_channels, self.depth, self.num_classes = in_channels, depth, num_classes
        self.learn_sigma, self.sequence = learn_sigma, sequence
        self.gradient_checkpointing = False
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.token_grid = tuple(size // patch for size, patch in zip(self.grid, self.patch_size, strict=True))

        self.x_embedder = PatchEmbed(self.patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob > 0) if num_classes else None
        self.text_embedder = TextEmbedder(text_channels, hidden_size) if text_channels else None
        table = sincos_positions(hidden_size, self.token_grid)
        self.pos_embed = nn.Parameter(table.unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, qk_norm, dropout, bool(text_channels)) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, math.prod(self.patch_size), self.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        zeroed: list[nn.Linear] = [self.final_layer.linear, self.final_layer.adaLN_modulation[1]]  # type: ignore[list-item]
        for block in self.blocks:
            assert isinstance(block, Block)
            zeroed.append(block.adaLN_modulation[1])  # type: ignore[arg-type]
            if block.cross_attn is not None:
                zeroed.append(block.cross_attn.proj)
        for layer in zeroed:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def tokens_of(self, mask: Tensor) -> Tensor:
        """Frame mask (B, frames) to token mask (B, T): a token is real if any of its frames is."""
        along = F.max_pool1d(mask[:, None].float(), self.patch_size[-1])[:, 0] > 0
        across = math.prod(self.token_grid[:-1])
        return along[:, None].expand(-1, across, -1).reshape(len(mask), -1)

    def _unpatchify(self, x: Tensor) -> Tensor:
        axes = len(self.grid)
        x = x.reshape(len(x), *self.token_grid, *self.patch_size, self.out_channels)
        order = [0, 2 * axes + 1]
        for axis in range(axes):
            order += [1 + axis, 1 + axes + axis]
        return x.permute(order).reshape(len(x), self.out_channels, *self.grid)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Mapping[str, Tensor],
        *,
        taps: Sequence[int] = (),
        mask: Tensor | None = None,
    ) -> BackboneOutput:
        """Predict from ``x_t``, shaped as latents, at times ``t`` (B,); see :class:`layersync.core.adapter.Backbone`.

        Raises ValueError for a tap outside of 1 to ``depth``.
        """
        check_taps(taps, self.depth)
        x = x_t.transpose(1, 2) if self.sequence else x_t
        token_mask = None
        if mask is not None:
            x = x * mask.reshape(len(mask), *(1 for _ in self.grid), -1).to(x.dtype)
            token_mask = self.tokens_of(mask)
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(condition["label"])
        text = None
        if self.text_embedder is not None:
            pooled, keys, keys_mask = self.text_embedder(condition["text"], condition["text_mask"])
            c, text = c + pooled, (keys, keys_mask)
        features: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, c, token_mask, text, use_reentrant=False)
            else:
                x = block(x, c, token_mask, text)
            if number in taps:
                features[number] = x
        x = self._unpatchify(self.final_layer(x, c))
        if self.learn_sigma:
            x = x[:, : self.in_channels]
        return BackboneOutput(x.transpose(1, 2) if self.sequence else x, features, token_mask)


def check_sizes(grid: tuple[int, ...], patch_size: tuple[int, ...], hidden_size: int, num_heads: int) -> None:
    """Raise :class:`InputError` unless patches tile the grid and heads divide the width."""
    if len(patch_size) != len(grid):
        raise InputError(f"backbone.patch_size: {list(patch_size)} has {len(patch_size)} axes, latents {list(grid)}")
    for size, patch in zip(grid, patch_size, strict=True):
        if patch < 1 or size % patch:
            raise InputError(f"backbone.patch_size: {list(patch_size)} does not divide the latents' grid {list(grid)}")
    if hidden_size % num_heads:
        raise InputError(f"backbone.hidden_size: {hidden_size} is not a multiple of num_heads, {num_heads}")


PositiveInt = Annotated[int, Field(ge=1)]


class TransformerConfig(Section):
    """The ``backbone`` section for anything built on the trunk. Shapes and classes come from data and tokenizer."""

    depth: PositiveInt = 12
    hidden_size: PositiveInt = 384
    num_heads: PositiveInt = 6
    patch_size: PositiveInt | list[PositiveInt] = 2
    mlp_ratio: float = Field(4.0, gt=0)
    qk_norm: bool = False
    learn_sigma: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _has_hidden_width(self) -> TransformerConfig:
        if int(self.hidden_size * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} of {self.hidden_size} channels leaves the MLP without any")
        return self

    def build(self, latent: LatentSpec, condition: ConditionSpec) -> DiffusionTransformer:
        """The network for latents of this shape and conditions of this kind."""
        settings = self.model_dump(exclude={"name"})
        return DiffusionTransformer(
            grid=latent.grid,
            in_channels=latent.channels,
            num_classes=condition.num_classes,
            text_channels=condition.text_channels,
            sequence=latent.sequence,
            **settings,
        )
