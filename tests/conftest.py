"""What several test files share: a cache of the session's own, tiny recipes on real digits, the command line."""

from __future__ import annotations

import os
import tempfile

# All of it is read when a library is imported, so before anything of ours is; processes that tests start have it, too.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of those processes, which share the cores with tests
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="layersync-tables-")  # instead of the user's cache
os.environ.update({} if "LAYERSYNC_TEST_DEVICES" in os.environ else {"CUDA_VISIBLE_DEVICES": ""})

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from layersync import Recipe, Run, load_recipe, train
from layersync.core import experiment_run, trainer
from layersync.core.packaged import cache_directory

torch.set_num_threads(1)


LONGEST = ("test_new_modality_document", "test_plugin_packages", "test_compare", "test_report", "test_distributed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this session's own; only data that was fetched from a package index is kept between sessions.

    Processes of one session share classifiers, which take longest to make.
    """
    own = tmp_path_factory.getbasetemp()
    session = own.parent if hasattr(request.config, "workerinput") else own
    directory = tmp_path_factory.mktemp("cache")
    for name, kept in (("data", cache_directory() / "data"), ("classifiers", session / "classifiers")):
        kept.mkdir(parents=True, exist_ok=True)
        (directory / name).symlink_to(kept)
    before = os.environ.get("LAYERSYNC_CACHE")
    os.environ["LAYERSYNC_CACHE"] = str(directory)
    yield directory
    if before is None:
        del os.environ["LAYERSYNC_CACHE"]
    else:
        os.environ["LAYERSYNC_CACHE"] = before


@pytest.fixture(scope="module", autouse=True)
def small_probe(request: pytest.FixtureRequest) -> Iterator[None]:
    """Held-out losses and similarities on 32 examples instead of 256: most of a tiny training is these.

    A module with ``WHOLE_PROBE`` looks at them, or compares them with those of a process of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(request.module, "WHOLE_PROBE"):
            for module in (trainer, experiment_run):
                patch.setattr(module, "PROBE_SIZE", 32)
        yield


TINY: dict[str, Any] = {
    "modality": "image",
    "data": {"name": "digits"},
    "tokenizer": {"name": "pixels", "image_size": 8, "channels": 1},
    "backbone": {"name": "sit", "depth": 4, "hidden_size": 32, "num_heads": 4, "patch_size": 2},
    "regularizer": {"name": "layersync", "pairs": [[1, 3]], "weight": 0.3},
    "optimizer": {"lr": 1.0e-3},
    "train": {"steps": 5, "batch_size": 16, "ema_decay": 0.9, "precision": "float32", "log_every": 1},
    "sample": {"solver": "euler", "steps": 4, "batch_size": 8},
    "evaluate": {"num_samples": 64},
}


@pytest.fixture(scope="session")
def tiny_mapping() -> dict[str, Any]:
    """A recipe for digits with 4 blocks of 32 channels, as a mapping."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}


@pytest.fixture(scope="session")
def tiny(tiny_mapping: dict[str, Any]) -> Callable[..., Recipe]:
    """``tiny("train.steps=3", ...)``: that recipe with overrides, as ``--set`` takes them."""

    def make(*overrides: str) -> Recipe:
        return load_recipe(tiny_mapping, overrides)

    return make


@pytest.fixture
def tiny_file(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    """That recipe in a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny().to_yaml())
    return path


@pytest.fixture(scope="session")
def tensors_of() -> Callable[..., dict[str, Tensor]]:
    """``tensors_of(run, "model")``: the tensors of its newest checkpoint: model, ema or optimizer."""

    def read(run: Run | Path, kind: str = "model", step: int | None = None) -> dict[str, Tensor]:
        run = run if isinstance(run, Run) else Run(run)
        checkpoint = run.latest_checkpoint() if step is None else run.checkpoint(step)
        return load_file(checkpoint / f"{kind}.safetensors")

    return read


@pytest.fixture(scope="session")
def identical() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]:
    """Whether two mappings of tensors agree bit for bit."""
    return lambda a, b: set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def largest_difference() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], float]:
    """The largest difference of two mappings of tensors with the same names."""

    def measure(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        assert set(a) == set(b)
        return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)

    return measure


@pytest.fixture(scope="session")
def trained(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 40 steps, for tests that read a run and leave it as it is."""
    return train(tiny("train.steps=40"), tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``command("train", "image/quick")``: runs the command line in this process; exit status, stdout, stderr."""
    from layersync.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
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
