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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_checkpoints import (
    HEADS,
    LABELS,
    drawn,
    latents,
    noise,
    repa_file,
    save_vae,
    sit_file,
    weights,
)
from torch import Tensor, nn

import layersync
from layersync import InputError, Run, load_recipe
from layersync.core.generation import GenerativeModel
from layersync.core.guidance import GuidedPrediction
from layersync.core.interpolant import Linear
from layersync.core.solver import diffusion_weight, solve_ode, solve_sde
from layersync.modalities.image import SiT, published
from layersync.modalities.image.pretrained import import_checkpoint

Command = Callable[..., tuple[int, str, str]]
TOLERANCE = 1e-4
ADAPTIVE_TOLERANCE = 3e-5
"""An rtol of 1e-3 instead of 1e-6 moves dopri5's samples by 8e-5."""


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    with np.load(Path(__file__).parents[2] / "golden" / "image_sit.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def repa(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("repa")
    return import_checkpoint("repa", repa_file(folder / "0070000.pt"), folder / "run", [HEADS])


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
    assert np.abs(found - golden[name]).max() < (ADAPTIVE_TOLERANCE if "dopri5" in name else TOLERANCE)
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


WRITTEN: dict[str, dict[str, Any]] = {
    "data": {"name": "folder", "path": "$IMAGENET", "flip": True, "orientation": "stored"},
    "tokenizer": {"name": "vae", "path": "stabilityai/sd-vae-ft-ema", "image_size": 64, "rounding": "nearest"},
    "backbone": {
        "name": "sit", "depth": 4, "hidden_size": 64, "num_heads": 4, "patch_size": 2, "mlp_ratio": 4.0,
        "learn_sigma": True, "qk_norm": False, "dropout": 0.0,
    },
    "objective": {"interpolant": "linear", "prediction": "velocity", "time": "uniform", "shift": 1.0},
    "regularizer": {"name": "none"},
    "optimizer": {
        "name": "adamw", "lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup": 0, "schedule": "constant",
        "clip": None,
    },
    "train": {
        "steps": 400_000, "batch_size": 256, "condition_dropout": 0.1, "ema_decay": 0.9999, "ema_ramp": False,
        "precision": "tf32", "checkpoint_every": 50_000, "keep": 10,
    },
    "sample": {
        "solver": "euler-maruyama", "steps": 250, "guidance": 1.0, "guidance_interval": [0.0, 1.0],
        "guidance_channels": None, "diffusion": "sigma", "diffusion_scale": 1.0, "last_step": "mean",
        "last_step_size": 0.04, "precision": "tf32",
    },
    "evaluate": {"metrics": ["fid", "sfid", "is", "precision", "recall"], "num_samples": 50_000, "reference": "train"},
}  # fmt: skip
"""The recipe of a checkpoint of SiT's layout that says nothing of itself (docs/checkpoints.md)."""
REPAS = {
    "tokenizer.rounding": "truncate", "optimizer.clip": 1.0, "backbone.learn_sigma": False,
    "sample.diffusion": "linear",
}  # fmt: skip
"""Where one of REPA's layout has another."""
TAKEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("sit", {}, {}),
    (
        "sit",
        {"path_type": "GVP", "prediction": "noise", "vae": "mse", "global_batch_size": 64},
        {
            "objective.interpolant": "trigonometric", "objective.prediction": "noise", "train.batch_size": 64,
            "tokenizer.path": "stabilityai/sd-vae-ft-mse",
        },
    ),
    (
        "sit",
        {"path_type": "VP", "prediction": "score", "vae": "ema", "loss_type": "layer_sync", "encoder_depth": 1,
         "gt_encoder_depth": 4},
        {
            "objective.interpolant": "variance-preserving", "objective.prediction": "score",
            "regularizer": {"name": "layersync", "pairs": [[1, 4]], "weight": 0.2},
        },
    ),
    (
        "sit",
        {"loss_type": "multiple_sync", "multi_blocks_match": [(1, 2), (2, 4)], "reg_weight": 0.5},
        {"regularizer": {"name": "layersync", "pairs": [[2, 4]], "weight": 0.5}},
    ),
    ("repa", {"path_type": "linear", "prediction": "v", "batch_size": 128}, {"train.batch_size": 128}),
    ("repa", {"path_type": "cosine", "prediction": "v"}, {"objective.interpolant": "trigonometric"}),
]  # fmt: skip
"""``args`` of a file, and what they change."""


@pytest.mark.parametrize(("layout", "settings", "changes"), TAKEN)
def test_the_recipe_is_what_args_say_and_else_the_published_one(
    layout: str, settings: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    args = argparse.Namespace(**settings)
    steps = {"opt": {}} if layout == "sit" else {"steps": 0}
    file = (repa_file if layout == "repa" else sit_file)(tmp_path / "a.pt", args=args, **steps)
    found = import_checkpoint(layout, file, tmp_path / "run", [HEADS]).recipe.to_mapping()
    expected = {section: dict(keys) for section, keys in WRITTEN.items()}
    for path, value in (changes | (REPAS if layout == "repa" else {})).items():
        section, _, key = path.partition(".")
        expected[section] = {**expected[section], key: value} if key else value
    for section, keys in expected.items():
        assert {key: found[section][key] for key in keys} == keys, section


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_repas_diffusion_is_twice_its_time_on_every_path(path: str, tmp_path: Path) -> None:
    """``compute_diffusion`` of its ``samplers.py``, whose t is 1 - ours; increments are scaled by its root."""
    file = repa_file(tmp_path / "a.pt", args=argparse.Namespace(path_type=path, prediction="v"))
    recipe = import_checkpoint("repa", file, tmp_path / "run", [HEADS]).recipe
    t = torch.linspace(0, 1, 11)
    sample = recipe.sample
    found = diffusion_weight(sample.diffusion, sample.diffusion_scale, recipe.objective.build(), t)
    assert torch.allclose(2 * found, 2 * (1 - t))


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
            if not learn_sigma and size != "S":  # REPA's S has a last layer of 768 channels after blocks of 384
                assert found == json.loads(str(golden["shapes_repa"]))[f"SiT-{size}/{patch} False"]


def test_heads_are_those_of_the_published_sizes() -> None:
    assert {width: heads for _, width, heads in SIZES.values()} == published.HEADS


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


def test_command_line_samples_without_vae_or_hub(
    command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, run = repa_file(tmp_path / "a.pt"), tmp_path / "run"
    status, _, err = command("import", "repa", file, "--out", run, "--set", HEADS)
    assert status == 0 and "6 tensors of REPA's projector heads are dropped" in caplog.text
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


def test_an_imported_run_is_nothing_to_go_on_with(imported: Run) -> None:
    """Said before its data is looked for, which need not be there."""
    recipe = load_recipe(imported.path / "recipe.yaml", ["train.steps=9"])
    with pytest.raises(InputError, match="an imported run is a start: give another --out"):
        layersync.train(recipe, imported.path, resume=True)


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"latent_channels": 3}, 16, "makes latents of 3x8x8, {} needs 4x8x8"),
        ({}, 32, "makes latents of 4x16x16, {} needs 4x8x8"),
        ({"scaling_factor": 0.3611}, 16, "has scaling_factor 0.3611, the run's latents were made with 0.18215"),
        ({"shift_factor": 0.1}, 16, "has shift_factor 0.1, the run's latents were made with 0: another VAE"),
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
        "integers": {name: value.to(torch.int8) for name, value in state.items()},
        "nan": state | {"final_layer.linear.bias": state["final_layer.linear.bias"] * float("nan")},
    }
    if kind == "folder":
        path.mkdir()
        return path
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
        ("integers", "tensors hold no finite floating-point numbers"),
        ("nan", "1 tensors hold no finite floating-point numbers, such as final_layer.linear.bias"),
        ("folder", "is a folder, no file of weights"),
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


def test_args_that_are_no_words_say_nothing(tmp_path: Path) -> None:
    settings = argparse.Namespace(path_type=["Linear"], prediction={}, vae=3)
    torch.save({"ema": weights(), "args": settings}, tmp_path / "a.pt")
    run = import_checkpoint("sit", tmp_path / "a.pt", tmp_path / "run", [HEADS])
    assert (run.recipe.objective.interpolant, run.recipe.objective.prediction) == ("linear", "velocity")


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


def test_a_run_that_exists_is_kept(command: Command, imported: Run, tmp_path: Path) -> None:
    status, _, err = command("import", "sit", sit_file(tmp_path / "a.pt"), "--out", imported.path, "--set", HEADS)
    assert status == 2 and "exists" in err and imported.checkpoint_steps() == [7]
