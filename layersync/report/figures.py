"""The figures of a comparison, for the page and for papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from layersync.core.results import Curve, Domain, RunRecord, SimilarityMap, Variant
from layersync.report.canvas import INK, MUTED, PAPER, REFERENCE, SERIES, WIDTH, Figure, draw, series, short
from layersync.report.text import ARROWS, evaluated_steps, finished, number, paired, percent, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LOG_RATIO = 4.0
"""Scores that span more than this factor are drawn on a logarithmic axis."""
WIDEST_GAIN = 0.25
"""Intervals are cut off, with an arrow, beyond this gain or three times the largest mean gain."""
LEGEND_INSIDE = 5
"""Series whose legend has room among the curves; that of more stands below them."""
LEGEND_LINE = 0.16
"""Inches."""
LABEL_BESIDE, HEADING_BESIDE = 10, 56
"""Letters of the longest variant's name, without and with a heading's, beside which the figure of gains has room for
its label and its headings: longer ones start from the left edge."""
RASTER_DEPTH = 16
"""Maps of more blocks are drawn as pixels: their squares as vectors would be most of the page."""


def gain_figure(domains: Sequence[Domain]) -> Figure:
    """Gain of every variant of every domain, a dot with its interval; hollow where one seed gives none."""
    rows = [
        (domain, [(name, variant) for name, variant in domain.variants.items() if name != domain.reference])
        for domain in domains
    ]
    means = [v.gain.mean for _, variants in rows for _, v in variants if v.gain is not None and v.gain.mean is not None]
    ends = [
        end
        for _, variants in rows
        for _, variant in variants
        if variant.gain is not None and variant.gain.mean is not None
        for end in (variant.gain.interval or (variant.gain.mean,))
    ]
    largest = max((abs(mean) for mean in means), default=0.0)
    bound = 1.12 * max(0.02, min(max((abs(end) for end in ends), default=0.0), max(WIDEST_GAIN, 3 * largest)))
    lines = sum(1 + len(variants) for _, variants in rows)
    headings = [f"{short(domain.name)}  ·  {short(domain.metric)}" for domain in domains]
    longest = max((len(short(name)) for _, variants in rows for name, _ in variants), default=0)

    def paint(canvas: Canvas) -> None:
        from matplotlib.transforms import blended_transform_factory

        axes = canvas.subplots()
        axes.axvline(0, color=INK, linewidth=0.9)
        beside = longest + max(map(len, headings)) <= HEADING_BESIDE
        across = axes.transAxes if beside else canvas.transFigure
        places, labels, place = [], [], 0.0
        hollow = False
        for (domain, variants), heading in zip(rows, headings, strict=True):
            # Data to the right of the axis' left end: a heading of its own line, above the variants of the domain.
            axes.text(
                0.01,
                place,
                heading,
                transform=blended_transform_factory(across, axes.transData),
                in_layout=beside,
                va="center",
                fontsize=7.5,
                color=INK,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
            )
            for name, variant in variants:
                place += 1
                places.append(place)
                labels.append(short(name))
                hollow |= _whisker(axes, variant, place, bound, *series(domain)[name])
            place += 1.25
        axes.set_yticks(places, labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(-bound, bound)
        axes.set_ylim(place - 0.6, -0.6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}" if value else "0")
        label = "gain over the reference variant, %  (right is better)"
        if longest <= LABEL_BESIDE:
            axes.set_xlabel(label)
        else:
            canvas.supxlabel(label, fontsize=8)
        if hollow:
            axes.set_title("hollow: one seed, no error bar", loc="right", fontsize=7, color=MUTED)

    alt = "Gain over the reference variant with 95 % intervals. " + " ".join(
        f"{domain.name}, {name}: " + _gain_words(variant) for domain, variants in rows for name, variant in variants
    )
    return draw("Gain", alt, 0.75 + 0.235 * lines, paint)


def _gain_words(variant: Variant) -> str:
    found = variant.gain
    if found is None or found.mean is None:
        return "cannot be stated."
    if found.interval is None:
        return f"{percent(found.mean)}, one seed, no error bar."
    return f"{percent(found.mean)}, from {percent(found.interval[0])} to {percent(found.interval[1])}."


def _whisker(axes: Axes, variant: Variant, place: float, bound: float, colour: str, marker: str) -> bool:
    """One row of the figure of gains; whether its point is hollow."""
    found = variant.gain
    if found is None or found.mean is None:
        axes.text(0, place, "  cannot be stated", va="center", fontsize=7, color=MUTED, style="italic")
        return False
    if found.interval is not None:
        low, high = (min(max(end, -bound), bound) for end in found.interval)
        axes.plot([low, high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
        for end, cut, tip in ((found.interval[0], low, "<"), (found.interval[1], high, ">")):
            axes.plot([cut], [place], marker=tip if end != cut else "|", color=colour, markersize=6, clip_on=False)
    face = colour if found.interval is not None else PAPER
    axes.plot([found.mean], [place], marker=marker, color=colour, markersize=6, markerfacecolor=face)
    return found.interval is None


def score_figure(domain: Domain, metric: str) -> Figure | None:
    """Scores against steps: every seed thin, the mean bold in its band, the speed-up where it is read off.

    Of one evaluation there is no curve: a column for each variant then, see :func:`_columns`.
    """
    shown = {name: v for name, v in domain.variants.items() if metric in v.curves and finished(v)}
    if not shown:
        return None
    better = domain.better.get(metric)
    direction = {"lower": "↓ ", "higher": "↑ ", None: ""}[better] + ARROWS[better]

    steps = evaluated_steps(domain)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        if len(steps) == 1:
            curves = {name: variant.curves[metric] for name, variant in shown.items()}
            _columns(axes, domain, curves, lambda run: run.scores.get(metric, ()))
            axes.set_ylabel(f"{short(metric)} at step {steps[0]:,}")
            axes.set_title(direction, loc="left", fontsize=7, color=MUTED)
            return
        for name, variant in shown.items():
            times = variant.speed_up.steps if variant.speed_up is not None and metric == domain.metric else None
            remark = f", {times:.2f}× in steps" if times else ""
            runs, curve = finished(variant), variant.curves[metric]
            _lines(axes, name, runs, lambda run: run.scores.get(metric, ()), domain, curve, remark)
        _logarithmic(
            axes, [value for v in shown.values() for run in finished(v) for value in run.scores.get(metric, ())]
        )
        if metric == domain.metric:
            _mark_speed_up(axes, domain)
        _step_axis(axes)
        axes.set_ylabel(f"{short(metric)}")
        axes.set_title(direction, loc="left", fontsize=7, color=MUTED)
        _legend(canvas, axes)

    over = "by variant" if len(steps) == 1 else "against training steps"
    alt = f"{metric} of {domain.name} {over} ({ARROWS[better]}). At step {steps[-1]:,}: " + "; ".join(
        f"{name} {score(variant.curves[metric])}" for name, variant in shown.items()
    )
    title = f"{metric} at step {steps[0]:,}" if len(steps) == 1 else f"{metric} against steps"
    return draw(title, alt, 2.5, paint)


def _lines(
    axes: Axes,
    name: str,
    runs: Sequence[RunRecord],
    values: Callable[[RunRecord], Sequence[float]],
    domain: Domain,
    curve: Curve | None = None,
    remark: str = "",
    panel: str = "",
) -> None:
    """Seeds thin, their mean bold; without a curve that holds it, the mean is taken here.

    What is drawn has names in the SVG: ``mean-1``, ``band-1`` and ``seed-1-0`` of the second variant, after ``panel``.
    """
    colour, marker = series(domain)[name]
    place = list(domain.variants).index(name)
    for row, run in enumerate(runs) if len(runs) > 1 else ():
        steps = run.steps[: len(values(run))]
        axes.plot(steps, values(run), color=colour, linewidth=0.6, alpha=0.4, gid=f"{panel}seed-{place}-{row}")
    steps = runs[0].steps
    mean = curve.mean if curve is not None else np.mean([values(run) for run in runs], axis=0).tolist()
    if curve is not None and curve.interval:
        low, high = zip(*curve.interval, strict=True)
        band: dict[str, Any] = {"color": colour, "alpha": 0.16, "linewidth": 0, "gid": f"{panel}band-{place}"}
        axes.fill_between(steps[: len(low)], low, high, **band)
    line: dict[str, Any] = {"color": colour, "marker": marker, "label": short(name) + remark}
    axes.plot(steps[: len(mean)], mean, **line, gid=f"{panel}mean-{place}")


def _legend(canvas: Canvas, axes: Axes) -> None:
    """Where the curves leave room; of many series below them, the figure so much higher."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= LEGEND_INSIDE:
        axes.legend(loc="best")
        return
    columns = int(WIDTH / (0.5 + 0.06 * max(map(len, labels)))) or 1  # inches of a line with its marker, of a letter
    canvas.set_figheight(canvas.get_figheight() + LEGEND_LINE * math.ceil(len(labels) / columns))
    canvas.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1)


def _columns(
    axes: Axes,
    domain: Domain,
    curves: Mapping[str, Curve | None],
    values: Callable[[RunRecord], Sequence[float]],
) -> None:
    """One evaluation: each seed a dot, joined where seeds are pairs, and the mean with its interval, by variant.

    In the SVG ``pair-0`` are the seeds of the first row, ``alone-0-1`` is one by itself in the second column, and
    ``mean-1`` and ``interval-1`` are that column's.
    """
    reference = domain.variants[domain.reference].runs
    for row, partner in enumerate(reference):
        runs = [domain.variants[name].runs[row] for name in curves]
        ends = [(place, values(run)[-1], run.seed) for place, run in enumerate(runs) if run.status == "finished"]
        groups = {f"pair-{row}": [(place, value) for place, value, seed in ends if seed == partner.seed]}
        groups |= {f"alone-{row}-{place}": [(place, value)] for place, value, seed in ends if seed != partner.seed}
        dots: dict[str, Any] = {"color": MUTED, "linewidth": 0.6, "alpha": 0.6, "marker": ".", "markersize": 3}
        for gid, group in groups.items():
            if group:
                axes.plot(*zip(*group, strict=True), **dots, gid=gid)
    for place, (name, curve) in enumerate(curves.items()):
        colour, marker = series(domain)[name]
        own = [values(run)[-1] for run in finished(domain.variants[name])]
        mean = curve.mean[-1] if curve is not None else float(np.mean(own))
        low, high = curve.interval[-1] if curve is not None and curve.interval else (mean, mean)
        error = [[mean - low], [high - mean]]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "capsize": 4 if low < high else 0}
        dot, _, (bar,) = axes.errorbar(place, mean, error, **style)
        dot.set_gid(f"mean-{place}")
        bar.set_gid(f"interval-{place}")
    many = len(curves) > 3
    axes.set_xticks(
        range(len(curves)),
        [short(name) for name in curves],
        rotation=35 if many else 0,
        ha="right" if many else "center",
    )
    axes.set_xlim(-0.5, len(curves) - 0.5)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where it helps."""
    from matplotlib.ticker import LogLocator, NullLocator

    known = [value for value in values if math.isfinite(value)]
    if known and min(known) > 0 and max(known) / min(known) > LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: number(value))


def _mark_speed_up(axes: Axes, domain: Domain) -> None:
    """The reference's last score as a line, and on it an arrow from where it first is there to where a variant is.

    Over the seeds that have finished in both, as the speed-up is.
    """
    curve = domain.variants[domain.reference].curves.get(domain.metric)
    levels = {curve.mean[-1]} if curve is not None and curve.mean else set()
    arrows = []
    for name, variant in domain.variants.items():
        found, both = variant.speed_up, paired(variant, domain)
        if found is not None and found.reference_step is not None and found.variant_step is not None and both:
            level = float(np.mean([before.scores[domain.metric][-1] for before, _ in both]))
            arrows.append((found.reference_step, found.variant_step, level, name))
    for level in {level for _, _, level, _ in arrows} or levels:
        axes.axhline(level, color=REFERENCE, linewidth=0.8, linestyle=(0, (4, 3)), gid="level")
    # The longest arrow under the shorter ones.
    for start, end, level, name in sorted(arrows, key=lambda arrow: -abs(arrow[0] - arrow[1])):
        colour, _ = series(domain)[name]
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        drawn = axes.annotate("", (end, level), (start, level), arrowprops=arrow).arrow_patch
        if drawn is not None:
            drawn.set_gid(f"speed-up-{list(domain.variants).index(name)}")
        axes.plot(end, level, marker="|", color=colour, markersize=9, markeredgewidth=1.4)


def _step_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("training steps")


def loss_figure(domain: Domain) -> Figure | None:
    """Held-out flow loss against steps."""
    shown = {
        name: runs
        for name, variant in domain.variants.items()
        if (runs := [run for run in finished(variant) if len(run.held_out_loss) == len(run.steps)])
    }
    if not shown:
        return None

    steps = evaluated_steps(domain)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        if len(steps) == 1:
            curves = {name: domain.variants[name].held_out_loss for name in shown}
            _columns(axes, domain, curves, lambda run: run.held_out_loss)
            axes.set_ylabel(f"held-out flow loss at step {steps[0]:,}")
            return
        for name, runs in shown.items():
            _lines(axes, name, runs, lambda run: run.held_out_loss, domain, domain.variants[name].held_out_loss)
        _logarithmic(axes, [value for runs in shown.values() for run in runs for value in run.held_out_loss])
        _step_axis(axes)
        axes.set_ylabel("held-out flow loss")
        _legend(canvas, axes)

    last = "; ".join(
        f"{name} {number(float(np.mean([run.held_out_loss[-1] for run in runs])))}" for name, runs in shown.items()
    )
    over = "by variant" if len(steps) == 1 else "against steps"
    return draw("Held-out loss", f"Held-out flow loss of {domain.name} {over}; at the end {last}.", 2.5, paint)


def similarity_figure(domain: Domain, pair: str) -> Figure | None:
    """Similarity of a pair of blocks against steps, raw and with each sample's mean over tokens removed."""
    shown = {
        name: variant.similarity[pair]
        for name, variant in domain.variants.items()
        if pair in variant.similarity and finished(variant)
    }
    if not shown:
        return None
    kinds = [kind for kind in KINDS if all(kind in curves for curves in shown.values())]

    def paint(canvas: Canvas) -> None:
        panels = canvas.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, kind in zip(panels, kinds, strict=True):
            for name, curves in shown.items():
                runs = finished(domain.variants[name])
                student, teacher = (int(block) - 1 for block in pair.split("-"))

                def entries(
                    run: RunRecord, kind: Kind = kind, row: int = student, column: int = teacher
                ) -> list[float]:
                    return [_map(found, kind)[row][column] for found in run.similarity]

                _lines(axes, name, runs, entries, domain, curves[kind], panel=f"{kind}-")
            axes.set_ylabel(KINDS[kind])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        _step_axis(panels[-1])
        _legend(canvas, panels[0])

    last = "; ".join(
        f"{name} " + ", ".join(f"{KINDS[kind]} {score(curves[kind])}" for kind in kinds)
        for name, curves in shown.items()
    )
    blocks = " and ".join(pair.split("-"))
    alt = f"Similarity of blocks {blocks} of {domain.name} against steps; at the end {last}."
    return draw(f"Similarity of blocks {blocks}", alt, 3.3, paint)


Kind = Literal["cosine", "centred"]
KINDS: Mapping[Kind, str] = {"cosine": "cosine", "centred": "centred cosine"}


def _map(found: SimilarityMap, kind: Kind) -> tuple[tuple[float, ...], ...]:
    return found.cosine if kind == "cosine" else found.centred


def _last_maps(variant: Variant) -> dict[Kind, np.ndarray] | None:
    """(depth, depth) of the last step, mean over seeds."""
    last = [run.similarity[-1] for run in finished(variant) if run.similarity]
    if not last:
        return None
    return {kind: np.mean([_map(found, kind) for found in last], axis=0) for kind in KINDS}


def map_figures(domain: Domain) -> dict[str, Figure]:
    """Of each variant, how similar every two blocks are at the last step; colours mean the same for all variants."""
    maps = {name: found for name, variant in domain.variants.items() if (found := _last_maps(variant)) is not None}
    lowest = {kind: min(float(found[kind].min()) for found in maps.values()) for kind in KINDS} if maps else {}
    return {name: _map_figure(domain, name, found, lowest) for name, found in maps.items()}


def _map_figure(domain: Domain, name: str, maps: Mapping[Kind, np.ndarray], lowest: Mapping[Kind, float]) -> Figure:
    from matplotlib.patches import Rectangle

    depth = len(maps["cosine"])
    edges = np.arange(depth + 1) + 0.5
    pairs = domain.variants[name].pairs

    def paint(canvas: Canvas) -> None:
        for axes, kind in zip(canvas.subplots(1, 2), KINDS, strict=True):
            drawn = axes.pcolormesh(
                edges, edges, maps[kind], cmap="viridis", vmin=lowest[kind], vmax=1, rasterized=depth > RASTER_DEPTH
            )
            # The colours of a square and of its edge are the same: else the page shows seams between them.
            drawn.set_edgecolor("face")
            drawn.set_linewidth(0.3)
            drawn.set_gid(f"{kind}-map")
            for student, teacher in pairs:
                for x, y in ((student, teacher), (teacher, student)):
                    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=SERIES[1], linewidth=1.4))
            axes.set_aspect("equal")
            axes.grid(visible=False)
            shown = sorted({1, depth, *range(0, depth + 1, max(1, math.ceil(depth / 6)))} - {0})
            axes.set_xticks(shown)
            axes.set_yticks(shown)
            axes.tick_params(length=2)
            axes.set_title(KINDS[kind])
            axes.set_xlabel("block")
            bar = canvas.colorbar(drawn, ax=axes, location="bottom", shrink=0.9, aspect=18, pad=0.04)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=6.5, length=2)
            bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        canvas.axes[0].set_ylabel("block")

    aligned = ", ".join(f"{student} and {teacher}" for student, teacher in pairs)
    alt = (
        f"Similarity of every two of the {depth} blocks of {name} in {domain.name} at the last step, mean over seeds: "
        + "; ".join(f"{KINDS[kind]} from {number(float(maps[kind].min()))} to 1" for kind in KINDS)
        + (f". Marked: the aligned blocks {aligned}." if pairs else ". It aligns no blocks.")
    )
    return draw(name, alt, 2.35, paint)
