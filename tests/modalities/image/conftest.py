"""What tests of checkpoints share: a VAE, and a run that was imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_checkpoints import HEADS, save_vae, sit_file

from layersync import Run
from layersync.modalities.image.pretrained import import_checkpoint


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL of 4 latent channels and reduction 2, as diffusers saves it."""
    return save_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Run:
    """A run of SiT's layout, with a VAE that is there."""
    folder = tmp_path_factory.mktemp("sit")
    overrides = [HEADS, f"tokenizer.path={vae}", "tokenizer.image_size=16", "sample.solver=euler", "sample.steps=5"]
    return import_checkpoint("sit", sit_file(folder / "0000007.pt"), folder / "run", overrides)
