"""Runs in the formats of other programs: SiT's layout, one safetensors file, a folder for diffusers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from published_checkpoints import HEADS, LABELS, latents, save_vae, sit_file, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import layersync
from layersync import Run, load_recipe
from layersync.core.adapter import LatentSpec
from layersync.core.checkpoint import save_checkpoint
from layersync.core.run import DataSummary
from layersync.modalities.image.export import export_run
from layersync.modalities.image.pretrained import import_checkpoint
from layersync.modalities.image.tokenizer import scale_state

Command = Callable[..., tuple[int, str, str]]
KINDS = ("ema", "model")


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
    other = import_checkpoint("sit", file, tmp_path / "other", [HEADS, "tokenizer.path=someone/vae"])
    with pytest.warns(UserWarning, match="does not say which VAE its latents are of, 'someone/vae'"):
        export_run(other.path, "sit")
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
    command: Command, tmp_path: Path, identical: Callable[..., bool]
) -> None:
    sections = {"modality": "motion", "data": {"name": "mocap-clips"}, "backbone": {"depth": 3, "hidden_size": 48}}
    recipe, latent = load_recipe(sections), LatentSpec(7, (12,), sequence=True, variable=True)
    run = Run.create(tmp_path / "run", recipe, {}, DataSummary("", 5, ("walk", "run"), latent), {})
    network = recipe.adapter.backbone(recipe.backbone, latent, run.data.condition)
    states = {"model": network.state_dict(), "ema": {n: v + 1 for n, v in network.state_dict().items()}}
    save_checkpoint(run.checkpoint(40), states, {"step": 40, "seconds": 0.0})
    target = tmp_path / "model.safetensors"
    status, out, _ = command("export", run.path, "--to", "safetensors", "--weights", "model", "--out", target)
    assert status == 0 and out.strip() == str(target)
    with safe_open(target, "pt") as stored:
        names, metadata = list(stored.keys()), stored.metadata()
        assert identical({name: stored.get_tensor(name) for name in names}, states["model"])
    assert load_recipe(json.loads(metadata["recipe"])) == recipe
    assert DataSummary.from_mapping(json.loads(metadata["data"])) == run.data
    assert (metadata["step"], metadata["weights"]) == ("40", "model")
    for to in ("sit", "diffusers"):
        status, _, err = command("export", run.path, "--to", to)
        assert status == 2 and "is no SiT of modality image but of motion; --to safetensors is for all" in err


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
    reference = {"data": str(folder / "their-numbers.npz"), "split": "statistics"}
    scores = {"fid": {"value": 12.3456, "extractor": "inception-v3", "reference": reference}}
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
        row = "| fid | 12.35 | 50 | euler, 5 steps | 2.5 | inception-v3 | their-numbers.npz, statistics |"
        assert row in card and "kid" not in card
        assert "guidance_scale=2.5, num_inference_steps=5" in card and "guidance_interval: [0.2, 0.6]" in card
        assert str(run.recipe.tokenizer.model_dump()["path"]) not in card, "no path of the machine it was made on"

    def test_class_names_become_labels(self, imported: Run, tmp_path: Path) -> None:
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
        ("sit", "step", "has no checkpoint of step 9; there are: [7]"),
        ("safetensors", "weights", "'best' is unknown; there are: ema, model"),
        ("safetensors", "cut", "is cut short or no safetensors file"),
        ("diffusers", "vae", "no VAE can be loaded from"),
        ("diffusers", "shift", "the VAE has shift_factor 0.1, which DiTPipeline leaves out"),
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
        if change == "shift":
            save_vae(tmp_path / "vae", shift_factor=0.1)
            save_file(scale_state(0.18215, 0.1), run / "tokenizer.safetensors")
            recipe["tokenizer"]["path"] = str(tmp_path / "vae")
        else:
            other = {"tokenizer": {"name": "vae", "path": str(tmp_path)}}
            recipe |= other if change == "vae" else yaml.safe_load(change)
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    status, _, err = command("export", run, "--to", to, *more)
    assert status == 2 and words in err and len(err.splitlines()) == 1, err
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


@pytest.fixture(scope="module")
def two_checkpoints(imported: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[int, dict[str, Any]]]:
    """A run with another checkpoint than that of step 7, and what both hold; no two of the four are alike."""
    run = Run(shutil.copytree(imported.path, tmp_path_factory.mktemp("two") / "run"))
    held: dict[int, dict[str, Any]] = {
        7: {kind: load_file(run.checkpoint(7) / f"{kind}.safetensors") for kind in KINDS}
    }
    held[9] = {kind: {n: v + 1 + row for n, v in held[7][kind].items()} for row, kind in enumerate(KINDS)}
    save_checkpoint(run.checkpoint(9), held[9], {"step": 9, "seconds": 0.0})
    return run, held


@pytest.mark.parametrize(("step", "kind"), [(None, "ema"), (7, "ema"), (None, "model"), (7, "model")])
def test_a_pipeline_has_the_weights_of_the_step_that_are_asked_for(
    two_checkpoints: tuple[Run, dict[int, dict[str, Any]]],
    step: int | None,
    kind: str,
    tmp_path: Path,
    command: Command,
) -> None:
    run, held = two_checkpoints
    asked = ["--weights", kind] if kind != "ema" else []
    asked += ["--step", str(step)] if step is not None else []
    status, _, err = command("export", run.path, "--to", "diffusers", "--out", tmp_path / "out", *asked)
    assert status == 0, err
    stored = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    wanted = held[step or 9][kind]
    assert {name.removeprefix("network.") for name in stored} == set(wanted)
    assert all(torch.equal(value, wanted[name.removeprefix("network.")]) for name, value in stored.items())
    assert f"{kind} weights after {step or 9} steps" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("to", ["sit", "safetensors", "diffusers"])
def test_an_export_is_for_others_to_read(imported: Run, to: str, tmp_path: Path) -> None:
    """As the umask says, and with no path of the machine that it was made on."""
    before = os.umask(0o022)
    try:
        out = export_run(imported.path, to, out=tmp_path / "out")
    finally:
        os.umask(before)
    files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
    assert files and {file.stat().st_mode & 0o777 for file in files} == {0o644}
    if to == "safetensors":
        with safe_open(out, "pt") as stored:
            recipe = json.loads(stored.metadata()["recipe"])
        path = Path(imported.recipe.tokenizer.model_dump()["path"])
        assert path.is_absolute() and recipe["tokenizer"]["path"] == path.name
        assert "/" not in json.dumps({key: value for key, value in recipe.items() if key != "modality"})


@pytest.mark.parametrize(
    ("to", "change", "words"),
    [
        ("sit", {"text_channels": 64}, "is conditioned on text, which the format has no place for; --to safetensors"),
        ("diffusers", {"text_channels": 64}, "is conditioned on text, which the format has no place for"),
        ("sit", {"classes": []}, "has no classes, the published class needs a table of them; --to safetensors is for"),
        ("sit", {"qk_norm": True}, "has qk_norm, the published class has not; --to safetensors is for all"),
        ("diffusers", {"classes": list(map(str, range(1001)))}, "has 1001 classes; DiTPipeline takes label 1000 for"),
    ],
)
def test_runs_that_a_format_has_no_place_for(
    command: Command, imported: Run, tmp_path: Path, to: str, change: dict[str, Any], words: str
) -> None:
    run = shutil.copytree(imported.path, tmp_path / "run")
    data, recipe = json.loads((run / "data.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["backbone"] |= {key: value for key, value in change.items() if key == "qk_norm"}
    data |= {key: value for key, value in change.items() if key != "qk_norm"}
    (run / "data.json").write_text(json.dumps(data))
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    status, _, err = command("export", run, "--to", to, "--out", tmp_path / "out")
    assert status == 2 and words in err and len(err.splitlines()) == 1 and not (tmp_path / "out").exists(), err


def test_a_scale_of_the_recipes_own_goes_along(vae: Path, tmp_path: Path) -> None:
    """The pipeline divides by the VAE's: else every image of it would be wrong."""
    overrides = [HEADS, f"tokenizer.path={vae}", "tokenizer.image_size=16", "tokenizer.scaling_factor=0.5"]
    run = import_checkpoint("sit", sit_file(tmp_path / "a.pt"), tmp_path / "run", overrides)
    assert layersync.load(run.path).sample(1, labels=[1])[0].shape == (16, 16, 3)
    out = export_run(run.path, "diffusers", out=tmp_path / "pipeline")
    assert json.loads((out / "vae" / "config.json").read_text())["scaling_factor"] == 0.5
    assert json.loads((vae / "config.json").read_text())["scaling_factor"] == 0.18215


def test_exports_replace_nothing(command: Command, imported: Run, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for to in ("sit", "safetensors", "diffusers"):
        status, _, err = command("export", imported.path, "--to", to, "--out", tmp_path / "there")
        assert status == 2 and "exists" in err and (tmp_path / "there").read_text() == "mine"


def test_weights_that_there_are_none_of(command: Command, imported: Run, tmp_path: Path) -> None:
    for to in ("sit", "safetensors"):
        status, _, err = command("export", imported.path, "--to", to, "--weights", "emma", "--out", tmp_path / "x")
        assert status == 2 and "emma" in err and not (tmp_path / "x").exists(), err
