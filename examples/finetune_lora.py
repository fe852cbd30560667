"""Fine-tune a diffusers transformer with PEFT's LoRA and LayerSync; only the LoRA layers get gradient, and are saved.

Needs PEFT: ``pip install peft``, which the extra ``lora`` brings.

By default a tiny transformer with random weights, built from its configuration, so that it runs anywhere. With
``--pretrained`` a published one: a folder or a hub id that holds a transformer of Stable Diffusion 3 or 3.5
(``stabilityai/stable-diffusion-3.5-medium``, subfolder ``transformer``). The data are scikit-learn's digits, put where
a VAE's latents and a text encoder's embeddings would be: bring your own for anything but a trial.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from sklearn.datasets import load_digits
from torch import Tensor

import layersync


def transformer(pretrained: str | None, subfolder: str) -> SD3Transformer2DModel:
    """A published transformer, or a tiny one with random weights."""
    if pretrained:
        return SD3Transformer2DModel.from_pretrained(pretrained, subfolder=subfolder)
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=6, num_attention_heads=4,
        attention_head_dim=16, joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip


def digits(model: SD3Transformer2DModel) -> tuple[Tensor, Tensor, Tensor]:
    """Digits as latents of the model's shape, their class as ten random tokens, and those pooled."""
    config = model.config
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    latents = torch.nn.functional.interpolate(images, (config.sample_size, config.sample_size))
    labels = torch.tensor(labels)
    captions, pooled = torch.randn(10, 10, config.joint_attention_dim), torch.randn(10, config.pooled_projection_dim)
    return latents.expand(-1, config.in_channels, -1, -1), captions[labels], pooled[labels]


def main() -> None:
    """Train LoRA layers and save them as ``pytorch_lora_weights.safetensors``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", help="folder or hub id of a Stable Diffusion 3 or 3.5 model")
    parser.add_argument("--subfolder", default="transformer", help="of --pretrained; empty for the folder itself")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--weight", type=float, default=0.002, help="that of LayerSync's authors for a LoRA of Wan 2.1")
    parser.add_argument("--out", type=Path, default=Path("lora"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = transformer(arguments.pretrained, arguments.subfolder)
    latents, captions, pooled = digits(model)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=arguments.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    model.enable_gradient_checkpointing()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    # select=1: blocks return (text, latents), which could be of one shape
    with layersync.attach(model.transformer_blocks, pairs="auto", weight=arguments.weight, select=1) as handle:
        for step in range(1, arguments.steps + 1):
            index = torch.randint(len(latents), (arguments.batch_size,))
            data, noise = latents[index], torch.randn_like(latents[index])
            sigma = torch.rand(len(index))  # diffusers counts from data to noise; LayerSync's t is 1 - sigma
            x = (1 - sigma.view(-1, 1, 1, 1)) * data + sigma.view(-1, 1, 1, 1) * noise
            velocity = model(
                x, encoder_hidden_states=captions[index], pooled_projections=pooled[index], timestep=1000 * sigma
            ).sample
            flow = (velocity - (noise - data)).pow(2).mean()
            sync = handle.output()
            optimizer.zero_grad()
            (flow + sync.loss).backward()
            optimizer.step()
            if step % 20 == 0 or step in (1, arguments.steps):
                pairs = "".join(f"  similarity {s}-{t} {value:.3f}" for (s, t), value in sync.similarity.items())
                print(f"step {step}  flow loss {flow:.4f}  LayerSync {sync.loss:.4f}{pairs}")
    model.save_lora_adapter(arguments.out)
    print(f"{sum(parameter.numel() for parameter in trained)} parameters trained, saved in {arguments.out}")


if __name__ == "__main__":
    main()
