"""Runs in the formats of other programs: what ``layersync export`` does."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from layersync.core.errors import InputError, nearest
from layersync.core.export import checked_weights, checkpoint_of, public, write_safetensors
from layersync.core.generation import load
from layersync.core.packaged import sync_path
from layersync.core.run import Run, atomic_write, writable_parent
from layersync.modalities.image.backbone import SiTConfig
from layersync.modalities.image.published import with_sigma
from layersync.modalities.image.tokenizer import PUBLISHED, Vae, VaeConfig

ENDINGS = {"sit": ".pt", "safetensors": ".safetensors", "diffusers": ""}
MODULE = "layersync.modalities.image.diffusers_pipeline"


def export_run(path: Path, to: str, *, out: Path | None = None, step: int | None = None, weights: str = "ema") -> Path:
    """Write a run's weights in the format ``to`` and return where; whole or not at all.

    ``sit``: a file that the published code of SiT loads strictly. ``safetensors``: one file, for any modality.
    ``diffusers``: a folder for ``DiffusionPipeline.from_pretrained``. ``out`` is by default in ``RUN/export``.

    Raises:
        InputError: for a format that the run does not go into, saying why, or an ``out`` that exists.
    """
    if to not in ENDINGS:
        raise InputError(f"--to: {to!r} is no format; {nearest(to, ENDINGS)}")
    run = Run(path)
    checkpoint = checkpoint_of(run, step)
    target = out or run.path / "export" / f"{to}-{checkpoint.name}{ENDINGS[to]}"
    if os.path.lexists(target):
        raise InputError(f"--out: {target} exists")
    writable_parent(target, "--out")
    if to == "safetensors":
        checked_weights(run, checkpoint, weights)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(run, checkpoint, weights, target)
        return target
    _refuse_others(run, to)
    if to == "sit":
        _write_sit(run, checkpoint, weights, target)
    else:
        _write_diffusers(run, checkpoint, weights, target)
    return target


def _refuse_others(run: Run, to: str) -> None:
    recipe, condition = run.recipe, run.data.condition
    where = f"--to {to}: run {str(run.path)!r}"
    if recipe.modality != "image" or not isinstance(recipe.backbone, SiTConfig):
        raise InputError(f"{where} is no SiT of modality image but of {recipe.modality}; --to safetensors is for all")
    if (recipe.objective.interpolant, recipe.objective.prediction) != ("linear", "velocity"):
        raise InputError(
            f"{where} predicts {recipe.objective.prediction} on the {recipe.objective.interpolant} path, "
            "where linear velocity is meant; --to safetensors is for all"
        )
    if condition.text_channels:
        raise InputError(f"{where} is conditioned on text, which the format has no place for; --to safetensors has")
    if to == "sit" and not condition.num_classes:
        raise InputError(
            f"{where} has no classes, the published class needs a table of them; --to safetensors is for all"
        )
    if to == "sit" and recipe.backbone.qk_norm:
        raise InputError(f"{where} has qk_norm, the published class has not; --to safetensors is for all")
    if to == "diffusers" and not isinstance(recipe.tokenizer, VaeConfig):
        raise InputError(
            f"{where} has tokenizer {recipe.tokenizer.name}: DiTPipeline decodes with a VAE; --to sit and --to "
            "safetensors need none"
        )
    if to == "diffusers" and condition.num_classes > 1000:
        raise InputError(f"{where} has {condition.num_classes} classes; DiTPipeline takes label 1000 for none")


def _write_sit(run: Run, checkpoint: Path, weights: str, target: Path) -> None:
    if weights not in ("ema", "model"):
        raise InputError(f"--weights: {weights!r} is unknown; there are: ema, model")
    if weights != "ema":
        warnings.warn("--weights has no effect with --to sit: the file holds both, under ema and model", stacklevel=3)
    states = {kind: checked_weights(run, checkpoint, kind) for kind in ("ema", "model")}
    if not getattr(run.recipe.backbone, "learn_sigma", True):
        warnings.warn(
            "the run has no learn_sigma, the published class has: the half of its last layer that no sample needs is "
            "written as zeros",
            stacklevel=3,
        )
        states = {kind: with_sigma(state, run.data.latent.channels) for kind, state in states.items()}
    tokenizer = run.recipe.tokenizer
    if isinstance(tokenizer, VaeConfig) and (tokenizer.subfolder or tokenizer.path not in PUBLISHED):
        warnings.warn(
            f"the file does not say which VAE its latents are of, {tokenizer.path!r}: others take Stable Diffusion's; "
            f"layersync import needs --set tokenizer.path and scaling_factor, and knows no shift",
            stacklevel=3,
        )
    content: dict[str, Any] = {**states, "steps": int(checkpoint.name.rpartition("-")[2])}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as partial:
        torch.save(content, partial)


def _write_diffusers(run: Run, checkpoint: Path, weights: str, target: Path) -> None:
    from diffusers.pipelines.dit import DiTPipeline

    from layersync.modalities.image.diffusers_pipeline import FlowMatchEulerScheduler, SiTTransformer2DModel

    step = int(checkpoint.name.rpartition("-")[2])
    model = load(run.path, step=step, weights=weights, device=torch.device("cpu"))
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, Vae)
    if tokenizer.shift:
        raise InputError(f"--to diffusers: the VAE has shift_factor {tokenizer.shift:g}, which DiTPipeline leaves out")
    if tokenizer.mean is not None:
        raise InputError("--to diffusers: the VAE has latents_mean and latents_std, which DiTPipeline leaves out")
    settings = run.recipe.backbone.model_dump(exclude={"name", "dropout"})
    transformer = SiTTransformer2DModel(
        sample_size=model.latent.grid[0],
        in_channels=model.latent.channels,
        out_channels=model.latent.channels,
        num_classes=model.condition.num_classes,
        guidance_channels=run.recipe.sample.guidance_channels,
        guidance_interval=run.recipe.sample.guidance_interval,
        **settings,
    )
    transformer.network.load_state_dict(model.backbone.state_dict())
    tokenizer.vae.register_to_config(scaling_factor=tokenizer.scale)  # which the recipe may have set
    pipeline = DiTPipeline(transformer, tokenizer.vae, FlowMatchEulerScheduler())
    if any(name != str(number) for number, name in enumerate(model.classes)):
        pipeline.register_to_config(id2label={str(number): name for number, name in enumerate(model.classes)})
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        partial = Path(scratch) / "export"
        pipeline.save_pretrained(partial)
        card = partial / "README.md"
        card.write_text(model_card(run, step, weights), encoding="utf-8")
        for file in partial.rglob("*.safetensors"):  # which are their owner's alone, whatever the umask says
            file.chmod(card.stat().st_mode)
        for file in (*partial.rglob("*"), partial):
            sync_path(file)
        partial.rename(target)
    sync_path(target.parent)


def model_card(run: Run, step: int, weights: str) -> str:
    """README of an exported folder: how to use it, sampling settings, scores that were taken, recipe."""
    sample = run.recipe.sample
    classes = run.data.condition.num_classes
    labels = f"Labels are 0 to {classes - 1}; 1000 is none." if classes else "The run has no labels: give 1000."
    label = 0 if classes else 1000
    scores = _scores(run, step, weights)
    solver = "" if sample.solver == "euler" else f" The run's own solver is {sample.solver}; the pipeline's is Euler."
    recipe = yaml.safe_dump(public(run.recipe.to_mapping()), sort_keys=False, default_flow_style=None, width=110)
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [layersync, flow-matching, sit]
---

# SiT trained with layersync: {weights} weights after {step} steps

```python
import layersync.modalities.image.diffusers_pipeline  # diffusers imports no module because a folder names it
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("PATH")
images = pipeline([{label}], guidance_scale={sample.guidance:g}, num_inference_steps={sample.steps}).images
images[0].save("sample.png")
```

{labels} Guidance at 1 or below is none; it acts on
{"all" if sample.guidance_channels is None else f"the first {sample.guidance_channels}"} latent channels for t in
{list(sample.guidance_interval)}, t = 0 being noise.{solver}

## Scores

{scores}

## Recipe

```yaml
{recipe.rstrip()}
```

## Licence

Not stated by whoever exported this: it is theirs to choose, within the terms of the data, of the VAE, and of the
checkpoint where the run was imported.
"""


def _scores(run: Run, step: int, weights: str) -> str:
    """The last value of every metric that was taken of these weights, as a table that says how."""
    rows: dict[str, str] = {}
    for record in run.records("evaluation.jsonl"):
        if record["step"] != step or record["weights"] != weights or record.get("beside_recipe", {}).get("set"):
            continue
        sampling = record["sampling"]
        for name, score in record["metrics"].items():
            reference = score["reference"]
            against = f"{public(reference['data'])}, {reference['split']}" if reference else "-"
            rows[name] = (
                f"| {name} | {score['value']:.4g} | {sampling['num_samples']} | {sampling['solver']}, "
                f"{sampling['steps']} steps | {json.dumps(sampling['guidance'])} | {score['extractor']} | {against} |"
            )
    if not rows:
        return "None were taken (`layersync evaluate`)."
    head = "| metric | value | samples | solver | guidance | extractor | against |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *rows.values()])
