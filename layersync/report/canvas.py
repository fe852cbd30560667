"""What figures are drawn with: colours and markers, a style of their own, one column wide, the same bytes each time.

Colours are Okabe and Ito's, told apart by the colour-blind too; markers differ as well. Names are drawn as they are,
never as mathematics.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layersync.core.results import Domain

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

WIDTH = 3.5
"""Inches: a column of the usual two."""
PNG_DPI = 300
INK, MUTED, GRID, PAPER = "#1d2127", "#6a717c", "#e3e6ea", "#fffffe"
REFERENCE = "#7b8088"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DARK_REFERENCE = "#a3a9b2"
DARK_SERIES = ("#4aa3df", "#f08a4b", "#35c29a", "#e2a0c4", "#efb643", "#86c9f0")
"""The same hues, on the page's dark theme."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LONGEST_NAME = 22

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "layersync",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 7.5,
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure. ``alt`` says in words what it shows."""

    title: str
    alt: str
    svg: str
    png: bytes


@contextmanager
def _style() -> Iterator[None]:
    """Whatever the user's matplotlibrc says, for as long as this lasts."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def draw(title: str, alt: str, height: float, paint: Callable[[Canvas], None]) -> Figure:
    """What ``paint`` puts on a canvas of that height in inches, as SVG and PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with _style():
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(canvas)
        paint(canvas)
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None}, dpi=PNG_DPI)
        canvas.set_layout_engine(None)  # what the first drawing found stays: to look for it is half of the time
        canvas.savefig(png, format="png", metadata={"Software": None}, dpi=PNG_DPI)
    return Figure(title, alt, svg.getvalue(), png.getvalue())


def short(name: str) -> str:
    """A name that fits; a leading underscore would hide it from a legend."""
    cut = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return f" {cut}" if cut.startswith("_") else cut


def series(domain: Domain) -> dict[str, tuple[str, str]]:
    """Colour and marker of each variant: the reference grey, the others in the order of the recipe."""
    others = [name for name in domain.variants if name != domain.reference]
    found = {domain.reference: (REFERENCE, MARKERS[-1])}
    for index, name in enumerate(others):
        found[name] = (SERIES[index % len(SERIES)], MARKERS[index % (len(MARKERS) - 1)])
    return found
