"""What a person looks at: line plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from layersync_timeseries.data import Series

SHEET = "series.png"
SHEET_LIMIT = 36


def render_series(samples: Sequence[Series], directory: Path) -> list[Path]:
    """Each series as ``000.png`` and on; the first 36 in one ``series.png`` on common axes. A line a channel."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{number:03d}.png" for number in range(len(samples))]
    for file, sample in zip(files, samples, strict=True):
        _plot([sample], file)
    _plot(samples[:SHEET_LIMIT], directory / SHEET)
    return [directory / SHEET, *files]


def _plot(samples: Sequence[Series], file: Path) -> None:
    columns = math.ceil(math.sqrt(len(samples)))
    rows = math.ceil(len(samples) / columns)
    figure = Figure(figsize=(2.4 * columns + 0.4, 1.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for sample, panel in zip(samples, panels, strict=False):
        panel.plot(sample, linewidth=0.8)
    for panel in list(figure.axes)[len(samples) :]:
        panel.set_visible(False)
    figure.savefig(file, dpi=80)
