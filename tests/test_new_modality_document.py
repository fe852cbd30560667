"""``docs/new-modality.md`` is run from its top to its bottom, as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fresh_environment import PIP, ROOT, Environment

pytestmark = pytest.mark.packages

DOCUMENT = ROOT / "docs" / "new-modality.md"
BLOCK = re.compile(r"^```(bash|python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = re.compile(r'^export SEEDS=(\d+) SHORT="(.*)"$', re.MULTILINE)
"""The settings that make a training short, which the document itself shows."""


@pytest.mark.timeout(1200)
def test_every_command_of_the_document_does_what_it_says(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    environment = Environment(tmp_path / "environment")
    folder = tmp_path / "folder"
    folder.mkdir()
    ((seeds, short),) = SHORT.findall(text)
    variables = {"SEEDS": seeds, "SHORT": short} | PIP
    kinds = []
    for kind, content in BLOCK.findall(text):
        kinds.append(kind)
        if kind == "bash":
            environment.run("bash", "-euo", "pipefail", "-c", content, cwd=folder, variables=variables)
        elif kind == "python":
            environment.run(environment.python, "-c", content, cwd=folder)
        else:
            command, expected = content.removeprefix("$ ").split("\n", 1)
            done = environment.run("bash", "-c", command, cwd=folder, status=2, variables=variables)
            assert done.stderr.startswith(expected.strip()) and done.stderr.count("\n") == 1, done.stderr
    assert kinds.count("bash") >= 6 and kinds.count("python") >= 3 and kinds.count("console") >= 4
    assert text.count("```") == 2 * len(kinds) + 4, "only the export and the table of files are not run"
    assert (folder / "runs/first/samples").is_dir() and (folder / "comparisons/first/compare.json").is_file()


def test_nothing_in_the_document_is_made_short_behind_its_back() -> None:
    """What the tests set is what the document shows; every training in it is run, with steps of its own."""
    text = DOCUMENT.read_text()
    trainings = [line for kind, block in BLOCK.findall(text) if kind == "bash" for line in block.splitlines()]
    trainings = [line for line in trainings if line.startswith(("layersync train", "layersync compare"))]
    assert len(trainings) >= 2 and all(line.endswith("${SHORT:-}") for line in trainings), trainings
    assert re.fullmatch(r"(--set \S+ ?)+", SHORT.findall(text)[0][1])
