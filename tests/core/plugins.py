"""Packages that tests install: a folder on ``sys.path`` with code, recipes and the metadata of entry points."""

from __future__ import annotations

import ast
import importlib
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

STROKES = (Path(__file__).parent / "strokes.py").read_text()
QUICK = """# Strokes of a pen.
modality: {name}
data: {{name: strokes}}
train: {{steps: 4, batch_size: 8}}
sample: {{solver: euler, steps: 2}}
evaluate: {{metrics: [fd-classifier], num_samples: 16}}
"""
_NUMBERS = itertools.count(1)


class Installer:
    """Installs packages beside each other for one test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(sys.path)}")  # for processes that the test starts

    def package(
        self,
        source: str,
        modalities: Mapping[str, str] = {},
        regularizers: Mapping[str, str] = {},
        recipes: Mapping[str, str] = {},
        metadata: str = "dist-info",
    ) -> str:
        """A package with ``source`` as its module ``adapter`` and entry points by name, as CLASS of that module.

        Returns its name, which no other package of this process has.
        """
        module = f"plugged{next(_NUMBERS)}"
        code = self.folder / module
        (code / "recipes").mkdir(parents=True)
        (code / "__init__.py").write_text("")
        (code / "adapter.py").write_text(source)
        for name, text in recipes.items():
            (code / "recipes" / f"{name}.yaml").write_text(text)
        points = ""
        for group, entries in (("modalities", modalities), ("regularizers", regularizers)):
            lines = "".join(f"{name} = {module}.adapter:{kind}\n" for name, kind in entries.items())
            points += f"[layersync.{group}]\n{lines}"
        information = self.folder / (f"{module}-1.0.dist-info" if metadata == "dist-info" else f"{module}.egg-info")
        information.mkdir()
        (information / ("METADATA" if metadata == "dist-info" else "PKG-INFO")).write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n"
        )
        (information / "entry_points.txt").write_text(points)
        importlib.invalidate_caches()
        return module

    def strokes(self, *changes: tuple[str, str], without: str | None = None) -> str:
        """The modality of strokes under a name of its own, which is returned.

        Each ``old`` of ``changes`` (``NAME`` is the name) is replaced by ``new``; ``without`` is a member that is taken
        out of the adapter.
        """
        name = f"strokes{next(_NUMBERS)}"
        source = STROKES.replace('name = "strokes"\n    sections', f'name = "{name}"\n    sections')
        for old, new in changes:
            old = old.replace("NAME", name)
            assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in strokes.py"
            source = source.replace(old, new)
        if without is not None:
            source = _without(source, without)
        self.package(source, {name: "StrokesAdapter"}, recipes={"quick": QUICK.format(name=name)})
        return name


def _without(source: str, member: str) -> str:
    """``source`` with one attribute or method taken out of its adapter."""
    tree = ast.parse(source)
    (adapter,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "StrokesAdapter")
    kept = [node for node in adapter.body if member not in _defined(node)]
    assert len(kept) == len(adapter.body) - 1, f"strokes.py does not define {member} once"
    adapter.body = kept
    return ast.unparse(tree)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
