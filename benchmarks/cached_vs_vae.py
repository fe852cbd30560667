"""``cached-vs-vae``: a step from cached latents is at least 8 times as fast as one that runs the VAE's encoder.

The step is SiT-S/2's on ImageNet-256 latents at batch 8, by the trainer with default settings. One side reads the
moments that the VAE gave once; the other encodes the same images at every step, as the published code of SiT and
LayerSync does, without gradient. Both draw latents from the moments with the same noise, so that their losses agree,
which is checked. The VAE has Stable Diffusion's published configuration and random weights: what it costs does not
depend on them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Bar, Result, interleaved, main, paired_result, say
from benchmarks.workload import BATCH_SIZE, sit_recipe
from layersync.core.adapter import Example, ExampleDataset
from layersync.core.draws import StepDraws
from layersync.core.latents import LatentBatch, LatentCache, cache_key
from layersync.core.run import DataSummary
from layersync.core.trainer import Parts, Trainer
from layersync.modalities.image.tokenizer import Vae, VaeConfig

NAME = "cached-vs-vae"
BAR = Bar("at least", 8)
SIZE = 256
PARAMETERS = 83_653_863
"""Of Stable Diffusion's AutoencoderKL."""


class Pictures(ExampleDataset):
    """One batch of random 256x256 images."""

    fingerprint = "pictures"
    classes = tuple(str(label) for label in range(10))

    def __len__(self) -> int:
        return BATCH_SIZE

    def __getitem__(self, index: int) -> Example:
        image = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        return Example(image, {"label": index % len(self.classes)})


class EncodeEveryStep:
    """Reads as a :class:`LatentCache` does, by encoding the images that are asked for."""

    def __init__(self, dataset: ExampleDataset, tokenizer: Vae):
        self.dataset, self.tokenizer = dataset, tokenizer

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, draws: StepDraws) -> LatentBatch:
        examples = [self.dataset[int(index)] for index in draws.indices]
        stored = torch.stack(self.tokenizer.encode([example.sample for example in examples]))
        return LatentBatch(stored, None, torch.tensor([example.label for example in examples]), ("",) * len(examples))


@contextmanager
def stable_diffusion_vae() -> Iterator[Vae]:
    """The tokenizer on a random VAE of the published configuration (CompVis/stable-diffusion-v1-4, vae/config.json)."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=SIZE,
        scaling_factor=0.18215,
    )
    assert sum(p.numel() for p in vae.parameters()) == PARAMETERS
    with tempfile.TemporaryDirectory() as folder:
        vae.save_pretrained(folder)
        del vae
        yield Vae(VaeConfig(path=folder, image_size=SIZE))


def measure(quick: bool) -> Result:
    recipe = sit_recipe(regularizer={"name": "none"})
    dataset = Pictures()
    with stable_diffusion_vae() as tokenizer, tempfile.TemporaryDirectory() as scratch:
        say(f"{NAME}: encoding {len(dataset)} images once, for the cache")
        cache = LatentCache.open(dataset, tokenizer, directory=Path(scratch))
        summary = DataSummary(cache_key(dataset, tokenizer), len(cache), dataset.classes, tokenizer.latent)
        cached = Parts(tokenizer, cache, None, summary)
        in_step: Any = EncodeEveryStep(dataset, tokenizer)
        ours, theirs = Trainer(recipe, cached), Trainer(recipe, cached)
        theirs.parts = replace(cached, cache=in_step)
        first = float(ours.train_step(0)["flow_loss"])  # also warms up
        second = float(theirs.train_step(0)["flow_loss"])
        assert abs(first - second) < 1e-3 * first, f"the sides do not train alike: losses {first} and {second}"
        pairs = interleaved(theirs.train_step, ours.train_step, pairs=1 if quick else 2, warmup=0, what=NAME)
    precision = {"precision": str(ours.dtype).removeprefix("torch."), "because": ours.precision_reason}
    return {**paired_result(pairs, BAR, ("vae", "cached"), "seconds"), **precision}


if __name__ == "__main__":
    main(NAME, BAR, measure)
