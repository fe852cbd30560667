"""Files in the layouts of the published code, with weights that their names determine."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import layersync
from layersync import Run
from layersync.modalities.image import SiT

HEADS = "backbone.num_heads=4"
LABELS = {"sit": [1, 7, 3], "repa": [1, 700, 3]}


def drawn(name: str, shape: tuple[int, ...], scale: float = 0.08) -> Tensor:
    """Normal numbers that the name alone determines."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape) * scale
    return torch.from_numpy(values.astype(np.float32))


def weights(classes: int = 10, learn_sigma: bool = True, **changes: int) -> dict[str, Tensor]:
    sizes = {"input_size": 8, "hidden_size": 64, "depth": 4, "num_heads": 4, **changes}
    with torch.device("meta"):
        model = SiT(num_classes=classes, learn_sigma=learn_sigma, **sizes)
    return {name: drawn(name, tuple(value.shape)) for name, value in model.state_dict().items()}


def sit_file(path: Path, **entries: Any) -> Path:
    """As SiT's train.py saves, AdamW's state shortened to one parameter's."""
    state = weights()
    optimizer = {"state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    settings = argparse.Namespace(model="SiT-T/2", path_type="Linear", prediction="velocity", num_classes=10, vae="mse")
    model = {name: value + 0.01 for name, value in state.items()}
    torch.save({"model": model, "ema": state, "opt": optimizer, "args": settings, **entries}, path)
    return path


def repa_file(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict, **entries: Any) -> Path:
    """As REPA's train.py saves: no learned sigma, three layers for each projector, steps."""
    projector = {f"projectors.0.{n}.{kind}": torch.zeros(3) for n in (0, 2, 4) for kind in ("weight", "bias")}
    state = change(weights(1000, learn_sigma=False) | projector)
    settings = argparse.Namespace(path_type="linear", prediction="v", proj_coeff=0.5, num_classes=1000, encoder_depth=2)
    torch.save({"model": state, "ema": state, "opt": {}, "args": settings, "steps": 70000, **entries}, path)
    return path


def save_vae(folder: Path, **changes: Any) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    settings = {"latent_channels": 4, "scaling_factor": 0.18215, **changes}
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **settings,
    ).save_pretrained(folder)
    return folder


def noise() -> Tensor:
    return drawn("noise", (3, 4, 8, 8), 1.0)


def latents(run: Run, labels: list[int], **settings: Any) -> np.ndarray:
    model = layersync.load(run.path)
    conditions = model.conditions(3, labels=labels)
    return model.sample_latents(conditions, noise=noise(), settings=model.settings(**settings))[0].numpy()
