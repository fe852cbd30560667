"""A comparison of three domains as ``layersync compare`` leaves it, its samples rendered by the real adapters.

Its scores are drawn, not trained: what is measured and tested on it is the report.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation
from sklearn.datasets import load_digits

from layersync.core.adapter import load_adapter
from layersync.core.recipe_reading import load_recipe
from layersync.core.results import (
    Comparison,
    Curve,
    Domain,
    Gain,
    Overhead,
    RunRecord,
    SimilarityMap,
    SpeedUp,
    Variant,
)
from layersync.modalities.audio.clip import Clip
from layersync.modalities.motion.sample import Motion

METRICS: dict[str, Literal["lower", "higher"] | None] = {
    "fd-classifier": "lower",
    "label-agreement": "higher",
    "nearest-training": None,
}
PAIR = (2, 4)
DEPTH = 6
SAMPLE_RATE = 16000
SHIFT = {"image": 0.93, "audio": 0.99, "motion": 1.04}
"""Score of the first variant over the reference's."""


def write_comparison(
    directory: Path,
    *,
    num_seeds: int = 10,
    variants: Sequence[str] = ("baseline", "layersync"),
    num_steps: int = 8,
    num_samples: int = 16,
) -> Comparison:
    """Write ``compare.json``, recipes and samples; the first of ``variants`` is the reference."""
    directory.mkdir(parents=True, exist_ok=True)
    domains = tuple(_domain(directory, m, num_seeds, variants, num_steps, num_samples) for m in SHIFT)
    command = (
        f"layersync compare {' '.join(domain.recipe for domain in domains)} --variants {','.join(variants)} "
        f"--seeds {num_seeds} --out {directory.name}"
    )
    versions = {"layersync": "0.1.0", "torch": "2.14.1", "numpy": np.__version__}
    machine = {"processor": "AMD EPYC", "cores": 2, "memory_gib": 7.6, "platform": "Linux"}
    found = Comparison(tuple(range(num_seeds)), domains, command, versions, machine)
    (directory / "compare.json").write_text(json.dumps(found.to_mapping()))
    return found


def _domain(
    directory: Path, modality: str, num_seeds: int, variants: Sequence[str], num_steps: int, num_samples: int
) -> Domain:
    steps = tuple(500 * (index + 1) for index in range(num_steps))
    settings = {
        "steps": steps[-1],
        "sampling": {"solver": "heun", "steps": 12, "guidance": 2.0, "num_samples": 256, "seed": 0},
        "metrics": {
            name: {
                "extractor": "classifier",
                "checksum": "0f1e2d3c",
                "reference": {"data": "digits", "split": "test", "count": 359},
            }
            for name in METRICS
        },
    }
    found = {}
    for index, name in enumerate(variants):
        own = f"{modality}-quick/{name}"
        folder = directory / own
        folder.mkdir(parents=True, exist_ok=True)
        overrides = ("regularizer.name=layersync",) if index else ()
        recipe = load_recipe(f"{modality}/quick", [*overrides, f"seed={index}"])
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        load_adapter(modality).render(_samples(modality, num_samples, 0.12 * index), folder / "samples")
        ratio = SHIFT[modality] ** index
        runs = tuple(_run(f"{own}/seed-{seed}", seed, index, steps, ratio) for seed in range(num_seeds))
        found[name] = _variant(own, overrides, runs, ratio, settings, reference=index == 0)
    notes = ("the curves were still falling at the last step",) if modality == "audio" else ()
    name = f"{modality}/quick"
    return Domain(name, modality, name, "fd-classifier", variants[0], METRICS, settings, found, notes)


def _run(path: str, seed: int, index: int, steps: tuple[int, ...], ratio: float) -> RunRecord:
    random = np.random.default_rng([seed, index])
    spread = float(np.exp(0.03 * random.standard_normal()))
    decay = np.array([120.0 * ratio * spread / (step / 500) ** 0.8 for step in steps])
    scores = {
        "fd-classifier": tuple(decay.tolist()),
        "label-agreement": tuple((1 - 0.004 * decay).tolist()),
        "nearest-training": tuple((0.5 + 0.001 * decay).tolist()),
    }
    maps = tuple(_similarity(step / steps[-1], index, spread) for step in steps)
    seconds = tuple(0.03 * step * (1 + 0.01 * index) for step in steps)
    loss = tuple((0.6 + 0.002 * decay).tolist())
    return RunRecord(seed, "finished", path, steps, scores, seconds, loss, maps, 0.03, seconds[-1] + 12.0)


def _similarity(progress: float, index: int, spread: float) -> SimilarityMap:
    distance = np.abs(np.subtract.outer(np.arange(DEPTH), np.arange(DEPTH)))
    raw = np.exp(-distance * progress * (0.05 - 0.015 * index) * spread)
    centred = np.exp(-distance * progress * (0.25 - 0.08 * index) * spread)
    return SimilarityMap(int(4000 * progress), _rows(raw), _rows(centred))


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))


def _variant(
    own: str,
    overrides: tuple[str, ...],
    runs: tuple[RunRecord, ...],
    ratio: float,
    settings: dict[str, Any],
    *,
    reference: bool,
) -> Variant:
    several = len(runs) > 1
    student, teacher = (block - 1 for block in PAIR)
    similar = {
        kind: _curve([[getattr(found, kind)[student][teacher] for found in run.similarity] for run in runs])
        for kind in ("cosine", "centred")
    }
    better = 1 - ratio
    interval = (better - 0.02, better + 0.02) if several else None
    gain = Gain(better, interval, len(runs), 0.02 if several else None, "" if several else "one seed: no error bar")
    neither = Gain(None, None, len(runs), note="neither higher nor lower is better")
    gains = {"fd-classifier": gain, "label-agreement": gain, "nearest-training": neither}
    if ratio > 1:
        speed_up = SpeedUp(None, None, None, None, note="not reached: the mean at no evaluation is as good")
    else:
        times = ratio**-1.25
        ends = (0.0 if ratio > 0.98 else 1.02, times + 0.06) if several else None
        last = float(runs[0].steps[-1])
        speed_up = SpeedUp(times, ends, times / 1.01, ends, last, last / times)
    return Variant(
        overrides,
        f"{own}/recipe.yaml",
        {"name": "none"} if reference else {"name": "layersync", "weight": 0.2, "pairs": [list(PAIR)]},
        () if reference else (PAIR,),
        runs,
        {name: _curve([run.scores[name] for run in runs]) for name in METRICS},
        gain=None if reference else gain,
        gains={} if reference else gains,
        held_out_loss=_curve([run.held_out_loss for run in runs]),
        held_out_gain=None if reference else dataclasses.replace(gain, mean=better / 2),
        speed_up=None if reference else speed_up,
        overhead=None if reference else Overhead(1.01, (1.004, 1.016) if several else None),
        similarity={f"{PAIR[0]}-{PAIR[1]}": similar},
        samples=f"{own}/samples",
        samples_seed=runs[0].seed,
        settings=settings,
    )


def _curve(values: Sequence[Sequence[float]]) -> Curve:
    """Means, and about what a t interval of ten seeds would be."""
    mean, half = np.mean(values, axis=0), np.std(values, axis=0) * 0.75
    ends = tuple(zip((mean - half).tolist(), (mean + half).tolist(), strict=True)) if len(values) > 1 else None
    return Curve(tuple(mean.tolist()), ends)


def _samples(modality: str, count: int, damage: float) -> list[Any]:
    random = np.random.default_rng(0)
    if modality == "image":
        digits = load_digits().images[:count, :, :, None] / 16
        noisy = np.clip(digits + damage * random.standard_normal(digits.shape), 0, 1)
        return list((noisy * 255).round().astype(np.uint8))
    if modality == "audio":
        return [_tone(220.0 * 2 ** (index / 4), damage, index) for index in range(count)]
    return [_motion(index, damage) for index in range(count)]


def _tone(frequency: float, damage: float, seed: int) -> Clip:
    """Two seconds of a decaying tone with overtones, and noise."""
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * frequency * k * time) / k for k in range(1, 5)) * np.exp(-1.5 * time)
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return Clip((0.3 * tone + 0.1 * damage * noise).astype(np.float32), SAMPLE_RATE)


def _motion(seed: int, damage: float) -> Motion:
    """Two seconds in which all joints swing and the body travels."""
    random = np.random.default_rng(seed)
    time = np.linspace(0, 2, 60)[:, None, None]
    swing = (0.3 + damage) * np.sin(time * random.uniform(1, 5, (1, 24, 3)) + random.uniform(0, 6, (1, 24, 3)))
    rotations = Rotation.from_rotvec(swing.reshape(-1, 3)).as_matrix().reshape(60, 24, 3, 3)
    path = np.stack([time[:, 0, 0], np.full(60, 0.93), np.sin(time[:, 0, 0])], axis=1)
    return Motion(path.astype(np.float32), rotations.astype(np.float32), 30.0)
