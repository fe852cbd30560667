"""A training loop that is not ours, on a transformer that is not ours, with the two lines that LayerSync takes.

Flow matching of scikit-learn's digits with a DiT of diffusers; nothing is downloaded.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import DiTTransformer2DModel
from sklearn.datasets import load_digits

import layersync


def main() -> None:
    """Train, and print both losses and the similarity of the pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--weight", type=float, default=0.3, help="of LayerSync; 0 for the loop without it")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    model = DiTTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=1, num_layers=6, num_attention_heads=4, attention_head_dim=16,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    handle = layersync.attach(model.transformer_blocks, pairs="auto", weight=arguments.weight)  # once
    for step in range(1, arguments.steps + 1):
        index = torch.randint(len(images), (64,))
        data, noise, t = images[index], torch.randn(64, 1, 8, 8), torch.rand(64)
        x_t = t.view(-1, 1, 1, 1) * data + (1 - t.view(-1, 1, 1, 1)) * noise
        velocity = model(x_t, timestep=1000 * t, class_labels=labels[index]).sample
        flow = (velocity - (data - noise)).pow(2).mean()
        sync = handle.output()  # after each forward pass; handle.loss() where the loss alone is wanted
        optimizer.zero_grad()
        (flow + sync.loss).backward()
        optimizer.step()
        if step % 50 == 0 or step in (1, arguments.steps):
            pairs = "".join(f"  similarity {s}-{t} {value:.3f}" for (s, t), value in sync.similarity.items())
            print(f"step {step}  flow loss {flow:.4f}  LayerSync {sync.loss:.4f}{pairs}")
    handle.remove()


if __name__ == "__main__":
    main()
