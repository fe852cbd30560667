"""``guidance-interval``: guidance on half of the range of t samples at least 1.25 times as fast as guidance everywhere.

Outside of the interval the unconditional half is not computed. With heun's 6 steps and guidance on [0.25, 0.75],
6 of 12 evaluations are guided: 18 network passes instead of 24, so that the arithmetic allows 1.33. SiT-S/2 on
32x32x4 latents through :class:`GenerativeModel`, untrained weights: the time does not depend on them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Bar, Result, interleaved, main, paired_result
from benchmarks.workload import LATENT, RandomLatents, sit_recipe
from layersync.core.generation import Conditions, GenerativeModel, default_device
from layersync.core.run import DataSummary, Run

NAME = "guidance-interval"
BAR = Bar("at least", 1.25)
NUM_SAMPLES = 2
SETTINGS = {"solver": "heun", "steps": 6, "guidance": 2.0}
HALF = (0.25, 0.75)


def measure(quick: bool) -> Result:
    recipe = sit_recipe(sample=SETTINGS)
    summary = DataSummary("random", len(RandomLatents()), RandomLatents.classes, LATENT)
    conditions = Conditions(torch.arange(NUM_SAMPLES), torch.ones(NUM_SAMPLES, dtype=torch.int64), ("",) * NUM_SAMPLES)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run.create(Path(scratch) / "run", recipe, {}, summary, {})
        device = default_device()
        torch.manual_seed(0)
        backbone = recipe.adapter.backbone(recipe.backbone, LATENT, summary.condition).to(device)
        model = GenerativeModel(run, 0, "model", backbone, device)
        everywhere, half = model.settings(), model.settings(guidance_interval=HALF)
        pairs = interleaved(
            lambda index: model.sample_latents(conditions, seed=index, settings=everywhere),
            lambda index: model.sample_latents(conditions, seed=index, settings=half),
            pairs=2 if quick else 5,
            warmup=1,
            what=NAME,
        )
    return paired_result(pairs, BAR, ("everywhere", "half"), "seconds")


if __name__ == "__main__":
    main(NAME, BAR, measure)
