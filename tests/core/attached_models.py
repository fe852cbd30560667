"""What the tests of attach() share: somebody's plain loop over blocks, and tiny random transformers of other people's.

The transformers come from their configuration classes, each with the way it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import layersync
from layersync.core.regularizer.attach import Attachment

Gradients = dict[str, Tensor]


def gradients(model: nn.Module) -> Gradients:
    return {n.replace("_orig_mod.", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}


def difference(ours: Gradients, theirs: Gradients) -> float:
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def touched(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


class Trunk(nn.Module):
    """Somebody's loop over blocks, with gradient checkpointing of either kind over ``span`` blocks at once."""

    def __init__(self, blocks: nn.ModuleList, reentrant: bool | None = None, span: int = 1):
        super().__init__()
        self.blocks, self.reentrant, self.span = blocks, reentrant, span
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.skipped: tuple[int, ...] = ()

    def several(self, start: int, hidden: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks[start : start + self.span], start=start + 1):
            if number not in self.skipped:
                hidden = block(hidden)
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for start in range(0, len(self.blocks), self.span):
            if self.reentrant is None:
                hidden = self.several(start, hidden)
            else:
                hidden = checkpoint(partial(self.several, start), hidden, use_reentrant=self.reentrant)
        return self.last(hidden)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


def trunk(depth: int = 5, block: Callable[[], nn.Module] = Residual, **options: Any) -> Trunk:
    torch.manual_seed(0)
    return Trunk(nn.ModuleList(block() for _ in range(depth)), **options)


INPUT = torch.randn(6, 7, 16, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, handle: Attachment, x: Tensor = INPUT) -> tuple[float, Gradients]:
    """Loss of the regularizer, and every gradient of both losses together."""
    model.zero_grad()
    flow = model(x).pow(2).mean()
    loss = handle.loss()
    (flow + loss).backward()
    return loss.item(), gradients(model)


def by_hand() -> tuple[float, Gradients]:
    """What :func:`trunk` gives for the pair 2-4, weight 0.5, by hand."""
    model = trunk()
    hidden, features = model.first(INPUT), {}
    for number, block in enumerate(model.blocks, start=1):
        hidden = features[number] = block(hidden)
    loss = -0.5 * torch.cosine_similarity(features[2], features[4].detach(), dim=-1).mean()
    (model.last(hidden).pow(2).mean() + loss).backward()
    return loss.item(), gradients(model)


def distributed_step(rank: int, folder: str) -> None:
    """One of two processes, which it ends: steps on its half of the input, and their gradients in a file.

    Once attached before DDP is put around the model, once after.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    try:
        found = []
        for attached_first in (True, False):
            model = trunk(reentrant=False)
            if attached_first:
                handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
                wrapped = nn.parallel.DistributedDataParallel(model)
            else:
                wrapped = nn.parallel.DistributedDataParallel(model)
                handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
            step(wrapped, handle, INPUT.chunk(2)[rank])
            found.append(gradients(model))
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
    # DistributedDataParallel keeps gloo's threads alive beyond the group (torch 2.14), and one that still holds a
    # tensor when the interpreter is taken down aborts the process. All that is tested is in the file by now.
    os._exit(0)


BATCH = 2
SIZES = {"num_attention_heads": 2, "attention_head_dim": 16}
IMAGE = {**SIZES, "num_layers": 4, "in_channels": 4, "out_channels": 4, "sample_size": 8, "patch_size": 2}
TEXT = {"joint_attention_dim": 16, "pooled_projection_dim": 16}


@dataclass
class Attached:
    """A model, its blocks as :func:`layersync.attach` takes them, a pair, ``select=``, and one forward pass."""

    model: nn.Module
    blocks: Any
    pair: tuple[int, int]
    forward: Callable[[], Tensor]
    select: Any = None

    @property
    def flat(self) -> list[nn.Module]:
        lists = self.blocks if isinstance(self.blocks, list) else [self.blocks]
        return [block for blocks in lists for block in blocks]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


TIMES = torch.tensor([10.0, 500.0])


def dit() -> Attached:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(**IMAGE, num_embeds_ada_norm=10)
    inputs = {"timestep": TIMES.long(), "class_labels": torch.tensor([1, 2])}
    return Attached(model, model.transformer_blocks, (2, 3), lambda: model(noise(BATCH, 4, 8, 8), **inputs).sample)


def pixart() -> Attached:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        **IMAGE, cross_attention_dim=32, caption_channels=16, use_additional_conditions=False
    )
    inputs = {"encoder_hidden_states": noise(BATCH, 6, 16), "timestep": TIMES}
    return Attached(model, model.transformer_blocks, (2, 3), lambda: model(noise(BATCH, 4, 8, 8), **inputs).sample)


def sd3() -> Attached:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(**IMAGE, **TEXT, caption_projection_dim=32, pos_embed_max_size=8)
    inputs = {"encoder_hidden_states": noise(BATCH, 6, 16), "pooled_projections": noise(BATCH, 16), "timestep": TIMES}
    return Attached(model, model.transformer_blocks, (2, 3), lambda: model(noise(BATCH, 4, 8, 8), **inputs).sample)


def flux(text_tokens: int = 6) -> Attached:
    """A pair from a double-stream block to a single-stream block."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        **SIZES, **TEXT, num_layers=2, num_single_layers=3, in_channels=4, patch_size=1, axes_dims_rope=(4, 4, 8)
    )
    inputs = {
        "hidden_states": noise(BATCH, 16, 4),
        "encoder_hidden_states": noise(BATCH, text_tokens, 16),
        "pooled_projections": noise(BATCH, 16),
        "timestep": TIMES / 1000,
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(text_tokens, 3),
    }
    blocks = [model.transformer_blocks, model.single_transformer_blocks]
    return Attached(model, blocks, (2, 4), lambda: model(**inputs).sample)


def wan() -> Attached:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        patch_size=(1, 2, 2),
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        rope_max_seq_len=32,
    )
    inputs = {"timestep": TIMES, "encoder_hidden_states": noise(BATCH, 6, 16)}
    return Attached(model, model.blocks, (2, 3), lambda: model(noise(BATCH, 4, 3, 8, 8), **inputs).sample)


def stable_audio() -> Attached:
    """Its blocks carry a global token in front of the latent tokens."""
    from diffusers import StableAudioDiTModel
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    model = StableAudioDiTModel(
        **SIZES,
        num_layers=4,
        num_key_value_attention_heads=2,
        in_channels=4,
        out_channels=4,
        sample_size=16,
        cross_attention_dim=16,
        cross_attention_input_dim=16,
        global_states_input_dim=16,
        time_proj_dim=16,
    )
    inputs = {
        "timestep": TIMES / 1000,
        "encoder_hidden_states": noise(BATCH, 6, 16),
        "global_hidden_states": noise(BATCH, 1, 16),
        "rotary_embedding": get_1d_rotary_pos_embed(8, 17, use_real=True, repeat_interleave_real=False),
    }

    def forward() -> Tensor:
        return model(hidden_states=noise(BATCH, 4, 16), **inputs).sample

    return Attached(model, model.transformer_blocks, (2, 3), forward, select=lambda hidden: hidden[:, 1:])


def torch_encoder() -> Attached:
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4)
    return Attached(model, model.layers, (2, 3), lambda: model(noise(BATCH, 10, 32)))


CHECKPOINTED = {"dit": dit, "pixart": pixart, "sd3": sd3, "flux": flux, "wan": wan, "stable-audio": stable_audio}
MODELS = {**CHECKPOINTED, "torch": torch_encoder}


def made(name: str) -> Attached:
    torch.manual_seed(0)
    return MODELS[name]()
