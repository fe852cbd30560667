"""Numbers of a comparison in words, and the table that a terminal gets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from layersync.core.results import (
    ENOUGH_SEEDS,
    ONE_SEED,
    Comparison,
    Curve,
    Domain,
    Gain,
    Overhead,
    RunRecord,
    Variant,
    few_seeds,
    seed_names,
)

NOTHING = "–"
LATEST = "at the last step"
RESOLUTION = (
    "Resolution: half the width of the 95 % interval of the log-ratio, as a gain: smaller gains could not have been "
    "told from none, a true gain of this size is told in about half of such comparisons."
)
TIMES = (
    "Seconds and the time of a step are only as good as the machine was quiet: whatever else ran on it, other runs of "
    "this comparison too, is in them."
)
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


def by_classifier(found: Gain) -> str:
    """What a gain is by each of the classifiers that its metric averages over; empty for another metric."""
    if not found.by_classifier:
        return ""
    beside = "; the interval is over seeds only" if found.interval else ""
    return f"{', '.join(map(percent, found.by_classifier))} by each classifier alone{beside}"


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


def paired(variant: Variant, domain: Domain) -> list[tuple[RunRecord, RunRecord]]:
    """Runs of the domain's reference variant and of ``variant`` with the same seed, where both have finished."""
    sides = zip(domain.variants[domain.reference].runs, variant.runs, strict=True)
    return [(before, after) for before, after in sides if before.status == after.status == "finished"]


def with_other_seeds(comparison: Comparison) -> dict[str, str]:
    """Of each variant that was trained with other seeds than the comparison's: what it is, in a sentence."""
    found = {}
    for domain in comparison.domains:
        own = {name: tuple(run.seed for run in variant.runs) for name, variant in domain.variants.items()}
        for name, variant in domain.variants.items():
            if own[name] == comparison.seeds:
                continue
            same = (
                other
                for other, model in domain.variants.items()
                if own[other] == comparison.seeds and model.overrides == variant.overrides
            )
            what = next((f"{other} again, trained" for other in same), "trained")
            found[name] = (
                f"{name} is {what} with other seeds ({seed_names(own[name])}): its initial weights and draws are "
                f"others, only its sampling noise is the same."
            )
    return found


def samples_of(names: Iterable[str], domain: Domain) -> str:
    """Of which runs the rendered samples of these variants are."""
    by_seed: dict[int | None, list[str]] = {}
    for name in names:
        by_seed.setdefault(domain.variants[name].samples_seed, []).append(name)
    said = {seed: "a run of unknown seed" if seed is None else f"the run with seed {seed}" for seed in by_seed}
    if len(said) == 1:
        return f"Of {next(iter(said.values()))} of each variant, {LATEST}."
    return f"Of {listed(f'{run} of {listed(by_seed[seed])}' for seed, run in said.items())}, {LATEST}."


def listed(entries: Iterable[Any]) -> str:
    """``a, b and c``."""
    *before, last = map(str, entries)
    return f"{', '.join(before)} and {last}" if before else last


def settings(variant: Variant, domain: Domain) -> dict[str, Any]:
    """Those of a variant's numbers."""
    return variant.settings or domain.settings


def protocols(domain: Domain) -> list[str]:
    """What the domain's numbers are never said without: a line, or one for each group of variants that differ in it."""
    lines: dict[str, list[str]] = {}
    sampled = _sampled({name: settings(variant, domain) for name, variant in domain.variants.items()})
    keys = dict.fromkeys(key for found in sampled.values() for key in found if key not in SAID)
    unlike = [key for key in keys if len({str(found.get(key)) for found in sampled.values()}) > 1]
    for name, variant in domain.variants.items():
        line = _protocol(settings(variant, domain), domain.metric)
        line += "".join(f"; {key} {sampled[name].get(key)}" for key in unlike)
        lines.setdefault(line, []).append(name)
    return list(lines) if len(lines) == 1 else [f"{', '.join(names)}: {line}" for line, names in lines.items()]


SAID = ("solver", "steps", "guidance", "num_samples", "seed")
"""Settings of sampling that a protocol says anyway, or that are one for all variants."""


def _sampled(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By variant, how samples were drawn: as the scores say, or before all have one, as the recipes do."""
    section = "sampling" if all("sampling" in own for own in found.values()) else "sample"
    return {name: own.get(section) or {} for name, own in found.items()}


def _protocol(found: Mapping[str, Any], metric: str) -> str:
    sampling = "sampling" if "sampling" in found else "sample"  # the recipe's, before there is a number
    extracted = ("metrics", metric)
    count = _at(found, *extracted, "num_samples") or _at(found, sampling, "num_samples") or _at(found, "num_samples")
    split, data = (_at(found, *extracted, "reference", key) for key in ("split", "data"))
    reference = " of ".join(part for part in (split, data) if part)
    return (
        f"{_at(found, 'steps') or NOTHING} training steps; samples by {_at(found, sampling, 'solver') or NOTHING} in "
        f"{_at(found, sampling, 'steps') or NOTHING} steps, guidance {_at(found, sampling, 'guidance') or NOTHING}; "
        f"{count or NOTHING} samples; extractor {_at(found, *extracted, 'extractor') or NOTHING}; reference split "
        f"{reference or NOTHING}"
    )


def _at(content: Any, *keys: str) -> str:
    """An entry of nested mappings as text; empty where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return "" if content is None else f"{content:g}" if isinstance(content, float) else str(content)


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
    indicative = f"; indicative only, fewer than {ENOUGH_SEEDS} seeds" if few_seeds(found.seeds) else ""
    if found.interval[0] <= 0 <= found.interval[1]:
        sees = ""
        if found.resolution is not None:
            sees = f"; gains below {percent(found.resolution, sign=False)} could not have been told from none"
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
        if variant.overhead is None and name != domain.reference and paired(variant, domain):
            notes["time of a step, speed-up in seconds"] = f"{NOTHING}, a run logged too few times of steps"
        notes |= {f"gain in {metric}": by_classifier(own) for metric, own in variant.gains.items()}
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


LOSS = "held-out loss"
METRIC_ROW = ("metric", "variant", "score", "gain, %", "seeds", "resolution", "note")


def metric_rows(domain: Domain) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Of each metric and of the held-out loss: its name, which way it improves, the other cells of METRIC_ROW."""
    variants = domain.variants.items()
    found = []
    for metric, better in domain.better.items():
        rows = [_metric_row(name, v, domain, v.curves.get(metric), v.gains.get(metric)) for name, v in variants]
        found.append((metric, ARROWS[better], rows))
    if any(variant.held_out_loss is not None for _, variant in variants):
        rows = [_metric_row(name, v, domain, v.held_out_loss, v.held_out_gain) for name, v in variants]
        found.append((LOSS, ARROWS["lower"], rows))
    return found


def _metric_row(name: str, variant: Variant, domain: Domain, curve: Curve | None, own: Gain | None) -> tuple[str, ...]:
    return (
        name,
        score(curve),
        "reference" if name == domain.reference else gain(own).replace(" %", ""),
        str(len(finished(variant)) if own is None else own.seeds),
        NOTHING if own is None else percent(own.resolution, sign=False),
        "" if own is None else own.note,
    )


def comparison_table(comparison: Comparison) -> str:
    """A comparison as text: of each domain its settings and a table of its variants, and what has to be said beside."""
    others = with_other_seeds(comparison)
    blocks = []
    for domain in comparison.domains:
        rows = [SUMMARY, *(summary_row(name, variant, domain) for name, variant in domain.variants.items())]
        steps = evaluated_steps(domain)
        at = f"at step {steps[-1]:,}" if steps else "no run has finished"
        head = f"{domain.name}: {domain.metric} ({ARROWS[domain.better.get(domain.metric)]}), {at}; 95 % intervals"
        lines = [head, *(f"  {line}" for line in protocols(domain)), *_aligned(rows), *_loss_line(domain)]
        lines += [f"  note: {note}" for note in domain.notes]
        lines += [f"  {remark}" for remark in remarks(domain)]
        for name, variant in domain.variants.items():
            lines += [
                f"  {name}, seed {run.seed}: failed: {run.error}" for run in variant.runs if run.status == "failed"
            ]
        blocks.append("\n".join(lines))
    blocks.append("\n".join([*others.values(), RESOLUTION, TIMES]))
    return "\n\n".join(blocks)


def _loss_line(domain: Domain) -> list[str]:
    """Gains in held-out loss; no line before there is one."""
    said = [
        f"{name} {gain(own)}" + (f", resolution {percent(own.resolution, sign=False)}" if own.resolution else "")
        for name, variant in domain.variants.items()
        if (own := variant.held_out_gain) is not None and own.mean is not None
    ]
    return [f"  {LOSS}, gain: {'; '.join(said)}"] if said else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
