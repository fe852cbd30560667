"""Names of metrics. ``fd-inception-v3.pool`` is a kind (Fréchet distance), an extractor and one of its streams.

Every extractor of a modality goes with every kind that fits its streams; a modality adds what the field calls some of
them (``fid``) and scores of its own (``foot-skating``). Three more come with any labelled data set, see ``evaluation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from layersync.core.adapter import ConditionSpec, ModalityAdapter, installed_adapters, load_adapter
from layersync.core.errors import InputError, nearest
from layersync.core.plugin import reason
from layersync.core.recipe import Recipe


class Needs(Enum):
    """What a kind of metric is computed from."""

    BOTH = "generated and real samples"
    BOTH_ROWS = "generated and real samples, not statistics alone"
    GENERATED = "generated samples"
    TEXT = "generated samples and their texts"


Better = Literal["lower", "higher"]
"""Which way a score improves."""


class Kind(NamedTuple):
    """What a kind of metric is computed from, says, and which way it improves; ``None``: towards that of real data."""

    needs: Needs
    meaning: str
    better: Better | None


KINDS: dict[str, Kind] = {
    "fd": Kind(Needs.BOTH, "Fréchet distance (FID, FAD); 0 is best", "lower"),
    "fd-inf": Kind(Needs.BOTH, "Fréchet distance extrapolated to endless samples (FAD-infinity)", "lower"),
    "fd-each": Kind(Needs.BOTH, "Fréchet distance of each generated sample's own rows: per-file FAD", "lower"),
    "kd": Kind(Needs.BOTH_ROWS, "kernel distance, cubic and unbiased (KID)", "lower"),
    "kad": Kind(
        Needs.BOTH_ROWS, "kernel audio distance: Gaussian, median bandwidth of the reference, times 100", "lower"
    ),
    "precision": Kind(Needs.BOTH_ROWS, "share of generated samples inside the real manifold (k = 3)", "higher"),
    "recall": Kind(Needs.BOTH_ROWS, "share of real samples inside the generated manifold (k = 3)", "higher"),
    "density": Kind(Needs.BOTH_ROWS, "how densely generated samples lie around real ones (k = 5)", "higher"),
    "coverage": Kind(Needs.BOTH_ROWS, "share of real samples with a generated one near (k = 5)", "higher"),
    "is": Kind(Needs.GENERATED, "inception score of the class probabilities", "higher"),
    "diversity": Kind(Needs.GENERATED, "mean distance of 300 random pairs", None),
    "multimodality": Kind(Needs.TEXT, "mean distance of samples of the same text", None),
    "similarity": Kind(Needs.TEXT, "mean cosine of a sample and its text (CLAP and CLIP score)", "higher"),
    "matching": Kind(Needs.TEXT, "mean distance of a motion and its text", "lower"),
    "r-precision-1": Kind(Needs.TEXT, "share of texts whose motion is nearest, in batches of 32", "higher"),
    "r-precision-2": Kind(Needs.TEXT, "likewise among the two nearest", "higher"),
    "r-precision-3": Kind(Needs.TEXT, "likewise among the three nearest", "higher"),
}
"""Kinds of metrics: what each needs, and what it says."""

CLASS_SCORES = "logits"
"""The stream of an extractor that an inception score is taken of."""
COMPARED_WITH_TEXT = tuple(name for name, kind in KINDS.items() if kind.needs is Needs.TEXT and name != "multimodality")

DOMAIN_METRICS: dict[str, Better | None] = {
    "fd-classifier": "lower",
    "label-agreement": "higher",
    "nearest-training": None,
}
"""Metrics of a run that come with every labelled data set, and which way each improves."""
NEEDS_LABELS = ("fd-classifier", "label-agreement")
"""Those of them that classifiers of the data take."""


@dataclass(frozen=True)
class MetricName:
    """A metric taken apart. ``kind`` is a key of :data:`KINDS`, or the whole name for a score of another sort."""

    name: str
    kind: str
    extractor: str | None = None
    stream: str | None = None
    own: Better | None = None
    """Which way a score of a modality's own improves, where it says so."""

    @property
    def needs(self) -> Needs:
        """What it is computed from."""
        return KINDS[self.kind].needs if self.extractor else Needs.GENERATED

    @property
    def better(self) -> Better | None:
        """Which way it improves; ``None`` where the best value is that of real data, or nobody has said."""
        return KINDS[self.kind].better if self.extractor else DOMAIN_METRICS.get(self.kind, self.own)


def metric_names(modality: str) -> list[str]:
    """What a run or a set of samples of this modality can be asked for, in the shortest names."""
    adapter = load_adapter(modality)
    distances = [f"fd-{name}" for name in adapter.features()]
    return [*DOMAIN_METRICS, *adapter.aliases(), *adapter.metrics(), *distances]


def parse_metric(modality: str, name: str) -> MetricName:
    """Take ``name`` apart. Raises :class:`InputError` for one that the modality does not have."""
    adapter = load_adapter(modality)
    if name in DOMAIN_METRICS:
        return MetricName(name, name)
    if name in (own := adapter.metrics()):
        return MetricName(name, name, own=getattr(own[name], "better", None))
    full = adapter.aliases().get(name, name)
    for kind in sorted(KINDS, key=len, reverse=True):
        if full.startswith(f"{kind}-"):
            extractor, _, stream = full.removeprefix(f"{kind}-").partition(".")
            if extractor in adapter.features():
                return MetricName(name, kind, extractor, stream or (CLASS_SCORES if kind == "is" else None))
    raise InputError(f"metric {name!r} is unknown to modality {modality}; {_there_are(adapter, name)}")


def parse_metrics(modality: str, names: Sequence[str]) -> list[MetricName]:
    """Take every name apart; a name given twice is refused, as is an empty list."""
    found = [parse_metric(modality, name.strip()) for name in names]
    for metric in found:
        if [other.name for other in found].count(metric.name) > 1:
            raise InputError(f"metric {metric.name!r} is given twice")
    if not found:
        raise InputError(f"--metrics: none is named; {nearest('', metric_names(modality))}")
    return found


def reads_classifier(metrics: Sequence[MetricName]) -> bool:
    """Whether one of ``metrics`` is taken by the in-domain classifiers."""
    return any(metric.kind in NEEDS_LABELS for metric in metrics)


def rows_first(metrics: Sequence[MetricName]) -> list[MetricName]:
    """``metrics`` in the order to be computed in: rows of real samples give the statistics of all others, too."""
    return sorted(metrics, key=lambda metric: metric.needs is not Needs.BOTH_ROWS)


def check_labels(
    recipe: Recipe, metrics: Sequence[MetricName], classes: Sequence[str], condition: ConditionSpec
) -> None:
    """Refuse metrics of labels for data without any, and agreement where samples are drawn for nothing."""
    if recipe.evaluate.conditions == "uniform" and (not condition.num_classes or condition.text_channels):
        raise InputError("evaluate.conditions: uniform draws labels, and the run is not conditioned on labels alone")
    kinds = {metric.kind for metric in metrics}
    if not classes and kinds.intersection(NEEDS_LABELS):
        other = [name for name in metric_names(recipe.modality) if name not in NEEDS_LABELS]
        raise InputError(
            f"{' and '.join(NEEDS_LABELS)} need labels, data {recipe.data.name} has none; there are: {', '.join(other)}"
        )
    if len(classes) == 1 and kinds.intersection(NEEDS_LABELS):
        raise InputError(
            f"{' and '.join(NEEDS_LABELS)} tell classes apart, and data {recipe.data.name} has one, {classes[0]!r}; "
            f"give evaluate.metrics that need no labels"
        )
    if "label-agreement" in kinds and not condition.num_classes and not condition.text_channels:
        raise InputError(
            "metric label-agreement: samples of this run are drawn for no label (condition.labels: ignored) and no "
            "text, so there is nothing to agree with; leave it out, fd-classifier can stay"
        )


def describe_modalities() -> dict[str, dict[str, list[str] | str]]:
    """Data sets, tokenizers, backbones, metrics and extractors of each modality that is installed.

    Of one that does not load or cannot describe itself, ``error`` alone: what is wrong with it.
    """
    adapters, broken = installed_adapters()
    found: dict[str, dict[str, list[str] | str]] = {name: {"error": str(error)} for name, error in broken.items()}
    for name, adapter in adapters.items():
        try:
            parts: dict[str, list[str] | str] = {section: list(kinds) for section, kinds in adapter.sections.items()}
            parts |= {"metrics": metric_names(name), "extractors": list(adapter.features())}
        except Exception as error:  # noqa: BLE001 - methods of a plug-in may raise anything
            parts = {"error": f"modality {name!r}, {type(adapter).__name__} cannot say its metrics: {reason(error)}"}
        found[name] = parts
    return dict(sorted(found.items()))


def _there_are(adapter: ModalityAdapter, name: str) -> str:
    """The nearest name of all there are, and how the rest are made."""
    short = metric_names(adapter.name)
    combined = [f"{kind}-{extractor}" for kind in KINDS for extractor in adapter.features()]
    hint = nearest(name, [*short, *combined]).partition("there are: ")[0]
    made = f"; or KIND-EXTRACTOR with {', '.join(KINDS)} and {', '.join(adapter.features())}" if combined else ""
    return f"{hint}there are: {', '.join(short)}{made}"
