"""The conformance suite: every check by name, and running them all on one modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from layersync.core.adapter import load_adapter
from layersync.core.conformance import data, network, scores
from layersync.core.conformance.subject import Fault, NotApplicable, Subject, at, calling
from layersync.core.errors import InputError
from layersync.core.plugin import FAILURES, PluginError, raised
from layersync.core.recipe_reading import load_recipe

CHECKS: dict[str, Callable[[Subject], None]] = {
    "recipe-sections": data.sections,
    "metric-names": data.names,
    "dataset": data.dataset,
    "dataset-labels": data.labels,
    "dataset-repeats": data.repeats,
    "dataset-splits": data.splits,
    "dataset-workers": data.workers,
    "tokenizer-encode": data.encode,
    "tokenizer-latents": data.latents,
    "tokenizer-window": data.window,
    "tokenizer-state": data.tokenizer_state,
    "tokenizer-round-trip": data.round_trip,
    "backbone": network.backbone,
    "backbone-deterministic": network.deterministic,
    "backbone-taps": network.taps,
    "backbone-bad-taps": network.bad_taps,
    "backbone-mask": network.masks,
    "backbone-condition": network.conditions,
    "backbone-batch": network.batches,
    "backbone-gradients": network.gradients,
    "backbone-layersync": network.layersync,
    "features": scores.features,
    "classifier-input": scores.classifier_input,
    "feature-distance": scores.distance,
    "metrics": scores.metrics,
    "render": scores.render,
    "archive": scores.archive,
    "hash-seed": data.hash_seed,
}
"""What is checked, in the order in which parts build on each other, and last what takes a process of its own; each
docstring says what holds."""


@dataclass(frozen=True)
class Outcome:
    """Of one check. ``message`` says what was expected, what came and where, or why there was nothing to check."""

    name: str
    status: Literal["ok", "failed", "not run"]
    message: str


@dataclass(frozen=True)
class Report:
    """Of all checks."""

    modality: str
    recipe: str
    checks: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def open_subject(modality: str, recipe: str | None = None, overrides: Sequence[str] = ()) -> Subject:
    """What the checks look at: ``modality`` on ``recipe``, by default ``MODALITY/quick``.

    Raises :class:`InputError` where the plug-in does not load, or the recipe is none of this modality.
    """
    adapter, source = load_adapter(modality), recipe or f"{modality}/quick"
    try:
        return Subject(load_recipe(source, overrides, modality=modality))
    except FAILURES as error:  # recipes ask the adapter for its metrics
        if isinstance(error, InputError) and not isinstance(error, PluginError):
            raise
        raise Fault(f"{at(adapter)}: recipe {source} cannot be read, it raised {raised(error)}") from error


def run_check(name: str, subject: Subject) -> None:
    """Run one of :data:`CHECKS`. Raises :class:`Fault`, or :class:`NotApplicable`."""
    with calling(f"{at(subject.adapter)}, {name}"):
        CHECKS[name](subject)


def run_checks(subject: Subject) -> Iterator[Outcome]:
    """The outcome of each check, as it is done. What fails for a reason that was told already is "not run"."""
    told: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            run_check(name, subject)
        except NotApplicable as why:
            yield Outcome(name, "not run", str(why))
        except Fault as fault:
            said = " ".join(str(fault).split())
            if said in told:
                yield Outcome(name, "not run", f"fails as {told[said]} does")
            else:
                told[said] = name
                yield Outcome(name, "failed", said)
        else:
            yield Outcome(name, "ok", (check.__doc__ or "").splitlines()[0])
