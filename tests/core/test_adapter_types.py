"""The types of the adapter protocol are complete enough that ``mypy --strict`` finds a wrong adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from plugins import STROKES

import layersync

RIGHT = STROKES.replace("    LatentSpec,\n", "    LatentSpec,\n    ModalityAdapter,\n", 1) + (
    "\n\ndef modality() -> ModalityAdapter:\n    return StrokesAdapter()\n"
)
BUILT_IN = """
from layersync.core.adapter import ModalityAdapter
from layersync.modalities.audio.adapter import AudioAdapter
from layersync.modalities.image.adapter import ImageAdapter
from layersync.modalities.motion.adapter import MotionAdapter

MODALITIES: list[ModalityAdapter] = [ImageAdapter(), AudioAdapter(), MotionAdapter()]
"""
WRONG = {
    "api": ("    api = 1\n", '    api = "1"\n'),
    "name": ('    name = "strokes"\n    sections', "    name = 3\n    sections"),
    "sections": ("Mapping[str, type[Section]]]]", "Mapping[str, Section]]]"),
    "dataset": (
        "def dataset(self, data: StrokesConfig, split: Split)",
        "def dataset(self, data: StrokesConfig, split: int)",
    ),
    "tokenizer": (
        "-> Tokenizer:\n        return Offsets(config)",
        "-> OffsetsConfig:\n        return config",
    ),
    "backbone": ("condition: ConditionSpec) -> Backbone:", "condition: ConditionSpec) -> torch.nn.Module:"),
    "features": ('{"outline": Outline}', '{"outline": Offsets}'),
    "metrics": ('{"reach": reach}', '{"reach": 3}'),
    "aliases": ('{"fod": "fd-outline"}', '{"fod": 3}'),
    "open_samples": ("return OpenStrokes(path)", "return [path]"),
    "archive": ("    def archive(self", "    def archived(self"),
    "classifier_input": ("-> tuple[Tensor, Tensor | None]:", "-> Tensor:"),
    "render": ("-> list[Path]:\n        files = []", "-> list[str]:\n        files = []"),
}


@pytest.mark.slow
@pytest.mark.timeout(900)  # mypy reads torch and pydantic anew
def test_strict_types_find_each_wrong_member(tmp_path: Path) -> None:
    sources = {"right": RIGHT, "built_in": BUILT_IN}
    for member, (old, new) in WRONG.items():
        assert RIGHT.count(old) == 1, old
        sources[f"wrong_{member}"] = RIGHT.replace(old, new)
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *(f"{name}.py" for name in sources)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(layersync.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = defaultdict(list)
    for line in checked.stdout.splitlines():
        if ": error: " in line:
            errors[line.partition(".py:")[0]].append(line)
    assert set(errors) == {f"wrong_{member}" for member in WRONG}, checked.stdout
