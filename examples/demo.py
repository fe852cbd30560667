"""Baseline and LayerSync on all three modalities: train, sample, score, and show. What ``make demo`` runs."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path

import layersync
from layersync.core.sampling import write_samples

MODALITIES = ("image", "audio", "motion")
VARIANTS = {
    "baseline": ["regularizer.name=none"],
    "layersync": ["regularizer.name=layersync", "regularizer.pairs=auto", "regularizer.weight=0.3"],
}
METRICS = ("fd-classifier", "label-agreement")
RENDERED = 16
MARKER = "DEMO"


def main() -> None:
    """Train and score six runs, print one table, and last the folder of pictures, sounds and animations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="override for every recipe")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("layersync").setLevel(logging.INFO)
    out: Path = arguments.out
    if out.exists() and not (out / MARKER).is_file():
        sys.exit(f"error: --out {out} exists and is no folder of an earlier demo")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).write_text("made by examples/demo.py, which replaces this folder\n")
    began = time.monotonic()
    rows = []
    for modality in MODALITIES:
        scores = {}
        for variant, overrides in VARIANTS.items():
            recipe = layersync.load_recipe(f"{modality}/quick", [*overrides, *arguments.overrides])
            run = layersync.train(recipe, out / f"{modality}-{variant}")
            scores[variant] = layersync.evaluate(run.path, METRICS).metrics
            write_samples(run.path, num=RENDERED, out=out / "samples" / f"{modality}-{variant}")
        rows.append((modality, scores["baseline"], scores["layersync"]))
    print_table(rows)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; one seed: no error bar. Pictures, sounds and animations:")
    print(out / "samples")


def print_table(rows: list[tuple[str, dict, dict]]) -> None:
    """One line a modality and metric: baseline, LayerSync, change."""
    print(f"{'modality':10}{'metric':18}{'baseline':>10}{'LayerSync':>11}{'change':>9}")
    for modality, baseline, regularized in rows:
        for metric in METRICS:
            before, after = baseline[metric].value, regularized[metric].value
            change = f"{(after - before) / before:+9.1%}" if before else f"{'-':>9}"
            print(f"{modality:10}{metric:18}{before:10.3f}{after:11.3f}{change}")
        print(f"{'':10}classifier's held-out accuracy {baseline[METRICS[0]].details['held_out_accuracy']:.3f}")


if __name__ == "__main__":
    main()
