"""What the benchmarks of the training step run on: SiT-S/2 on 32x32x4 latents of 10 classes, batches of 8.

The latents are random and go through a real latent cache and the real trainer; only the VAE is left out, which has
no part in a step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import Example, ExampleDataset, LatentSpec, Tokenizer
from layersync.core.latents import LatentCache, cache_key
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import load_recipe
from layersync.core.run import DataSummary
from layersync.core.trainer import Parts

LATENT = LatentSpec(4, (32, 32))
NUM_EXAMPLES = 256
BATCH_SIZE = 8
BACKBONE = {"name": "sit", "depth": 12, "hidden_size": 384, "num_heads": 6, "patch_size": 2}


class RandomLatents(ExampleDataset):
    """Standard normal arrays shaped as the latents of 256x256 images, in 10 classes."""

    fingerprint = f"random-{NUM_EXAMPLES}x4x32x32"
    classes = tuple(str(label) for label in range(10))

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> Example:
        sample = np.random.default_rng(index).standard_normal(LATENT.shape, dtype=np.float32)
        return Example(sample, {"label": index % len(self.classes)})


class Unchanged(Tokenizer):
    """Samples are latents already."""

    latent = LATENT
    fingerprint = "unchanged"

    def encode(self, samples: Sequence[np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(sample) for sample in samples]

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[np.ndarray]:
        return list(latents.numpy())


def sit_recipe(**sections: Any) -> Recipe:
    """Default settings for SiT-S/2 at batch 8; ``sections`` are the recipe's. Its data section is never built."""
    content = {
        "modality": "image",
        "data": {"name": "digits"},
        "backbone": BACKBONE,
        "train": {"batch_size": BATCH_SIZE},
        **sections,
    }
    return load_recipe(content)


@contextmanager
def random_parts() -> Iterator[Parts]:
    """The trainer's parts over :class:`RandomLatents`, the cache in a temporary directory."""
    dataset, tokenizer = RandomLatents(), Unchanged()
    with tempfile.TemporaryDirectory() as scratch:
        cache = LatentCache.open(dataset, tokenizer, directory=Path(scratch))
        summary = DataSummary(cache_key(dataset, tokenizer), len(cache), dataset.classes, tokenizer.latent)
        yield Parts(tokenizer, cache, None, summary)
