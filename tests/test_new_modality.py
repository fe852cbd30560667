"""``layersync new-modality``: what it writes, what it refuses, and how much of it an author would have written."""

from __future__ import annotations

import ast
import importlib
import io
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from layersync.core.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., tuple[int, str, str]]
LINES_OF_AN_AUTHOR = 150


@pytest.fixture
def package(command: Command, tmp_path: Path) -> Path:
    """A package that was just written, for a modality of two words."""
    status, out, _ = command("new-modality", "wrist-motion", "--into", tmp_path / "made" / "here")
    assert status == 0 and out.strip() == str(tmp_path / "made/here/layersync-wrist-motion")
    return Path(out.strip())


def code_lines(file: Path) -> int:
    """Lines that hold code: not blank, no comment, no docstring."""
    text = file.read_text()
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = {
        number
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in quiet
        for number in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_code_lines_are_counted_as_said(tmp_path: Path) -> None:
    file = tmp_path / "counted.py"
    file.write_text(
        '"""Module\n\ndocstring."""\n\nimport os  # 1\n# comment\nX = """a\nb"""  # 2 and 3\n"""About X."""\n'
    )
    assert code_lines(file) == 3


def test_an_author_writes_at_most_150_lines_besides_data_reading(package: Path) -> None:
    code = {file.name: code_lines(file) for file in package.rglob("*.py") if file.name != "data.py"}
    settings = [
        line
        for file in (package / "pyproject.toml", *package.rglob("*.yaml"))
        for line in file.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert sum(code.values()) <= LINES_OF_AN_AUTHOR, code
    assert sum(code.values()) > 60 and len(settings) < 40


def test_every_file_is_written_under_the_new_name(package: Path) -> None:
    files = {file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()}
    parts = ("__init__", "adapter", "backbone", "data", "features", "metrics", "render", "tokenizer")
    assert files == {
        *(f"layersync_wrist_motion/{part}.py" for part in parts),
        "layersync_wrist_motion/py.typed",
        "layersync_wrist_motion/recipes/quick.yaml",
        "tests/test_wrist_motion.py",
        "pyproject.toml",
        "README.md",
    }
    text = "\n".join((package / file).read_text() for file in sorted(files))
    for own_name in ("my-modality", "my_modality", "MyModality"):
        assert own_name not in text
    assert "class WristMotionAdapter:" in text and 'name = "wrist-motion"' in text


@pytest.mark.parametrize("name", ["my-modality", "not-my_modality"])
def test_a_name_that_holds_the_templates_is_a_name_like_any(command: Command, tmp_path: Path, name: str) -> None:
    command("new-modality", name, "--into", tmp_path)
    module = f"layersync_{name.replace('-', '_')}"
    folder = tmp_path / f"layersync-{name}"
    assert f'{name} = "{module}.adapter:' in (folder / "pyproject.toml").read_text()
    assert f"from {module}.data import" in (folder / module / "adapter.py").read_text()


@pytest.fixture
def importable(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of the package, which can be imported as long as the test runs."""
    monkeypatch.syspath_prepend(package)
    name = "layersync_wrist_motion"
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_anybodys_signals_are_read_or_refused_in_one_line(importable: str, tmp_path: Path) -> None:
    open_samples = importlib.import_module(f"{importable}.data").open_samples
    write_archive = importlib.import_module(f"{importable}.render").write_archive
    folder = tmp_path / "signals"
    folder.mkdir()
    signals = np.random.default_rng(0).normal(size=(3, 96)).astype(np.float32)
    write_archive(tmp_path / "a.npz", list(signals), [2, 0, 1])
    for number, signal in enumerate(signals):
        np.save(folder / f"{number}.npy", signal.astype(np.float64))
    archived, filed = open_samples(tmp_path / "a.npz"), open_samples(folder)
    assert [archived[row].label for row in range(3)] == [2, 0, 1]
    assert all((archived[row].sample == filed[row].sample).all() for row in range(3))
    assert filed[0].sample.dtype == np.float32 and filed[0].condition == {}

    for name, content in (("x", np.float32(1)), ("x", signals), ("x", signals[:0, 0]), ("x", np.array(["a"]))):
        np.save(folder / f"{name}.npy", content)
        with pytest.raises(InputError, match=r"signals/x\.npy: is .* numbers \[samples\] are wanted"):
            open_samples(folder)
    (folder / "x.npy").unlink()
    (folder / "x.npy").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    for path in (folder, tmp_path / "b.npz", tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=str(path)):
            open_samples(path)


def test_what_to_replace_is_marked_and_every_part_is_explained(package: Path) -> None:
    sources = [file for file in package.rglob("*.py") if file.name != "__init__.py"]
    marks = [line for file in package.rglob("*.*") for line in file.read_text().splitlines() if "REPLACE" in line]
    assert all("REPLACE:" in line for line in marks) and 8 <= len(marks) <= 14, marks
    for file in sources:
        said = ast.get_docstring(ast.parse(file.read_text()))
        assert said is not None and len(said.splitlines()) <= 6, f"{file}: {said}"
    replaced = {file.name for file in sources if "REPLACE:" in file.read_text()}
    assert replaced == {file.name for file in sources} - {"test_wrist_motion.py"}


def test_next_steps_are_printed_for_people(command: Command, tmp_path: Path) -> None:
    status, out, err = command("new-modality", "mine", "--into", tmp_path)
    assert status == 0 and out == f"{tmp_path}/layersync-mine\n"
    for step in (
        "pip install --editable",
        "layersync check mine",
        "layersync train mine/quick",
        "layersync compare mine",
    ):
        assert step in err


@pytest.mark.parametrize("name", ["mine", "a-name-of-four-words2"])
def test_generated_code_is_lint_free(command: Command, tmp_path: Path, name: str) -> None:
    """By this repository's own rules, which know layersync's imports as first-party ones."""
    command("new-modality", name, "--into", tmp_path)
    first = f"lint.isort.known-first-party=['layersync', 'layersync_{name.replace('-', '_')}']"
    for action in (["check"], ["format", "--check"]):
        arguments = ["--config", ROOT / "pyproject.toml", "--config", first, "--no-cache", tmp_path]
        done = subprocess.run([sys.executable, "-m", "ruff", *action, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_generated_code_is_strictly_typed(package: Path, tmp_path: Path) -> None:
    """mypy --strict, the line in the tests that holds the adapter against the protocol included."""
    arguments = ["--strict", "--config-file=", "--cache-dir", tmp_path / "cache", "layersync_wrist_motion", "tests"]
    done = subprocess.run([sys.executable, "-m", "mypy", *arguments], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    """One line that holds ``words``, and status 2."""
    status, out, err = outcome
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, outcome
    for word in words:
        assert word in err, err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Mine", ["lower-case"]),
        ("2d", ["lower-case"]),
        ("-mine", ["No such option"]),
        ("mine-", ["lower-case"]),
        ("mi ne", ["lower-case"]),
        ("../mine", ["lower-case"]),
        ("größe", ["lower-case"]),
        ("mine\n", ["lower-case"]),
        ("", ["lower-case"]),
        ("a" * 41, ["40 characters"]),
        ("class", ["keyword"]),
        ("match", ["keyword"]),
        ("null", ["is read as None in recipes"]),
        ("off", ["is read as False in recipes"]),
        *((name, ["means something else already"]) for name in ("layersync", "modality", "test", "tests", "none")),
        ("image", ["modality already", "audio, image, motion"]),
    ],
)
def test_names_that_are_none_are_refused(command: Command, tmp_path: Path, name: str, words: list[str]) -> None:
    into = tmp_path / "into"
    refused(command("new-modality", name, "--into", into), *words)
    assert not into.exists()


def test_a_package_that_is_installed_is_not_written_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name on the import path, or by a distribution's, whatever spelling that has."""
    (tmp_path / "path" / "layersync_taken").mkdir(parents=True)
    (tmp_path / "path" / "LayerSync_Also.Taken-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: LayerSync_Also.Taken\nVersion: 1.0\n"
    (tmp_path / "path" / "LayerSync_Also.Taken-1.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path / "path")
    for name in ("taken", "also-taken"):
        refused(command("new-modality", name, "--into", tmp_path), "installed already", name.replace("-", "_"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["path"]


def test_a_folder_that_is_there_is_left_as_it_is(command: Command, tmp_path: Path) -> None:
    target = tmp_path / "layersync-mine"
    for make in (target.mkdir, target.touch, lambda: target.symlink_to(tmp_path / "nowhere")):
        make()
        refused(command("new-modality", "mine", "--into", tmp_path), f"{target} is there already", "--into")
        assert [entry.name for entry in tmp_path.iterdir()] == ["layersync-mine"]
        target.rmdir() if target.is_dir() else target.unlink()


def test_a_place_that_cannot_be_written_is_refused(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    refused(command("new-modality", "mine", "--into", file), "--into", f"{file} is a file")
    refused(command("new-modality", "mine", "--into", file / "deeper"), "--into", f"{file} is a file")
    refused(command("new-modality", "mine", "--into", "/proc/nothing"), "--into", "/proc/nothing/layersync-mine")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """Files may have 1,000 bytes in this process, which some of the package's exceed."""
    code = (
        "import resource, sys; from layersync.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"sys.argv = ['layersync', 'new-modality', 'mine', '--into', {str(tmp_path)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    refused((done.returncode, done.stdout, done.stderr), "cannot be written", "File too large")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_formula_does_not_read_are_refused(importable: str) -> None:
    shape = importlib.import_module(f"{importable}.features").Shape
    with pytest.raises(InputError, match=r"--extractor shape=a\.pth: shape is a formula, it takes no weights"):
        shape("a.pth")


def test_what_it_says_of_clips_is_what_latents_are(package: Path) -> None:
    text = " ".join((package / "layersync_wrist_motion" / "tokenizer.py").read_text().split())
    assert "clips ``LatentSpec(3, (height, width, frames))``" in text
