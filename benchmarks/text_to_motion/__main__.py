"""Measure a run, and write ``text-to-motion.json`` and an animation for each kind of prompt into a folder."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import binomtest

from benchmarks.measure import rounded, say
from layersync import load
from layersync.core.adapter import Example
from layersync.core.classifier import DomainClassifier, domain_classifier
from layersync.core.generation import GenerativeModel
from layersync.core.run import package_versions
from layersync.modalities.motion.data import BvhConfig
from layersync.modalities.motion.render import draw_motions, write_gif

PROMPTS = Path(__file__).with_name("prompts.yaml")
PATTERNS = {
    "content": r"^dataset-\d_(?P<label>.+)_[a-z-]+_\d+\.bvh$",
    "style": r"^dataset-\d_.+_(?P<label>[a-z-]+)_\d+\.bvh$",
}

ALIKE = {"old": "elderly", "tired": "exhausted", "masculinity": "masculine"}
"""Styles of the two data sets that say the same: one is read as well as the other."""


def readers(model: GenerativeModel) -> dict[str, tuple[DomainClassifier, tuple[str, ...]]]:
    """Classifiers of content and of style, trained on real clips of all pairs, and the names of their classes."""
    found = {}
    for part, pattern in PATTERNS.items():
        # of every pair of content and style, those held out of the run's training included
        settings = {**model.recipe.data.model_dump(), "labels": pattern, "test_files": None, "min_clips": 10}
        data = BvhConfig.model_validate(settings)
        train, held_out = data.build("train"), data.build("test")
        found[part] = (domain_classifier(model.recipe.adapter, train, held_out, model.tokenizer), train.classes)
        say(f"{part}: {len(train.classes)} classes, held-out accuracy {found[part][0].accuracy:.3f}")
    return found


def read_as(reader: tuple[DomainClassifier, tuple[str, ...]], motions: list[Any]) -> list[str]:
    """The class that each motion is read as."""
    classifier, classes = reader
    logits = np.concatenate(classifier([Example(motion) for motion in motions])["logits"])
    return [classes[row] for row in logits.argmax(1)]


def share(hits: int, count: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson)."""
    bounds = binomtest(hits, count).proportion_ci(method="wilson")
    return {"value": hits / count, "interval": [bounds.low, bounds.high], "hits": hits, "count": count}


def measure(model: GenerativeModel, num: int, frames: int, guidance: float | None, out: Path | None) -> dict[str, Any]:
    """Draw ``num`` samples of every prompt and read them; animations of the first of each go to ``out``."""
    reading = readers(model)
    kinds: dict[str, Any] = {}
    for kind, entries in yaml.safe_load(PROMPTS.read_text()).items():
        told, firsts = [], []
        for number, entry in enumerate(entries):
            motions = model.sample(num, prompts=[entry["prompt"]], frames=frames, seed=number, guidance=guidance)
            firsts.append(motions[0])
            read = {part: Counter(read_as(reader, motions)) for part, reader in reading.items()}
            hits = {
                part: sum(n for name, n in read[part].items() if ALIKE.get(name, name) == entry[part]) for part in read
            }
            told.append({**entry, **{f"{part}_hits": hits[part] for part in hits}})
            told[-1]["read_as"] = {part: dict(read[part].most_common(3)) for part in read}
            say(f"{kind}: {entry['prompt']!r}: {read['content'].most_common(2)} {read['style'].most_common(2)}")
        kinds[kind] = {
            part: share(sum(entry[f"{part}_hits"] for entry in told), num * len(told)) for part in reading
        } | {"prompts": told}
        if out is not None:
            titles = [entry["prompt"] for entry in entries]
            write_gif(out / f"text-to-motion-{kind}.gif", draw_motions(firsts, titles))
    held_out = {part: reader[0].accuracy for part, reader in reading.items()}
    chance = {part: 1 / len(reader[1]) for part, reader in reading.items()}
    return {"samples_a_prompt": num, "frames": frames, "held_out_accuracy": held_out, "chance": chance, "kinds": kinds}


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_to_motion", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=32, help="samples of each prompt")
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--step", type=int, help="checkpoint; the newest by default")
    parser.add_argument("--guidance", type=float, help="the recipe's by default")
    chosen = parser.parse_args()
    model = load(chosen.run, step=chosen.step, device=torch.device("cpu"))
    chosen.out.mkdir(parents=True, exist_ok=True)
    found = measure(model, chosen.num, chosen.frames, chosen.guidance, chosen.out)
    sampling = model.settings(guidance=chosen.guidance).model_dump(include={"solver", "steps", "guidance"})
    found |= {"step": model.step, "sampling": sampling, "versions": package_versions()}
    (chosen.out / "text-to-motion.json").write_text(json.dumps(rounded(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
