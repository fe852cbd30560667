"""Measure, and write ``metrics.json`` and a figure for each domain into a folder."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from benchmarks.measure import rounded, say
from benchmarks.metric_response.domains import DOMAINS
from benchmarks.metric_response.measure import DATA_VARIABLE, data_folder, measure
from layersync.core.run import package_versions

DPI = 100
COLOURS = 64
LOGARITHMIC = 30
"""How many times the least score the greatest has to be for a logarithmic axis."""
ASSERTED, SHOWN = "tab:blue", "grey"


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel a score and damage: five thin lines of seeds and their mean, from undamaged to the worst."""
    metrics, damages = list(found["undamaged"]), found["damages"]
    figure, panels = plt.subplots(
        len(metrics),
        len(damages),
        figsize=(2.5 * len(damages), 1.5 * len(metrics)),
        squeeze=False,
        layout="constrained",
    )
    for row, metric in zip(panels, metrics, strict=True):
        for panel, (name, answer) in zip(row, damages.items(), strict=True):
            _panel(panel, metric, found["undamaged"][metric], answer)
            if metric == metrics[0]:
                panel.set_title(f"{name}\n({answer['unit']})", fontsize=8)
        row[0].set_ylabel(metric, fontsize=8)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _panel(panel: Axes, metric: str, undamaged: list[float], answer: dict[str, Any]) -> None:
    colour = ASSERTED if metric in answer["expected"] else SHOWN
    lines = np.column_stack([undamaged, answer["values"][metric]])
    places = np.arange(lines.shape[1])
    panel.plot(places, lines.T, color=colour, linewidth=0.6, alpha=0.6)
    panel.plot(places, lines.mean(0), color=colour, linewidth=1.8)
    if lines.min() > 0 and lines.max() > LOGARITHMIC * lines.min():
        panel.set_yscale("log")
    panel.set_xticks(places, ["as is", *(f"{level:g}" for level in answer["levels"])])
    panel.tick_params(labelsize=7)


def as_json(results: dict[str, Any]) -> str:
    """Indented, each row of numbers on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda row: " ".join(row[0].split()), json.dumps(results, indent=1)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metric_response", description=__doc__)
    parser.add_argument("domain", choices=[*DOMAINS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json and metrics-DOMAIN.png")
    chosen = parser.parse_args()
    if DATA_VARIABLE not in os.environ:
        parser.error(f"set {DATA_VARIABLE} to the folder that holds {', '.join(d.folder for d in DOMAINS.values())}")
    torch.set_num_threads(1)
    plt.switch_backend("Agg")
    chosen.out.mkdir(parents=True, exist_ok=True)
    target = chosen.out / "metrics.json"
    results = json.loads(target.read_text()) if target.is_file() else {}
    for name in DOMAINS if chosen.domain == "all" else [chosen.domain]:
        found = measure(name, data_folder())
        draw(found, chosen.out / f"metrics-{name}.png")
        about = {"date": datetime.date.today().isoformat(), "versions": package_versions()}
        results[name] = rounded({**about, **found})
        target.write_text(as_json(results))
        say(f"{name}: {found['seconds']} s")


if __name__ == "__main__":
    main()
