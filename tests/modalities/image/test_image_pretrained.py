"""Published checkpoints in and out, against numbers that the published code gave on the same weights and noise.

``image_sit.npz`` was made by running the published code (its ``source`` entry names repositories, files and commits) on
a SiT of 4 blocks of 64 channels, 4 heads, 8x8x4 latents and 10 classes (REPA: 1000, its samplers' none is class 1000),
with :func:`drawn` for weights, noise and the increments of the SDE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

import layersync
from layersync import InputError, Run, load_recipe
from layersync.core.generation import Conditions, GenerativeModel
from layersync.core.guidance import GuidedPrediction
from layersync.core.interpolant import Linear
from layersync.core.solver import solve_ode, solve_sde
from layersync.modalities.image import SiT
from layersync.modalities.image.export import export_run
from layersync.modalities.image.pretrained import import_checkpoint

Command = Callable[..., tuple[int, str, str]]
TOLERANCE = 1e-4
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


def repa_file(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> Path:
    """As REPA's train.py saves: no learned sigma, three layers for each projector, steps."""
    projector = {f"projectors.0.{n}.{kind}": torch.zeros(3) for n in (0, 2, 4) for kind in ("weight", "bias")}
    state = change(weights(1000, learn_sigma=False) | projector)
    settings = argparse.Namespace(path_type="linear", prediction="v", proj_coeff=0.5, num_classes=1000, encoder_depth=2)
    torch.save({"model": state, "ema": state, "opt": {}, "args": settings, "steps": 70000}, path)
    return path


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    with np.load(Path(__file__).parents[2] / "golden" / "image_sit.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL of 4 latent channels and reduction 2, as diffusers saves it."""
    return save_vae(tmp_path_factory.mktemp("vae"))


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


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Run:
    """SiT's layout; guidance of the recipe as its sample.py has it, on 3 of 4 channels."""
    folder = tmp_path_factory.mktemp("sit")
    overrides = [HEADS, f"tokenizer.path={vae}", "tokenizer.image_size=16", "sample.solver=euler", "sample.steps=5"]
    return import_checkpoint("sit", sit_file(folder / "0000007.pt"), folder / "run", overrides)


@pytest.fixture(scope="module")
def repa(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("repa")
    return import_checkpoint("repa", repa_file(folder / "0070000.pt"), folder / "run", [HEADS])


def noise() -> Tensor:
    return drawn("noise", (3, 4, 8, 8), 1.0)


def latents(run: Run, labels: list[int], **settings: Any) -> np.ndarray:
    model = layersync.load(run.path)
    conditions = Conditions(torch.tensor(labels), torch.ones(3))
    return model.sample_latents(conditions, noise=noise(), settings=model.settings(**settings))[0].numpy()


def guided(model: GenerativeModel, labels: list[int], **settings: Any) -> GuidedPrediction:
    condition = {"label": torch.tensor(labels)}
    return GuidedPrediction(model.backbone, condition, None, spec=model.condition, latent=model.latent, **settings)


SAMPLERS: dict[str, dict[str, Any]] = {
    "sit_euler": {"solver": "euler"},
    "sit_heun": {"solver": "heun"},
    "sit_dopri5": {"solver": "dopri5", "atol": 1e-6, "rtol": 1e-6},
    "sit_guided": {"solver": "heun", "guidance": 4.0, "guidance_channels": 3},
    "layersync_euler": {"solver": "euler"},
    "layersync_guided": {"solver": "heun", "guidance": 4.0, "guidance_channels": 3},
    "repa_euler": {"solver": "euler"},
    "repa_guided": {"solver": "euler", "guidance": 1.8},
    "repa_interval": {"solver": "euler", "guidance": 1.8, "guidance_interval": (0.3, 1.0)},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_the_published_codes(name: str, imported: Run, repa: Run, golden: Mapping[str, np.ndarray]) -> None:
    layout = "repa" if name.startswith("repa") else "sit"
    found = latents(repa if layout == "repa" else imported, LABELS[layout], steps=5, **SAMPLERS[name])
    assert np.abs(found - golden[name]).max() < TOLERANCE
    others = [other for other in SAMPLERS if other.split("_")[1] != name.split("_")[1] and other.startswith(layout)]
    assert all(
        np.abs(found - golden[other]).max() > 10 * TOLERANCE for other in others if "dopri5" not in (name + other)
    )


def test_repas_heun_ends_with_an_euler_step(repa: Run, golden: Mapping[str, np.ndarray]) -> None:
    with torch.inference_mode():
        found = solve_ode(
            guided(layersync.load(repa.path), LABELS["repa"]), noise(), solver="heun", steps=5, open_end=True
        )
    assert np.abs(found.numpy() - golden["repa_heun"]).max() < TOLERANCE


@pytest.mark.parametrize("layout", ["sit", "repa"])
def test_sde_with_the_same_increments(layout: str, imported: Run, repa: Run, golden: Mapping[str, np.ndarray]) -> None:
    settings = {"guidance": 1.8, "interval": (0.3, 1.0)} if layout == "repa" else {}
    model = layersync.load((repa if layout == "repa" else imported).path)
    with torch.inference_mode():
        found = solve_sde(
            guided(model, LABELS[layout], **settings),
            noise(),
            Linear("velocity"),
            lambda step, shape: drawn(f"increment-{step}", tuple(shape), 1.0),
            steps=6,
        )
    assert np.abs(found.numpy() - golden[f"{layout}_sde"]).max() < TOLERANCE


def test_forward_pass_and_repas_time_and_sign(imported: Run, repa: Run, golden: Mapping[str, np.ndarray]) -> None:
    with torch.inference_mode():
        label = {"label": torch.tensor(LABELS["sit"])}
        found = layersync.load(imported.path).backbone(noise(), torch.tensor([0.0, 0.37, 0.9]), label).prediction
        assert np.abs(found.numpy() - golden["sit_forward"]).max() < TOLERANCE
        label = {"label": torch.tensor(LABELS["repa"])}
        theirs = torch.tensor([1.0, 0.63, 0.1])
        found = layersync.load(repa.path).backbone(noise(), 1 - theirs, label).prediction
        assert np.abs(found.numpy() + golden["repa_forward"]).max() < TOLERANCE


SIZES = {"XL": (28, 1152, 16), "L": (24, 1024, 16), "B": (12, 768, 12), "S": (12, 384, 6)}


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_are_those_of_the_published_classes(size: str, golden: Mapping[str, np.ndarray]) -> None:
    """Every tensor of SiT's and LayerSync's classes, with and without sigma, and of REPA's less its projectors."""
    depth, width, heads = SIZES[size]
    for patch in (2, 4, 8):
        for learn_sigma in (True, False):
            with torch.device("meta"):
                state = SiT(32, patch, 4, width, depth, heads, learn_sigma=learn_sigma).state_dict()
            text = "\n".join(f"{name} {list(value.shape)}" for name, value in sorted(state.items()))
            count = sum(value.numel() for value in state.values())
            found = [hashlib.sha256(text.encode()).hexdigest(), len(state), count]
            assert found == json.loads(str(golden["shapes_sit"]))[f"SiT-{size}/{patch} {learn_sigma}"]
            if not learn_sigma:
                assert found == json.loads(str(golden["shapes_repa"]))[f"SiT-{size}/{patch} False"]


class TestWhatIsInferredAndWritten:
    def test_from_shapes_and_args(self, imported: Run) -> None:
        recipe = imported.recipe.to_mapping()
        assert (
            recipe["backbone"]
            == load_recipe(
                {"modality": "image", "data": {"name": "digits"}},
                ["backbone.depth=4", "backbone.hidden_size=64", HEADS, "backbone.learn_sigma=true"],
            ).to_mapping()["backbone"]
        )
        assert imported.data.latent.shape == (4, 8, 8) and len(imported.data.classes) == 10
        assert imported.checkpoint_steps() == [7], "AdamW's own count"
        assert recipe["sample"]["guidance"] == 1.0 and "guidance: 1.0" in (imported.path / "recipe.yaml").read_text()
        assert recipe["data"]["path"] == "$IMAGENET" and recipe["regularizer"] == {"name": "none"}

    def test_both_kinds_of_weights_are_kept(self, imported: Run, tensors_of: Callable[..., dict[str, Tensor]]) -> None:
        ema, model = tensors_of(imported, "ema"), tensors_of(imported, "model")
        for name, value in weights().items():
            assert torch.equal(ema[name], value) and torch.equal(model[name], value + 0.01)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"patch_size": 4, "in_channels": 3}, {"patch_size": 4, "mlp_ratio": 4.0}),
            ({"mlp_ratio": 2.7, "hidden_size": 384, "depth": 1, "num_heads": 6}, {"num_heads": 6, "hidden_size": 384}),
        ],
    )
    def test_other_sizes(self, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
        torch.save(weights(3, False, **changes), tmp_path / "bare.pt")
        known = [] if "num_heads" in changes else [HEADS]
        run = import_checkpoint("sit", tmp_path / "bare.pt", tmp_path / "run", known)
        found = run.recipe.backbone.model_dump()
        assert found | expected == found and not found["learn_sigma"] and run.checkpoint_steps() == [0]
        assert run.data.condition.num_classes == 3 and run.data.latent.channels == changes.get("in_channels", 4)
        assert run.recipe.tokenizer.model_dump()["image_size"] == 64, "8 pixels a cell"

    def test_layersyncs_pair(self, tmp_path: Path) -> None:
        settings = argparse.Namespace(loss_type="layer_sync", encoder_depth=2, gt_encoder_depth=3, reg_weight=0.3)
        run = import_checkpoint("sit", sit_file(tmp_path / "a.pt", args=settings), tmp_path / "run", [HEADS])
        found = run.recipe.to_mapping()["regularizer"]
        assert (found["name"], found["pairs"], found["weight"]) == ("layersync", [[2, 3]], 0.3)
        defaults = argparse.Namespace(loss_type="layer_sync", encoder_depth=3, gt_encoder_depth=3, reg_weight=0.3)
        run = import_checkpoint("sit", sit_file(tmp_path / "b.pt", args=defaults), tmp_path / "other", [HEADS])
        assert run.recipe.to_mapping()["regularizer"] == {"name": "none"}

    def test_sigma_can_be_left_out(self, imported: Run, tmp_path: Path) -> None:
        overrides = [HEADS, "backbone.learn_sigma=false"]
        run = import_checkpoint("sit", sit_file(tmp_path / "a.pt"), tmp_path / "run", overrides)
        with_it, without = (latents(r, LABELS["sit"], solver="euler", steps=3) for r in (imported, run))
        assert np.abs(with_it - without).max() < 1e-6

    def test_repas_first_checkpoints(self, repa: Run, tmp_path: Path) -> None:
        """Blocks after the projectors are called decoder_blocks there, counted from 0 (REPA utils.py)."""
        names = {f"blocks.{n}.": f"decoder_blocks.{n - 2}." for n in (2, 3)}

        def legacy(state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {names.get(name[:9], name[:9]) + name[9:]: value for name, value in state.items()}

        file = repa_file(tmp_path / "a.pt", legacy)
        assert "decoder_blocks.1.attn.qkv.bias" in torch.load(file, weights_only=False)["ema"]
        run = import_checkpoint("repa", file, tmp_path / "run", [HEADS])
        assert np.array_equal(*(latents(r, LABELS["repa"], solver="euler", steps=2) for r in (repa, run)))


def test_command_line_samples_without_vae_or_hub(command: Command, tmp_path: Path, vae: Path) -> None:
    file, run = repa_file(tmp_path / "a.pt"), tmp_path / "run"
    status, _, err = command("import", "repa", file, "--out", run, "--set", HEADS)
    assert status == 0 and "6 tensors of REPA's projector heads are dropped" in err
    arguments = ["--labels", "0,999,1000", "--num", 3, "--solver", "euler", "--steps", 2, "--latents-only"]
    shown = [
        command("sample", run, *arguments, "--out", tmp_path / name, *more)
        for name, more in (
            ("plain", []),
            ("guided", ["--guidance", 3]),
            ("three", ["--guidance", 3, "--guidance-channels", 3]),
        )
    ]
    assert [status for status, _, _ in shown] == [0, 0, 0]
    plain, everywhere, three = (np.load(tmp_path / name / "latents.npy") for name in ("plain", "guided", "three"))
    assert plain.shape == (3, 4, 8, 8)
    assert np.abs(plain[2] - everywhere[2]).max() < 1e-5, "none guided by none"
    assert np.abs(plain[:2] - everywhere[:2]).max() > 1e-2 and np.abs(three - everywhere).max() > 1e-3
    status, _, err = command("sample", run, "--num", 2)
    assert status == 2 and "no VAE can be loaded from 'stabilityai/sd-vae-ft-ema'" in err


def test_decoded_with_a_local_vae(command: Command, imported: Run, tmp_path: Path) -> None:
    status, out, _ = command("sample", imported.path, "--labels", "1,2", "--num", 2, "--npz", "--out", tmp_path / "s")
    assert status == 0
    with np.load(Path(out.strip()) / "samples.npz") as stored:
        assert stored["arr_0"].shape == (2, 16, 16, 3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of each of ten classes."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(20):
        folder = root / f"class{number // 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def training(images: Path, vae: Path, *more: str) -> layersync.Recipe:
    sections = {
        "modality": "image",
        "data": {"name": "folder", "path": str(images)},
        "tokenizer": {"name": "vae", "path": str(vae), "image_size": 16},
        "backbone": {"depth": 4, "hidden_size": 64, "num_heads": 4, "learn_sigma": True},
        "regularizer": {"name": "layersync"},
        "train": {"steps": 1, "batch_size": 8, "precision": "float32"},
        "optimizer": {"lr": 1.0e-4},
    }
    return load_recipe(sections, more)


def test_training_starts_from_an_imported_run(
    imported: Run, images: Path, vae: Path, tmp_path: Path, tensors_of: Callable[..., dict[str, Tensor]]
) -> None:
    run = layersync.train(training(images, vae, f"train.init={imported.path}"), tmp_path / "run")
    start, end = weights(), tensors_of(run, "model")
    moved = {name: float((end[name] - start[name]).abs().max()) for name in start}
    assert 0 < max(moved.values()) < 1.1e-3, "one step of AdamW from there, not from an initialisation"


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"latent_channels": 3}, 16, "makes latents of 3x8x8, {} needs 4x8x8"),
        ({}, 32, "makes latents of 4x16x16, {} needs 4x8x8"),
        ({"scaling_factor": 0.3611}, 16, "has scaling_factor 0.3611, the run's latents were made with 0.18215"),
    ],
)
def test_another_vae_is_refused(
    command: Command, imported: Run, images: Path, tmp_path: Path, changes: dict[str, Any], size: int, words: str
) -> None:
    other = save_vae(tmp_path / "vae", **changes)
    overrides = [HEADS, f"tokenizer.path={other}", f"tokenizer.image_size={size}"]
    run = import_checkpoint("sit", sit_file(tmp_path / "a.pt"), tmp_path / "run", overrides)
    status, _, err = command("sample", run.path, "--num", 1, "--steps", 2, "--solver", "euler", "--out", tmp_path / "s")
    assert status == 2 and words.format(f"run {str(run.path)!r}") in err and not (tmp_path / "s").exists()
    with pytest.raises(InputError, match=words.format(".*")):
        layersync.train(
            training(images, other, f"train.init={imported.path}", f"tokenizer.image_size={size}"), tmp_path / "trained"
        )
    assert not (tmp_path / "trained").exists()


class Foreign:
    """Runs code where it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def bad_file(kind: str, folder: Path) -> Path:
    path, state = folder / "bad.pt", weights()
    contents: dict[str, Any] = {
        "code": {"ema": state, "logger": Foreign(folder / "made")},
        "module": nn.Linear(2, 2),
        "foreign": {"conv1.weight": torch.zeros(3)},
        "nested": {"state_dict": state, "epoch": 3},
        "surplus": state | {f"extra.{n:02}": torch.zeros(1) for n in range(12)},
        "missing": {name: value for name, value in state.items() if name != "blocks.2.attn.qkv.bias"},
        "list": [state],
        "qk-norm": state | {"blocks.0.attn.q_norm.weight": torch.ones(16)},
        "narrow": state | {"final_layer.linear.weight": torch.zeros(17, 64)},
        "projectors": state | {"projectors.0.0.weight": torch.zeros(1)},
        "classes": {"ema": state, "args": argparse.Namespace(num_classes=11)},
    }
    if kind in contents:
        torch.save(contents[kind], path)
    elif kind == "cut":
        path.write_bytes(sit_file(path).read_bytes()[:50_000])
    elif kind != "absent":
        path.write_bytes({"empty": b"", "bytes": bytes(range(256)) * 9, "text": b"not a checkpoint"}[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "no such file"),
        ("cut", "is cut short, damaged, or no file of torch.save"),
        ("empty", "is cut short, damaged, or no file of torch.save"),
        ("bytes", "is cut short, damaged, or no file of torch.save"),
        ("text", "is cut short, damaged, or no file of torch.save"),
        ("code", "holds more than tensors (posix.mkdir), and opening that can run code; where you trust it, write its"),
        ("module", "holds more than tensors (torch.nn.modules.linear.Linear)"),
        ("foreign", "is no SiT: pos_embed, x_embedder.proj.weight"),
        ("nested", "is no state dict; it holds state_dict, epoch"),
        ("surplus", "extra.00 is not the backbone's; extra.01 is not"),
        ("missing", "do not fit the backbone: blocks.2.attn.qkv.bias is missing"),
        ("list", "holds a list, not tensors by name"),
        ("qk-norm", "was trained with --qk-norm"),
        ("narrow", "final_layer.linear.weight has 17 rows"),
        ("projectors", "is a checkpoint of REPA, it holds projectors.0.0.weight: layersync import repa"),
        ("classes", "args say 11 classes, the table has 11 rows"),
    ],
)
def test_files_that_are_no_checkpoint(command: Command, tmp_path: Path, kind: str, words: str) -> None:
    path = bad_file(kind, tmp_path)
    before = sorted(tmp_path.iterdir())
    status, _, err = command("import", "sit", path, "--out", tmp_path / "run", "--set", HEADS)
    assert status == 2 and words in err and len(err.splitlines()) == 1, err
    assert sorted(tmp_path.iterdir()) == before, "nothing run, nothing written"
    if kind == "surplus":
        assert "extra.09 is not the backbone's and 2 more" in err and "extra.10" not in err


@pytest.mark.parametrize(
    ("layout", "overrides", "words"),
    [
        ("sit", [], "add --set backbone.num_heads=N"),
        ("sit", ["backbone.num_heads=5"], "backbone.hidden_size: 64 is not a multiple of num_heads, 5"),
        ("sit", [HEADS, "backbone.depth=3"], "blocks.3.adaLN_modulation.1.bias is not the backbone's"),
        ("sit", [HEADS, "backbone.widht=3"], "backbone.widht: unknown key"),
        ("sit", [HEADS, "tokenizer.name=pixels"], "makes latents of 3x64x64"),
        ("repa", [HEADS], "twice as wide as REPA's, as SiT's is: layersync import sit"),
        ("dit", [HEADS], "'dit' is no layout; did you mean 'sit'?"),
    ],
)
def test_settings_that_do_not_fit(
    command: Command, tmp_path: Path, layout: str, overrides: list[str], words: str
) -> None:
    file = sit_file(tmp_path / "a.pt")
    status, _, err = command("import", layout, file, "--out", tmp_path / "run", *[f"--set={o}" for o in overrides])
    assert status == 2 and words in err and sorted(tmp_path.iterdir()) == [file], err


def published_samples(run: Run) -> np.ndarray:
    return latents(run, LABELS["sit"], solver="euler", steps=2)


def test_to_sit_and_back_bit_for_bit(
    imported: Run, tmp_path: Path, tensors_of: Callable[..., dict[str, Tensor]], identical: Callable[..., bool]
) -> None:
    file = export_run(imported.path, "sit", out=tmp_path / "out.pt")
    content = torch.load(file, weights_only=True)
    assert set(content) == {"ema", "model", "steps"} and identical(content["ema"], weights())
    back = import_checkpoint("sit", file, tmp_path / "back", [HEADS])
    assert back.checkpoint_steps() == [7]
    for kind in ("ema", "model"):
        assert identical(tensors_of(back, kind), tensors_of(imported, kind))


def test_to_sit_without_sigma_is_filled_up(
    command: Command, tmp_path: Path, tensors_of: Callable[..., dict[str, Tensor]], identical: Callable[..., bool]
) -> None:
    torch.save(weights(learn_sigma=False), tmp_path / "a.pt")
    run = import_checkpoint("sit", tmp_path / "a.pt", tmp_path / "run", [HEADS])
    status, out, err = command("export", run.path, "--to", "sit")
    assert status == 0 and Path(out.strip()) == run.path / "export" / "sit-step-00000000.pt"
    assert "the run has no learn_sigma, the published class has" in err
    state = torch.load(Path(out.strip()), weights_only=True)["ema"]
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in weights().items()}
    filled = import_checkpoint("sit", Path(out.strip()), tmp_path / "filled", [HEADS])
    assert filled.recipe.to_mapping()["backbone"]["learn_sigma"]
    assert np.abs(published_samples(filled) - published_samples(run)).max() < 1e-6
    cut = import_checkpoint("sit", Path(out.strip()), tmp_path / "cut", [HEADS, "backbone.learn_sigma=false"])
    assert identical(tensors_of(cut, "ema"), tensors_of(run, "ema"))


def test_to_safetensors_with_recipe_for_any_modality(
    command: Command,
    trained: Run,
    tmp_path: Path,
    tensors_of: Callable[..., dict[str, Tensor]],
    identical: Callable[..., bool],
) -> None:
    target = tmp_path / "model.safetensors"
    status, out, _ = command("export", trained.path, "--to", "safetensors", "--weights", "model", "--out", target)
    assert status == 0 and out.strip() == str(target)
    with safe_open(target, "pt") as stored:
        names = list(stored.keys())
        assert identical({name: stored.get_tensor(name) for name in names}, tensors_of(trained, "model"))
        metadata = stored.metadata()
    assert load_recipe(json.loads(metadata["recipe"])) == trained.recipe
    assert json.loads(metadata["data"])["latent"]["grid"] == [8, 8]
    assert (metadata["step"], metadata["weights"]) == ("40", "model")


PIPELINE = """
import sys, numpy as np
import layersync.modalities.image.diffusers_pipeline
from diffusers import DiffusionPipeline
import torch
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipeline).__module__.startswith("diffusers.")
pipeline.set_progress_bar_config(disable=True)
def images(labels, guidance):
    generator = torch.Generator().manual_seed(3)
    found = pipeline(labels, guidance_scale=guidance, num_inference_steps=5, generator=generator).images
    return np.stack([np.asarray(image) for image in found])
half = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
half.set_progress_bar_config(disable=True)
half.vae.float()
noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
out = [net(noise.to(dtype), torch.full((2,), 400.0), torch.tensor([1, 1000])).sample.detach().float()
       for net, dtype in ((pipeline.transformer, torch.float32), (half.transformer, torch.bfloat16))]
np.savez(sys.argv[2], guided=images([1, 7, 3], 2.5), plain=images([1, 1000, 3], 1.0), single=out[0], half=out[1])
"""


@pytest.fixture(scope="module")
def opened(
    imported: Run, vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path, dict[str, np.ndarray]]:
    """A run that guides 3 of 4 channels in an interval; its folder; what a fresh process makes of that."""
    folder = tmp_path_factory.mktemp("diffusers")
    overrides = [HEADS, f"tokenizer.path={vae}", "tokenizer.image_size=16", "sample.solver=euler", "sample.steps=5"]
    overrides += ["sample.guidance=2.5", "sample.guidance_channels=3", "sample.guidance_interval=[0.2, 0.6]"]
    run = import_checkpoint("sit", sit_file(folder / "a.pt"), folder / "run", overrides)
    scores = {"fid": {"value": 12.3456, "extractor": "inception-v3", "reference": None}}
    sampling = {"num_samples": 50, "solver": "euler", "steps": 5, "guidance": 2.5}
    run.append("evaluation.jsonl", {"step": 7, "weights": "ema", "sampling": sampling, "metrics": scores})
    run.append(
        "evaluation.jsonl", {"step": 7, "weights": "model", "sampling": sampling, "metrics": {"kid": scores["fid"]}}
    )
    out = export_run(run.path, "diffusers", out=folder / "pipeline")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, str(out), str(folder / "images.npz")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "images.npz") as stored:
        return run, out, dict(stored)


class TestDiffusers:
    def test_images_are_ours(self, opened: tuple[Run, Path, dict[str, np.ndarray]]) -> None:
        run, _, theirs = opened
        model = layersync.load(run.path)
        start = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        settings: dict[str, dict[str, Any]] = {
            "guided": {},
            "plain": {"guidance": 1.0},
            "all channels": {"guidance_channels": 4},
            "all times": {"guidance_interval": (0.0, 1.0)},
        }
        ours = {
            name: np.stack(model.sample(3, labels=[1, 10 if name == "plain" else 7, 3], noise=start, **chosen)).astype(
                int
            )
            for name, chosen in settings.items()
        }
        for name in ("guided", "plain"):
            assert np.abs(ours[name] - theirs[name]).max() <= 1
        for other in ("plain", "all channels", "all times"):
            assert np.abs(ours[other] - theirs["guided"]).max() > 3, "the settings of the recipe make a difference"

    def test_sixteen_bits_compute(self, opened: tuple[Run, Path, dict[str, np.ndarray]]) -> None:
        difference = np.abs(opened[2]["single"] - opened[2]["half"])
        assert 0 < difference.max() < 0.1

    def test_folder_holds_no_code_and_says_what_it_is(self, opened: tuple[Run, Path, dict[str, np.ndarray]]) -> None:
        run, folder, _ = opened
        index = json.loads((folder / "model_index.json").read_text())
        assert index["_class_name"] == "DiTPipeline" and index["vae"] == ["diffusers", "AutoencoderKL"]
        endings = {file.suffix for file in folder.rglob("*") if file.is_file()}
        assert endings == {".json", ".safetensors", ".md"}
        card = (folder / "README.md").read_text()
        assert "| fid | 12.35 | 50 | euler, 5 steps | 2.5 | inception-v3 | - |" in card and "kid" not in card
        assert "guidance_scale=2.5, num_inference_steps=5" in card and "guidance_interval: [0.2, 0.6]" in card
        assert str(run.recipe.tokenizer.model_dump()["path"]) not in card, "no path of the machine it was made on"

    def test_class_names_become_labels(self, imported: Run, trained: Run, tmp_path: Path) -> None:
        from diffusers import DiffusionPipeline

        named = shutil.copytree(imported.path, tmp_path / "run")
        content = json.loads((named / "data.json").read_text())
        content["classes"][7] = "great auk"
        (named / "data.json").write_text(json.dumps(content))
        pipeline = DiffusionPipeline.from_pretrained(export_run(named, "diffusers"))
        assert pipeline.get_label_ids(["great auk"]) == [7]


@pytest.mark.parametrize(
    ("to", "change", "words"),
    [
        ("onnx", "", "'onnx' is no format; there are: diffusers, safetensors, sit"),
        ("diffusers", "tokenizer: {name: pixels, image_size: 8, channels: 3}", "DiTPipeline decodes with a VAE"),
        ("sit", "objective: {prediction: noise}", "predicts noise on the linear path"),
        ("diffusers", "objective: {interpolant: trigonometric}", "predicts velocity on the trigonometric path"),
        ("sit", "modality: motion", "is no SiT of modality image but of motion; --to safetensors is for all"),
        ("sit", "step", "has no checkpoint of step 9; there are: [7]"),
        ("safetensors", "weights", "'best' is unknown; there are: ema, model"),
        ("safetensors", "cut", "is cut short or no safetensors file"),
        ("diffusers", "vae", "no VAE can be loaded from"),
    ],
)
def test_what_cannot_be_exported(
    command: Command, imported: Run, tmp_path: Path, to: str, change: str, words: str
) -> None:
    run, more = shutil.copytree(imported.path, tmp_path / "run"), []
    if change in ("step", "weights"):
        more = {"step": ["--step", 9], "weights": ["--weights", "best"]}[change]
    elif change == "cut":
        file = Run(run).latest_checkpoint() / "ema.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    elif change:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        recipe |= {"tokenizer": {"name": "vae", "path": str(tmp_path)}} if change == "vae" else yaml.safe_load(change)
        if change == "modality: motion":
            recipe = {"modality": "motion", "data": {"name": "mocap-clips"}, "evaluate": {}}
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    status, _, err = command("export", run, "--to", to, *more)
    assert status == 2 and words in err and len(err.splitlines()) == 1, err
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_exports_replace_nothing(command: Command, imported: Run, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for to in ("sit", "safetensors", "diffusers"):
        status, _, err = command("export", imported.path, "--to", to, "--out", tmp_path / "there")
        assert status == 2 and "exists" in err and (tmp_path / "there").read_text() == "mine"


def test_a_run_that_exists_is_kept(command: Command, imported: Run, tmp_path: Path) -> None:
    status, _, err = command("import", "sit", sit_file(tmp_path / "a.pt"), "--out", imported.path, "--set", HEADS)
    assert status == 2 and "exists" in err and imported.checkpoint_steps() == [7]
