"""What bad input gets: one line, exit status 2, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from layersync import Run
from layersync.core.checkpoint import save_checkpoint
from layersync.core.errors import TrainingError
from layersync.core.packaged import cache_directory

Make = Callable[..., Any]


def one_error(err: str) -> str:
    """The only line of stderr that is no warning."""
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.fixture
def refused(command: Make, tiny_file: Path, tmp_path: Path) -> Make:
    """``refused(words, *sets)``: the tiny recipe with ``--set`` is refused, and nothing is written."""

    def check(words: list[str], *sets: str, options: tuple[str, ...] = (), recipe: Path | str | None = None) -> None:
        out = tmp_path / "out" / "run"
        arguments = ["train", recipe or tiny_file, *options, "--out", out]
        status, stdout, err = command(*arguments, *[word for s in sets for word in ("--set", s)])
        line = one_error(err)
        assert status == 2 and stdout == ""
        assert not out.parent.exists()
        for word in words:
            assert word in line, line

    return check


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stps=3", ["train.stps", "did you mean 'steps'"]),
        ("train.steps=many", ["train.steps", "'many'"]),
        ("train.steps=0", ["train.steps", "0"]),
        ("data.name=digit", ["'digit'", "digits", "folder"]),
        ("regularizer.pairs=[[2, 2]]", ["[2, 2]", "4"]),
        ("regularizer.pairs=[[1, 9]]", ["[1, 9]", "4 blocks"]),
        ("regularizer.weight=-1", ["-1"]),
        ("evaluate.metrics=[fidd]", ["'fidd'", "did you mean 'fid'", "fd-classifier", "nearest-training"]),
        ("backbone.mlp_ratio=0.01", ["mlp_ratio", "0.01 of 32 channels"]),
        ("train.init=~nobody/run", ["train.init", "~nobody/run"]),
        ("sample.solver=leapfrog", ["'leapfrog'", "heun"]),
        ("backbone.patch_size=3", ["patch_size", "[3, 3]", "[8, 8]"]),
        ("backbone.num_heads=5", ["32", "num_heads, 5"]),
        ("tokenizer.name=vae", ["tokenizer"]),
        ("train.init=", ["train.init", "at least 1"]),
        ("train.init=/nowhere/run", ["train.init", "/nowhere/run"]),
        ("train.steps=yes", ["train", "steps", "True"]),
        ("seed=2020-13-45", ["seed=2020-13-45", "no valid YAML"]),
        ("seed=!!int abc", ["seed", "no valid YAML"]),
        ("data.name=[a]", ["data.name", "['a']", "digits"]),
        ("regularizer.pairs=[1, 3]", ["regularizer.pairs", "list"]),
        ("optimizer.betas=[1, 1]", ["optimizer.betas", "less than 1"]),
        ("evaluate.metrics=[]", ["evaluate.metrics", "at least 1"]),
        ("evaluate.num_samples=1", ["evaluate.num_samples", "2"]),
        ("sample={solver: euler-maruyama, steps: 1}", ["steps", "at least 2"]),
        ("sample.guidance_channels=7", ["guidance_channels", "7"]),
        ("nonsense", ["nonsense", "KEY=VALUE"]),
    ],
)
def test_a_wrong_recipe_is_refused(refused: Make, override: str, words: list[str]) -> None:
    refused(words, override)


def test_a_wrong_modality_is_refused(refused: Make) -> None:
    refused(["audio", "image"], options=("--modality", "audio"))
    refused(["'img'", "image", "motion"], options=("--modality", "img"))


def test_a_wrong_file_is_refused(refused: Make, tmp_path: Path) -> None:
    for name, text in (
        ("list", "- a\n"),
        ("broken", "modality: [image\n"),
        ("tag", "a: !!python/object/apply:os.getcwd []"),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        refused([str(path)], recipe=path)
    refused(["image/quik", "image/quick"], recipe="image/quik")


def test_missing_and_unreadable_data_is_refused(refused: Make, tmp_path: Path) -> None:
    refused(["data.path", "/nowhere"], "data.name=folder", "data.path=/nowhere")
    refused(["data.path"], "data.name=folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.txt").write_text("nothing to see")
    refused(["nothing readable", str(empty), ".png"], "data.name=folder", f"data.path={empty}")
    refused(["not a folder"], "data.name=folder", f"data.path={empty / 'readme.txt'}")
    refused(["train-images", str(empty)], "data.name=idx", f"data.path={empty}")
    (empty / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03\x00\x00\x00\x02")
    (empty / "train-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x00")
    refused(["train-images-idx3-ubyte"], "data.name=idx", f"data.path={empty}")


def test_an_unwritable_run_is_refused_before_any_work(command: Make, tiny_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    status, _, err = command("train", tiny_file, "--out", tmp_path / "file" / "run")
    assert status == 2
    assert "is a file" in one_error(err)


def test_a_name_that_cannot_be_made_is_refused_before_any_work(
    command: Make, tiny_file: Path, trained: Run, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")
    drawn = ["sample", trained.path, "--num", "1", "--out"]
    trainings = ["train", tiny_file, "--out"], ["compare", tiny_file, "--seeds", "1", "--out"]
    for words in (drawn, *trainings):
        for name, said in (("link", "link"), ("é" * 110, "220 bytes; give one of 200 at most"), ("n" * 300, "--out")):
            for out in (tmp_path / name, tmp_path / name / "run"):
                status, _, err = command(*words, out)
                assert status == 2 and said in one_error(err) and "--out" in err, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "tiny.yaml"]


def test_resume_needs_a_run(command: Make, tiny_file: Path, tmp_path: Path) -> None:
    status, _, err = command("train", tiny_file, "--resume", "--out", tmp_path / "nothing")
    assert status == 2
    assert "does not exist" in one_error(err)
    assert not (tmp_path / "nothing").exists()


def test_a_corrupt_image_is_named(refused: Make, tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "cat"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "good.png")
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:30])
    refused([str(folder / "bad.png"), "corrupt"], "data.name=folder", f"data.path={tmp_path / 'pictures'}")


def test_on_error_skip_trains_on_the_rest(command: Make, tiny_file: Path, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for n in range(10):
            Image.fromarray(np.full((8, 8), 20 * n, np.uint8)).save(folder / f"{n}.png")
    (tmp_path / "pictures" / "cat" / "3.png").write_bytes(b"no picture")
    sets = ["data.name=folder", f"data.path={tmp_path / 'pictures'}", "data.on_error=skip", "train.steps=1"]
    options = [word for s in sets for word in ("--set", s)]
    status, _, err = command("train", tiny_file, *options, "--out", tmp_path / "run")
    assert status == 0, err
    assert Run(tmp_path / "run").data.num_examples == 17


def test_a_run_folder_that_exists_is_refused_and_left_alone(command: Make, tiny_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    for options, words in (([], "exists"), (["--resume"], "is no run")):
        status, _, err = command("train", tiny_file, "--out", tmp_path / "run", *options)
        assert status == 2 and words in one_error(err)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_run_that_does_not_exist_is_refused(command: Make, tmp_path: Path, name: str) -> None:
    status, _, err = command(name, tmp_path / "nothing")
    assert status == 2 and "nothing' does not exist" in one_error(err)
    (tmp_path / "empty").mkdir()
    status, _, err = command(name, tmp_path / "empty")
    assert status == 2 and "no recipe.yaml" in one_error(err)


@pytest.fixture
def copied(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.path, tmp_path / "copied")
    return Run(tmp_path / "copied")


@pytest.mark.parametrize("name", ["sample", "evaluate", "resume"])
@pytest.mark.parametrize("damage", ["cut short", "pickle", "missing", "torn header", "other weights"])
def test_damaged_weights_are_refused(
    command: Make, copied: Run, tmp_path: Path, name: str, damage: str, tiny: Make
) -> None:
    weights = copied.latest_checkpoint() / "ema.safetensors"
    canary = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "torn header":
        weights.write_bytes(weights.read_bytes()[:40])
    elif damage == "pickle":
        torch.save({"model": Payload()}, weights)
    elif damage == "missing":
        weights.unlink()
    else:
        from safetensors.torch import save_file

        save_file({"x_embedder.proj.weight": torch.zeros(3)}, weights)
    before = sorted(path for path in copied.path.rglob("*"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny("train.steps=50").to_yaml())
    arguments = {
        "sample": ["sample", copied.path, "--num", "2", "--out", tmp_path / "samples"],
        "evaluate": ["evaluate", copied.path, "--num-samples", "8"],
        "resume": ["train", recipe, "--resume", "--out", copied.path],
    }[name]
    status, out, err = command(*arguments)
    line = one_error(err)
    assert status == 2 and out == "" and "step-00000040" in line
    if damage == "pickle":
        assert "pickle" in line
    if damage == "other weights":
        assert "do not fit the backbone" in line
    assert not canary.exists() and not (tmp_path / "samples").exists()
    assert sorted(path for path in copied.path.rglob("*")) == before


def test_an_old_pickle_is_recognised_too(command: Make, copied: Run) -> None:
    weights = copied.latest_checkpoint() / "ema.safetensors"
    for protocol in (0, 2, 4):
        weights.write_bytes(pickle.dumps({"a": [1, 2]}, protocol=protocol))
        status, _, err = command("sample", copied.path, "--num", "2")
        assert status == 2 and "safetensors" in one_error(err)


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_run_that_has_saved_nothing_yet_is_refused(command: Make, copied: Run, name: str) -> None:
    shutil.rmtree(copied.path / "checkpoints")
    status, out, err = command(name, copied.path)
    assert status == 2 and out == "" and one_error(err) == f"error: run '{copied.path}' has no checkpoint yet"


@pytest.mark.parametrize("file", ["data.json", "conditions.safetensors", "recipe.yaml", "tokenizer.safetensors"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_run_is_refused(command: Make, copied: Run, file: str, damage: str) -> None:
    path = copied.path / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:7])
    status, out, err = command("sample", copied.path, "--num", "2")
    assert status == 2 and out == ""
    assert file in one_error(err) and str(copied.path) in err


def test_a_state_cut_short_is_refused(command: Make, copied: Run, tiny: Make, tmp_path: Path) -> None:
    (copied.latest_checkpoint() / "state.json").write_text('{"step"')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny("train.steps=50").to_yaml())
    status, _, err = command("train", recipe, "--resume", "--out", copied.path)
    assert status == 2 and "state.json: is missing or cut short" in one_error(err)


def test_weights_that_do_not_fit_are_refused(refused: Make, trained: Run) -> None:
    refused(["do not fit the backbone", "blocks.4."], f"train.init={trained.path}", "backbone.depth=5")
    refused(["do not fit the backbone", "[64"], f"train.init={trained.path}", "backbone.hidden_size=64")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num", "0"], ["--num", "0"]),
        (["--num", "-3"], ["--num", "-3"]),
        (["--steps", "0"], ["--steps", "0"]),
        (["--solver", "leapfrog"], ["--solver", "leapfrog", "heun"]),
        (["--labels", "one"], ["--labels", "'one'"]),
        (["--labels", "12"], ["--labels", "12"]),
        (["--guidance", "-1"], ["--guidance", "-1"]),
        (["--guidance-channels", "5"], ["guidance_channels", "5"]),
        (["--step", "3"], ["step 3", "[40]"]),
        (["--weights", "best"], ["--weights", "'best'", "ema"]),
        (["--noise", "/nowhere.npy"], ["--noise", "/nowhere.npy"]),
        (["--num", "many"], ["--num", "integer"]),
        (["--seed", "-1"], ["--seed", "0"]),
        (["--colour", "red"], ["--colour"]),
    ],
)
def test_wrong_sampling_options_are_refused(
    command: Make, trained: Run, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    status, out, err = command("sample", trained.path, *options, "--out", tmp_path / "samples")
    line = one_error(err)
    assert status == 2 and out == "" and not (tmp_path / "samples").exists()
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metrics", "fad"], ["'fad'", "fd-classifier"]),
        (["--metrics", "clip-score"], ["clip-score", "texts", "layersync score"]),
        (["--replications", "0"], ["--replications: 0"]),
        (["--num-samples", "0"], ["0"]),
        (["--num-samples", "1"], ["at least 2"]),
        (["--step", "3"], ["step 3", "[40]"]),
        (["--weights", "best"], ["best", "ema"]),
        (["--extractor", "clip=a", "--extractor", "clip=b"], ["'clip=b'", "given twice", "as a before"]),
    ],
)
def test_wrong_evaluation_options_are_refused(
    command: Make, trained: Run, options: list[str], words: list[str]
) -> None:
    status, out, err = command("evaluate", trained.path, *options)
    line = one_error(err)
    assert status == 2 and out == ""
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    "arguments",
    [["data", "prepare", "digit"], ["recipes", "show", "nothing"], ["trian"], ["sample"], ["train", "--steps"]],
)
def test_other_wrong_commands_are_refused(command: Make, arguments: list[str]) -> None:
    status, out, err = command(*arguments)
    assert status == 2 and out == ""
    assert one_error(err)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["train", "image/quick"], "runs/image-quick"),
        (["train", "./mine/tiny.yaml"], "runs/mine-tiny"),
        (["compare", "image/quick"], "comparisons/image-quick"),
        (["compare", "image/quick", "./mine/tiny.yaml"], "comparisons/image-quick+tiny"),
    ],
)
def test_a_folder_is_named_by_its_recipes_unless_said(
    command: Make, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], folder: str
) -> None:
    """And, as any, left alone where it is there."""
    monkeypatch.chdir(tmp_path)
    for name, content in (("mine/tiny.yaml", tiny_file.read_text()), (f"{folder}/mine.txt", "mine")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content)
    status, _, err = command(*words, "--set", "train.steps=1")
    assert status == 2 and f"{folder} exists" in one_error(err).replace(": exists", " exists")
    assert [path.name for path in (tmp_path / folder).iterdir()] == ["mine.txt"]


def test_packaged_data_is_listed_and_prepared_by_name(command: Make) -> None:
    status, out, err = command("data", "list")
    listed = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()}
    assert status == 0 and err == ""
    modalities = {"digits": "image", "mnist5k": "image", "tiles": "image", "gm-notes": "audio"}
    for name, modality in (modalities | {"mocap-clips": "motion"}).items():
        assert listed[name][0] == modality and len(listed[name][1]) > 20, name
    status, out, _ = command("data", "prepare", "digits")
    assert status == 0 and out == "digits is installed already: nothing to fetch\n"
    status, out, err = command("data", "prepare", "mocap-clips")
    assert status == 0 and (Path(out.strip()) / "humanoid3d_walk.txt").is_file(), err


@pytest.mark.parametrize("arguments", [[], ["recipes"], ["data"]])
def test_nothing_at_all_gets_help(command: Make, arguments: list[str]) -> None:
    status, out, err = command(*arguments)
    assert status == 2 and out == ""
    assert err.startswith("Usage:") and "--help" in err and len(err.splitlines()) > 5


def test_nan_loss_exits_with_1_and_keeps_the_last_checkpoint(command: Make, tiny_file: Path, tmp_path: Path) -> None:
    sets = ["--set", "optimizer.lr=1.0e+30", "--set", "train.checkpoint_every=1"]
    status, _, err = command("train", tiny_file, *sets, "--out", tmp_path / "run")
    assert status == 1 and "no longer finite" in one_error(err) and "step 2" in err
    assert Run(tmp_path / "run").checkpoint_steps() == [1]


def test_warnings_are_one_line_each(command: Make, tiny_file: Path, tmp_path: Path) -> None:
    sets = ["--set", "regularizer.weight=0", "--set", "train.steps=1"]
    status, _, err = command("train", tiny_file, *sets, "--out", tmp_path / "run")
    assert status == 0
    assert err.count("warning: regularizer.weight is 0") == 1


def test_json_is_all_there_is_on_stdout(command: Make, trained: Run, tmp_path: Path) -> None:
    status, out, _ = command("modalities", "--json")
    assert status == 0 and set(json.loads(out)) >= {"image", "audio", "motion"}
    assert set(json.loads(out)["image"]) == {"data", "tokenizer", "backbone", "metrics", "extractors"}


def test_the_module_is_the_command_and_says_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "layersync", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, metadata.version("layersync"), "")


def test_an_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "layersync.cli", "train", "image/quick", "--set", "train.stps=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: image/quick: train.stps: unknown key") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("labels", ["0,1,2,3", "0,1"])
def test_labels_that_are_left_out_are_said(command: Make, trained: Run, tmp_path: Path, labels: str) -> None:
    given = ["--labels", labels, "--num", "2", "--steps", "2", "--latents-only", "--out", tmp_path / "samples"]
    status, _, err = command("sample", trained.path, *given)
    said = "warning: --labels: of 4 the first 2 are used, a sample each; --num says how many samples\n"
    assert status == 0 and err == (said if labels == "0,1,2,3" else "")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line(
    command: Make, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "cache"))
    with files_up_to(30_000):
        status, out, err = command("data", "tokenize", tiny_file)
    assert status == 1 and out == "" and "File too large" in one_error(err)


def test_a_cache_that_cannot_be_made_is_refused(
    command: Make, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "file"))
    status, out, err = command("train", tiny_file, "--out", tmp_path / "run")
    assert status == 2 and out == "" and not (tmp_path / "run").exists()
    assert f"LAYERSYNC_CACHE: {tmp_path / 'file' / 'latents'} cannot be made (Not a directory)" in one_error(err)
    monkeypatch.setenv("LAYERSYNC_CACHE", "~nobody-of-this-name/cache")
    status, out, err = command("train", tiny_file, "--out", tmp_path / "run")
    assert status == 2 and out == "" and not (tmp_path / "run").exists()
    assert "LAYERSYNC_CACHE: ~nobody-of-this-name/cache names no home folder" in one_error(err)


def test_the_cache_lies_at_home_unless_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LAYERSYNC_CACHE", ""), ("XDG_CACHE_HOME", ""), ("HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    assert cache_directory() == tmp_path / ".cache" / "layersync"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_directory() == tmp_path / "other" / "layersync"


def test_nothing_is_left_of_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    folder, weights = tmp_path / "checkpoints", {"model": {"weight": torch.zeros(100_000)}}
    save_checkpoint(folder / "step-1", weights, {"step": 1})
    with (
        files_up_to(300_000),
        pytest.raises(TrainingError, match=r"step-2: cannot be written \(.*; checkpoints so far"),
    ):
        save_checkpoint(folder / "step-2", weights, {"step": 2})
    with pytest.raises(TypeError):
        save_checkpoint(folder / "step-3", {}, {"step": object()})
    assert [path.name for path in folder.iterdir()] == ["step-1"]


def test_a_run_that_cannot_be_written_to_is_not_resumed(
    command: Make, trained: Run, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more.yaml").write_text(tiny("train.steps=50").to_yaml())
    monkeypatch.setattr(
        "os.access", lambda path, mode: (path, mode) != (trained.path, os.W_OK)
    )  # root may write anywhere
    status, _, err = command("train", tmp_path / "more.yaml", "--out", trained.path, "--resume")
    assert status == 2 and f"--resume: {trained.path} is not writable" in one_error(err)
