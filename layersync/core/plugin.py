"""Classes that packages register under an entry-point group, loaded so that every failure has a name.

A package that is broken, made for another version, or in conflict with another is one unusable name: nothing that walks
over a group stops there. All errors name the package, the entry point and the class.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layersync.core.errors import InputError, Interrupted, TrainingError, nearest

logger = logging.getLogger(__name__)

OURS = "layersync"
UNNAMED = "(unnamed)"
GROUPS = (f"{OURS}.modalities", f"{OURS}.regularizers")
FAILURES = (Exception, SystemExit)
"""What the code of a plug-in may end with; a script without a main guard leaves by SystemExit when it is imported."""


class PluginError(InputError):
    """What the code of a plug-in raised, in one line; the exception itself is its cause."""


@dataclass(frozen=True)
class Plugin:
    """A class of a plug-in; ``owner`` says in messages which one it is and whose, ``foreign`` that it is not ours."""

    owner: str
    loaded: type[Any]
    foreign: bool


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

    A name of our own stays ours: what another package registers under it is left out with a warning.

    Raises:
        InputError: for a name that no package registers, or several others do, and for one that does not load as a
            class.
    """
    points = [point for point in entry_points(group=group) if point.name == name]
    if not points:
        raise InputError(f"{asked}: {name!r} is unknown; {nearest(name, registered(group))}")
    ours = [point for point in points if package(point) == OURS]
    others = [point for point in points if package(point) != OURS]
    owners = " and ".join(sorted(f"{package(point)} ({point.value})" for point in others))
    if ours and others:
        warnings.warn(f"{asked}: {name!r} is layersync's own; left out: that of {owners}", stacklevel=2)
    elif len(others) > 1:
        raise InputError(f"{asked}: {name!r} is registered by {len(others)} packages, {owners}; uninstall all but one")
    point = (ours or others)[0]
    owner = f"{asked} {name!r} of package {package(point)} ({point.value})"
    try:
        found = point.load()
    except FAILURES as error:
        raise InputError(f"{owner}: cannot be imported: {reason(error)}") from error
    if not isinstance(found, type):
        raise InputError(f"{owner}: is a {type(found).__name__}; an entry point of {group} names a class")
    return Plugin(owner, found, foreign=not ours)


@contextmanager
def reported(where: str) -> Iterator[None]:
    """Turn what is raised inside into a :class:`PluginError` of ``where``, unless it is an error of ours already."""
    try:
        yield
    except (InputError, TrainingError, Interrupted):
        raise
    except FAILURES as error:
        logger.debug("%s raised", where, exc_info=True)
        raise PluginError(f"{where} raised {raised(error)}") from error


@contextmanager
def calling(thing: object, method: str) -> Iterator[None]:
    """:func:`reported` around a call of ``method``, where ``thing``, a class or an object, comes from a plug-in.

    What our own code raises, or a class that belongs to no plug-in, passes as it is: it is no fault of an installed
    package, and its traceback is wanted.
    """
    if _plugged(_class(thing).__module__) is None:
        yield
    else:
        with reported(f"{class_of(thing)}.{method}"):
            yield


def code_digest(*things: object) -> str:
    """SHA-256 of the source files of the plug-ins that ``things`` come from; the same for all that is ours.

    What is computed by code that is being written cannot be told apart by the names that it gives itself.
    """
    digest = hashlib.sha256()
    for module in sorted({_class(thing).__module__ for thing in things}):
        if _plugged(module) is None:
            continue
        found = (getattr(sys.modules[name], "__file__", None) for name in (module.partition(".")[0], module))
        file = Path(next(filter(None, found), ""))
        if not file.is_file():
            continue
        for source in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
            digest.update(source.read_bytes())
    return digest.hexdigest()


def class_of(thing: object) -> str:
    """The class of ``thing`` for messages, with the package that plugs it in: ``package mine: Frames``."""
    kind = _class(thing)
    owner = _plugged(kind.__module__)
    return f"package {owner}: {kind.__name__}" if owner else kind.__name__


def _class(thing: object) -> type[Any]:
    return thing if isinstance(thing, type) else type(thing)


@cache
def _plugged(module: str) -> str | None:
    """The package other than ours that registers something of the top package that ``module`` lies in."""
    top = module.partition(".")[0]
    for point in (point for group in GROUPS for point in entry_points(group=group)):
        if point.value.partition(":")[0].partition(".")[0] == top != OURS:
            return package(point)
    return None


def raised(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    if isinstance(error, PluginError) and error.__cause__ is not None:
        error = error.__cause__
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{reason(error)} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"


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
