"""Classes that packages register under an entry-point group, loaded so that every failure has a name.

A package that is broken, made for another version, or in conflict with another is one unusable name: nothing that walks
over a group stops there. All errors name the package, the entry point and the class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layersync.core.errors import InputError, nearest

OURS = "layersync"
UNNAMED = "(unnamed)"


@dataclass(frozen=True)
class Plugin:
    """A class of a plug-in; ``owner`` says in messages which one it is and whose."""

    owner: str
    loaded: type[Any]


def registered(group: str) -> dict[str, EntryPoint]:
    """Entry points of ``group`` by name; where packages share a name, our own or else the first package's."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (package(point) != OURS, package(point))):
        found.setdefault(point.name, point)
    return found


def package(point: EntryPoint) -> str:
    """Name of the distribution package that registers ``point``."""
    try:
        return point.dist.name if point.dist is not None else UNNAMED
    except (TypeError, KeyError):  # importlib.metadata on a package whose METADATA is missing
        return UNNAMED


def load_class(group: str, name: str, asked: str) -> Plugin:
    """The class that a package registers as ``name``; ``asked`` says in messages what wanted it.

    Raises:
        InputError: for a name that no package registers, or several do, and for one that does not load as a class.
    """
    points = [point for point in entry_points(group=group) if point.name == name]
    if not points:
        raise InputError(f"{asked}: {name!r} is unknown; {nearest(name, registered(group))}")
    if len(points) > 1:
        owners = " and ".join(sorted(f"{package(point)} ({point.value})" for point in points))
        raise InputError(f"{asked}: {name!r} is registered by {len(points)} packages, {owners}; uninstall all but one")
    (point,) = points
    owner = f"{asked} {name!r} of package {package(point)} ({point.value})"
    try:
        found = point.load()
    except Exception as error:
        raise InputError(f"{owner}: cannot be imported: {reason(error)}") from error
    if not isinstance(found, type):
        raise InputError(f"{owner}: is a {type(found).__name__}; an entry point of {group} names a class")
    return Plugin(owner, found)


def reason(error: BaseException) -> str:
    """An exception in one line: its type, unless it is an :class:`InputError`, and what it says."""
    said = " ".join(str(error).split())
    if isinstance(error, InputError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def signature(method: Callable[..., Any]) -> str:
    """Name and arguments of a method, without ``self``: ``render(samples, directory)``."""
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    return f"{method.__name__}({', '.join(names)})"


def top_folders(point: EntryPoint) -> Iterable[Path]:
    """Where the top package of ``point`` lies; empty for a module without a folder. None of its code is run."""
    top = point.value.partition(":")[0].strip().partition(".")[0]
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or () if spec is not None else ())]
