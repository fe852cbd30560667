"""What the tests share: a cache of the session's own, tiny recipes on real digits, the command line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from layersync import Recipe, Run, load_recipe, train
from layersync.cli import main

torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "modality": "image",
    "data": {"name": "digits"},
    "tokenizer": {"name": "pixels", "image_size": 8, "channels": 1},
    "backbone": {"name": "sit", "depth": 4, "hidden_size": 32, "num_heads": 4, "patch_size": 2},
    "regularizer": {"name": "none"},
    "optimizer": {"lr": 1.0e-3},
    "train": {"steps": 4, "batch_size": 16, "ema_decay": 0.9, "precision": "float32", "log_every": 1},
    "evaluate": {"num_samples": 16},
}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latents of these tests leave no trace in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERSYNC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Recipe]:
    """``tiny("regularizer.name=dispersive", ...)``: a recipe with overrides, as ``--set`` takes them."""
    return lambda *overrides: load_recipe(TINY, overrides)


@pytest.fixture(scope="session")
def run_of(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """``run_of("regularizer.name=dispersive", ...)``: a run of that recipe, trained."""
    return lambda *overrides: train(tiny(*overrides), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``command("train", "image/quick")``: runs the command line in this process; exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        before = sys.argv
        sys.argv = ["layersync", *map(str, arguments)]
        try:
            with warnings.catch_warnings(), pytest.raises(SystemExit) as left:
                warnings.simplefilter("default")
                main()
        finally:
            sys.argv = before
        found = capsys.readouterr()
        return int(left.value.code or 0), found.out, found.err

    return run


@pytest.fixture
def recipe_file(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    """The baseline in a YAML file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(tiny().to_yaml())
    return path
