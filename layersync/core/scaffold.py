"""A modality to start from: the package in ``templates/modality``, written under a name of the author's.

The template is a working package, checked as any other code is, whose modality is called my-modality; writing it under
another name is replacing that name.
"""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

import yaml

from layersync.core.adapter import MODALITY_GROUP, registered
from layersync.core.errors import InputError
from layersync.core.run import writable_parent

TEMPLATE_NAME = "my-modality"
MARKER = "REPLACE:"
"""What the lines to replace are found by."""
LONGEST_NAME = 40
MISLEADING = ("layersync", "modality", "test", "tests", "none")
"""Names that mean something else to this program, or to pytest."""


def new_modality(name: str, into: Path) -> Path:
    """Write an installable package for the modality ``name``; its folder, ``into/layersync-name``.

    The package appears whole or not at all. ``into`` is made where it is missing.

    Args:
        name: lower-case letters and digits in words, joined by ``-`` or ``_``.
        into: folder that the package's own folder is made in.

    Raises:
        InputError: for a name that is none, or is a modality or package already; for a folder that is there, or cannot
            be made.
    """
    _check_name(name)
    target = into / f"layersync-{name}"
    if os.path.lexists(target):
        raise InputError(f"new-modality: {target} is there already; give another NAME, or another folder by --into")
    writable_parent(target, "--into")
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=f".{target.name}-") as scratch:
            partial = Path(scratch) / target.name
            for path, text in _template(files("layersync") / "templates" / "modality"):
                file = partial / _renamed(path, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_renamed(text, name), encoding="utf-8")
            partial.rename(target)
    except OSError as error:
        raise InputError(f"--into: {target} cannot be written ({error.strerror or error})") from None
    return target


def _check_name(name: str) -> None:
    where = f"new-modality {name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        raise InputError(
            f"{where}: is no name of a modality; it is lower-case words of letters and digits joined by hyphens, at "
            f"most {LONGEST_NAME} characters, such as wrist-motion"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise InputError(f"{where}: is a keyword of Python; name the modality by what its samples are")
    if not isinstance(value := yaml.safe_load(name), str):
        raise InputError(f"{where}: is read as {value} in recipes; name the modality by what its samples are")
    if name in MISLEADING:
        raise InputError(f"{where}: means something else already; name the modality by what its samples are")
    if name in (modalities := registered(MODALITY_GROUP)):
        raise InputError(f"{where}: is a modality already; there are: {', '.join(sorted(modalities))}")
    package = _renamed("layersync_my_modality", name)
    project = package.replace("_", "-")
    names = [found.metadata["Name"] for found in distributions()]  # none of what an installer left half removed
    installed = {re.sub(r"[-_.]+", "-", name).lower() for name in names if name}
    if project in installed or find_spec(package) is not None:
        raise InputError(f"{where}: its package, {package}, is installed already; give another name")


def _template(folder: Traversable, inside: str = "") -> Iterator[tuple[str, str]]:
    """Relative path and text of every file; compiled ones, which an installer leaves beside them, are left out."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _template(entry, f"{inside}{entry.name}/")
        elif entry.is_file():
            yield f"{inside}{entry.name}", entry.read_text(encoding="utf-8")


def _renamed(text: str, name: str) -> str:
    """``text`` with the template's name, in its three spellings, replaced by ``name``."""
    words = re.split("[-_]", name)
    spellings = {
        TEMPLATE_NAME: name,
        TEMPLATE_NAME.replace("-", "_"): "_".join(words),
        "MyModality": "".join(word.capitalize() for word in words),
    }
    return re.sub("|".join(spellings), lambda found: spellings[found[0]], text)
