"""``DIR/report.html``: a comparison as one file that opens offline, and its figures for papers in ``DIR/figures``.

The page holds no script and says so to the browser (Content-Security-Policy): neither what recipes, labels and file
names contain nor a mistake here makes it run or fetch anything.
"""

from __future__ import annotations

import html
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersync.core.errors import InputError
from layersync.core.packaged import atomic_write
from layersync.core.results import Domain, duration, few_seeds, read_comparison
from layersync.report import canvas, figures, samples, text

PAGE, FIGURES = "report.html", "figures"
OWN = re.compile(r"\d+-.*-(score|held-out-loss|(metric|similarity|map)-\d+-[a-z0-9-]*)\.(svg|png)")
"""Names that only figures of a report have."""

_THEMED = {
    canvas.INK: "var(--ink)",
    canvas.MUTED: "var(--muted)",
    canvas.GRID: "var(--line)",
    canvas.PAPER: "var(--paper)",
    canvas.REFERENCE: "var(--reference)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(canvas.SERIES)},
}
"""Colours of the figures that the page's light and dark themes set."""


@dataclass(frozen=True)
class DomainView:
    """A domain with what is drawn and read for it."""

    domain: Domain
    anchor: str
    score: canvas.Figure | None
    others: tuple[canvas.Figure, ...]
    loss: canvas.Figure | None
    similarity: tuple[canvas.Figure, ...]
    maps: tuple[canvas.Figure, ...]
    samples: samples.Samples
    recipes: dict[str, str]


def write_report(directory: Path) -> Path:
    """Write ``directory/report.html`` of ``directory/compare.json``, and ``directory/figures/*.svg`` and ``*.png``.

    Every file appears whole or not at all. Samples and recipes that are not there are said to be missing on the page.

    Raises:
        InputError: there is no such folder, no comparison in it, or one that cannot be read; nothing is written then.
    """
    directory = Path(directory)
    comparison = read_comparison(directory)
    check_target(directory)
    target = directory / FIGURES
    gain = figures.gain_figure(comparison.domains)
    views = [_view(directory, index, domain) for index, domain in enumerate(comparison.domains, 1)]
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(comparison=comparison, gain=gain, views=views, variants=_names(comparison.domains))
    )
    target.mkdir(exist_ok=True)
    written = dict(_named(gain, views))
    for file in target.iterdir():
        if OWN.fullmatch(file.name) and file.stem not in written:
            file.unlink()  # of a report with fewer variants, or in another order
    for name, figure in written.items():
        with atomic_write(target / f"{name}.svg") as partial:
            partial.write_text(figure.svg, encoding="utf-8")
        with atomic_write(target / f"{name}.png") as partial:
            partial.write_bytes(figure.png)
    with atomic_write(directory / PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    return directory / PAGE


def check_target(directory: Path) -> None:
    """Whether a report can be written into a folder, or once it is made; cheap, for before the work.

    Raises:
        InputError: it cannot.
    """
    if not os.path.lexists(directory):  # a name that no file system takes is asked for nothing more
        return
    for place in (directory, directory / FIGURES):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place}: is a file, and a report goes into a folder of that name")
        if place.exists() and not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"{place}: is not writable, so that no report can go there")
    if (directory / PAGE).is_dir():
        raise InputError(f"{directory / PAGE}: is a folder, and a report's page is a file of that name")


def _names(domains: Sequence[Domain]) -> dict[str, list[str]]:
    """Each variant's name once: ``references`` that the ``others`` are compared with."""
    references = dict.fromkeys(domain.reference for domain in domains)
    others = dict.fromkeys(name for domain in domains for name in domain.variants if name != domain.reference)
    return {"references": list(references), "others": list(others)}


def _view(directory: Path, index: int, domain: Domain) -> DomainView:
    metrics = [metric for metric in domain.better if metric != domain.metric]
    pairs = sorted({pair for variant in domain.variants.values() for pair in variant.similarity})
    return DomainView(
        domain,
        f"domain-{index}",
        figures.score_figure(domain, domain.metric),
        tuple(found for metric in metrics if (found := figures.score_figure(domain, metric))),
        figures.loss_figure(domain),
        tuple(found for pair in pairs if (found := figures.similarity_figure(domain, pair))),
        tuple(figures.map_figures(domain).values()),
        samples.collect(directory, {name: variant.samples for name, variant in domain.variants.items()}),
        {name: _recipe(directory, variant.recipe) for name, variant in domain.variants.items()},
    )


def _recipe(directory: Path, relative: str) -> str:
    path = samples.inside(directory, relative)
    if path is None or not os.path.isfile(path):  # noqa: PTH113, a name too long for a file is no error here
        return f"({relative or 'its recipe'} is not there)"
    return path.read_text(encoding="utf-8", errors="replace")


def _named(gain: canvas.Figure, views: list[DomainView]) -> Iterator[tuple[str, canvas.Figure]]:
    """File names of all figures: numbered, so that no two are the same however the domains are called."""
    yield "gain", gain
    for index, view in enumerate(views, 1):
        stem = f"{index}-{_file_name(view.domain.name)}"
        if view.score is not None:
            yield f"{stem}-score", view.score
        if view.loss is not None:
            yield f"{stem}-held-out-loss", view.loss
        for kind, several in (("metric", view.others), ("similarity", view.similarity), ("map", view.maps)):
            for number, figure in enumerate(several, 1):
                yield f"{stem}-{kind}-{number}-{_file_name(figure.title)}", figure


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48]


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("layersync.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counted = iter(range(10**6))

    def inline(figure: canvas.Figure) -> Markup:
        return Markup(_inline(figure, f"f{next(counted)}-"))  # matplotlib has escaped the names in it

    environment.filters |= {
        "inline": inline,
        "number": text.number,
        "percent": text.percent,
        "duration": lambda seconds: text.NOTHING if seconds is None else duration(seconds),
        "shell": shlex.quote,
    }
    environment.globals |= {
        # nothing of the user's is in it
        "style": Markup(environment.get_template("style.css.j2").render(canvas=canvas)),
        "text": text,
        "few_seeds": few_seeds,
        "flat": flat,
        "settings_tables": settings_tables,
        "colour": lambda domain, name: _THEMED[canvas.series(domain)[name][0]],
    }
    return environment


def _inline(figure: canvas.Figure, prefix: str) -> str:
    """A figure as a part of the page: as wide as its place, in the theme's colours, with ids of its own."""
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: _THEMED.get(found[0], found[0]), svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(figure.alt)}" ', 1)


def flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines: ``sampling.steps`` and its value."""
    if isinstance(content, Mapping) and content:
        return [
            line for key, value in content.items() for line in flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(content, (list, tuple)):
        if any(isinstance(entry, (Mapping, list, tuple)) for entry in content):
            return [line for index, entry in enumerate(content, 1) for line in flat(entry, f"{prefix}.{index}")]
        return [(prefix, ", ".join(_plain(entry) for entry in content) or "none")]
    return [(prefix, _plain(content))]


def settings_tables(domain: Domain) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """Settings that all variants have in common, and the others with a value for each variant.

    A variant without a finished run has no section of what scores were taken with, and is not unlike the others in it.
    """
    settings = [text.settings(variant, domain) for variant in domain.variants.values()]
    own = [dict(flat(found)) for found in settings]
    common, differing = [], []
    for key in dict.fromkeys(key for one in own for key in one):
        values = [one.get(key, text.NOTHING) for one in own]
        said = {value for value, found in zip(values, settings, strict=True) if key.partition(".")[0] in found}
        if len(said) == 1:
            common.append((key, said.pop()))
        else:
            differing.append((key, values))
    return common, differing


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == {} else str(value)
