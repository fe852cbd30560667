"""Numbers of a comparison in words, and the table that a terminal gets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from layersync.core.results import Comparison, Curve, Domain, Gain, Overhead, RunRecord, Variant

ENOUGH_SEEDS = 5
"""Fewer make an interval that says little about itself: it is called indicative."""
NOTHING = "–"
LATEST = "at the last step"
ONE_SEED = "one seed: no error bar"
ARROWS = {"lower": "lower is better", "higher": "higher is better", None: "neither higher nor lower is better"}


def number(value: float | None) -> str:
    """Four significant digits."""
    return NOTHING if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def percent(fraction: float | None, sign: bool = True) -> str:
    """0.042 as ``+4.2 %``."""
    if fraction is None:
        return NOTHING
    digits = 0 if abs(fraction) >= 1 else 1
    return f"{100 * fraction:{'+' if sign else ''}.{digits}f} %"


def score(curve: Curve | None) -> str:
    """The last value of a curve and its interval."""
    if curve is None or not curve.mean:
        return NOTHING
    return number(curve.mean[-1]) + (f" [{', '.join(map(number, curve.interval[-1]))}]" if curve.interval else "")


def gain(found: Gain | None) -> str:
    """Mean and interval of a gain, in per cent."""
    if found is None or found.mean is None:
        return NOTHING
    if found.interval is None:
        return percent(found.mean)
    return f"{percent(found.mean)} [{', '.join(f'{100 * end:+.1f}' for end in found.interval)}]"


def speed_up(variant: Variant, unit: Literal["steps", "seconds"]) -> str:
    """Speed-up of a variant and its interval, in which 0 stands for "not reached"; else why there is none."""
    found = variant.speed_up
    if found is None:
        return NOTHING
    if found.steps is None:
        return re.split("[:;]", found.note, maxsplit=1)[0] or NOTHING
    value, interval = (
        (found.steps, found.steps_interval) if unit == "steps" else (found.seconds, found.seconds_interval)
    )
    if value is None:
        return NOTHING
    ends = ", ".join(f"{end:.2f}" if end else "not reached" for end in interval or ())
    return f"{value:.2f}×" + (f" [{ends}]" if ends else "")


def overhead(found: Overhead | None) -> str:
    """Time of a step over the reference's."""
    if found is None:
        return NOTHING
    return f"{found.ratio:.3f}×" + (f" [{found.interval[0]:.3f}, {found.interval[1]:.3f}]" if found.interval else "")


def finished(variant: Variant) -> tuple[RunRecord, ...]:
    """The runs that have scores to show."""
    return tuple(run for run in variant.runs if run.status == "finished" and run.steps)


def evaluated_steps(domain: Domain) -> tuple[int, ...]:
    """Steps that the curves of a domain run over; empty before a run has finished."""
    return next((run.steps for variant in domain.variants.values() for run in finished(variant)), ())


def verdict(name: str, variant: Variant, domain: Domain) -> str:
    """One sentence: what ``variant`` gains over the domain's reference variant, or that nothing was seen."""
    found = variant.gain
    if found is None or found.mean is None:
        why = found.note if found is not None and found.note else "no gain was computed"
        return f"{name}: no gain can be stated ({why})."
    size = percent(abs(found.mean), sign=False)
    over = f"than {domain.reference} in {domain.metric} {LATEST}"
    side = "better" if found.mean >= 0 else "worse"
    if found.interval is None:
        note = found.note or ONE_SEED
        return f"{name}: {size} {side} {over}; {note}, so this is no evidence of a gain or a loss."
    ends = f"95 % interval {' to '.join(f'{100 * end:+.1f} %' for end in found.interval)}, {found.seeds} seeds"
    indicative = "; indicative only, fewer than five seeds" if found.seeds < ENOUGH_SEEDS else ""
    if found.interval[0] <= 0 <= found.interval[1]:
        sees = (
            "" if found.resolution is None else f"; a gain of {percent(found.resolution, sign=False)} would have been"
        )
        return f"{name}: no gain seen in {domain.metric}: {percent(found.mean)} ({ends}{sees}{indicative})."
    return f"{name}: {size} {side} {over} ({ends}{indicative})."


def remarks(domain: Domain) -> list[str]:
    """What is said beside the numbers of a domain's variants, each thing once for all variants that it is said of."""
    said: dict[str, list[str]] = {}
    for name, variant in domain.variants.items():
        notes = {
            "gain": variant.gain.note if variant.gain is not None else "",
            "speed-up": variant.speed_up.note if variant.speed_up is not None else "",
        }
        if notes["gain"] == notes["speed-up"]:
            notes = {"gain and speed-up": notes["gain"]}
        for about, note in notes.items():
            if note:
                said.setdefault(f"{about}: {note}", []).append(name)
    return [f"{', '.join(names)}: {remark}" for remark, names in said.items()]


SUMMARY = (
    "variant",
    "score",
    "gain, %",
    "seeds",
    "resolution",
    "speed-up, steps",
    "speed-up, seconds",
    "time of a step",
)


def summary_row(name: str, variant: Variant, domain: Domain) -> tuple[str, ...]:
    """The cells under :data:`SUMMARY`."""
    own = variant.gain
    return (
        name,
        score(variant.curves.get(domain.metric)),
        "reference" if name == domain.reference else gain(own).replace(" %", ""),
        str(len(finished(variant)) if own is None else own.seeds),
        NOTHING if own is None else percent(own.resolution, sign=False),
        speed_up(variant, "steps"),
        speed_up(variant, "seconds"),
        overhead(variant.overhead),
    )


def comparison_table(comparison: Comparison) -> str:
    """A comparison as text for people: of each domain a table of its variants, and what has to be said beside it."""
    blocks = []
    for domain in comparison.domains:
        rows = [SUMMARY, *(summary_row(name, variant, domain) for name, variant in domain.variants.items())]
        steps = evaluated_steps(domain)
        at = f"at step {steps[-1]:,}" if steps else "no run has finished"
        head = f"{domain.name}: {domain.metric} ({ARROWS[domain.better.get(domain.metric)]}), {at}; 95 % intervals"
        lines = [head, *_aligned(rows), *(f"  note: {note}" for note in domain.notes)]
        lines += [f"  {remark}" for remark in remarks(domain)]
        for name, variant in domain.variants.items():
            lines += [
                f"  {name}, seed {run.seed}: failed: {run.error}" for run in variant.runs if run.status == "failed"
            ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{minutes} min {rest} s"
