"""The run directory: a recipe, what it was run on, its logs and its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from layersync.core.adapter import ConditionSpec, DataConfig, LatentSpec, Tokenizer
from layersync.core.errors import InputError
from layersync.core.packaged import atomic_write, sync_path
from layersync.core.paths import expanded
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import load_recipe

CHECKPOINT_PREFIX = "step-"
LONGEST_NAME = 200
"""Bytes of a file's name: of the 255 that most file systems take, some are added while it is written."""


@dataclass(frozen=True)
class DataSummary:
    """What a run has to remember of its data, so that samples can be drawn without it: ``RUN/data.json``."""

    fingerprint: str
    """Key of the latent cache: changes with data and tokenizer."""
    num_examples: int
    classes: tuple[str, ...]
    latent: LatentSpec
    labels_used: bool = True
    """Whether the backbone is conditioned on the labels; scores know them in any case."""
    text_channels: int = 0
    """Width of the text embeddings that the backbone is conditioned on; 0 for none."""
    text_encoder: str = ""
    """Fingerprint of what made them; empty for none."""

    @property
    def condition(self) -> ConditionSpec:
        """What the backbone is conditioned on."""
        return ConditionSpec(len(self.classes) if self.labels_used else 0, self.text_channels)

    def check_tokenizer(self, tokenizer: Tokenizer, owner: str) -> None:
        """Raise :class:`InputError` unless ``tokenizer`` makes latents of this shape, which ``owner`` needs."""
        own, others = self.latent.shape, tokenizer.latent.shape
        if own != others:
            raise InputError(
                f"tokenizer: makes latents of {'x'.join(map(str, others))}, {owner} needs {'x'.join(map(str, own))}: "
                f"set a path, size or number of channels that fits"
            )

    def check_text_encoder(self, fingerprint: str, recipe: Recipe) -> None:
        """Raise :class:`InputError` unless what ``recipe`` names, of ``fingerprint``, made the embeddings."""
        if fingerprint != self.text_encoder:
            raise InputError(
                f"condition.text_encoder: {recipe.condition.text_encoder!r} is not what the run was trained with "
                f"(weights, settings, words, pooling or length differ: {fingerprint}, not {self.text_encoder})"
            )

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, content: dict[str, Any]) -> DataSummary:
        """The inverse of :meth:`to_mapping`."""
        latent = LatentSpec(**{**content["latent"], "grid": tuple(content["latent"]["grid"])})
        return cls(**{**content, "classes": tuple(content["classes"]), "latent": latent})


def writable_parent(path: Path, option: str) -> None:
    """Raise :class:`InputError` unless a folder at ``path`` could be made."""
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    for name in path.absolute().relative_to(nearest).parts:
        if (size := len(os.fsencode(name))) > LONGEST_NAME:
            raise InputError(f"{option}: {name[:20]}... is a name of {size} bytes; give one of {LONGEST_NAME} at most")
    if not nearest.is_dir():
        raise InputError(f"{option}: {path} cannot be made, {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{option}: {path} cannot be made, {nearest} is not writable")


def outside_data(path: Path, data: DataConfig, option: str) -> None:
    """Raise :class:`InputError` for a folder inside of the data's, where what is written would become data."""
    given = getattr(data, "path", None)
    if isinstance(given, str) and path.resolve().is_relative_to(expanded(given, "data.path").resolve()):
        raise InputError(f"{option}: {path} lies in data.path, {given}, and would be read as data; give another")


class Run:
    """A run directory that exists. ``Run(path)`` opens it; InputError when there is none."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not (self.path / "recipe.yaml").is_file():
            there = "has no recipe.yaml: it is no run" if self.path.is_dir() else "does not exist"
            raise InputError(f"run {str(path)!r} {there}; layersync train makes one")
        with warnings.catch_warnings():  # what has no effect was said when the run was started
            warnings.simplefilter("ignore", UserWarning)
            self.recipe: Recipe = load_recipe(self.path / "recipe.yaml")

    @classmethod
    def create(
        cls,
        path: Path,
        recipe: Recipe,
        environment: dict[str, Any],
        data: DataSummary,
        tensors: Mapping[str, Mapping[str, Tensor]],
        captions: Sequence[Sequence[str]] = (),
    ) -> Run:
        """Make the directory, whole or not at all; ``tensors`` become ``NAME.safetensors``.

        ``captions`` are those of the examples in ``tensors["conditions"]``, one by one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            partial = Path(scratch) / "run"
            partial.mkdir()
            written: dict[str, Any] = {"environment.json": environment, "data.json": data.to_mapping()}
            if captions:
                written["captions.json"] = captions
            for name, content in written.items():
                (partial / name).write_text(json.dumps(content, indent=2) + "\n")
            (partial / "recipe.yaml").write_text(recipe.to_yaml())
            for name, values in tensors.items():
                write_tensors(partial / f"{name}.safetensors", values)
            for file in (*partial.iterdir(), partial):
                sync_path(file)
            partial.rename(path)
        return cls(path)

    @property
    def data(self) -> DataSummary:
        """Classes and latent shape of the data that the run was trained on."""
        path = self.path / "data.json"
        try:
            return DataSummary.from_mapping(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is missing or damaged ({error}); the run cannot be used") from None

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device and precision of the run's first sitting, as :func:`environment` gave them."""
        path = self.path / "environment.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is missing or damaged ({error}); the run cannot be used") from None
        return found

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after ``step`` steps lies, or will lie."""
        return self.path / "checkpoints" / f"{CHECKPOINT_PREFIX}{step:08d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        return sorted(checkpoints_in(self.path / "checkpoints"))

    def latest_checkpoint(self) -> Path:
        """The newest checkpoint. InputError when there is none."""
        steps = self.checkpoint_steps()
        if not steps:
            raise InputError(f"run {str(self.path)!r} has no checkpoint yet")
        return self.checkpoint(steps[-1])

    def clear_leftovers(self) -> None:
        """Remove what a training whose writing was interrupted left behind."""
        for leftover in (*self.path.glob(".*.partial"), *(self.path / "checkpoints").glob(f".{CHECKPOINT_PREFIX}*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def append(self, log: str, record: dict[str, Any]) -> None:
        """Add one JSON line to a log such as ``metrics.jsonl``; a torn one before it stays a line of its own."""
        with (self.path / log).open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read() != b"\n":
                    stream.write(b"\n")
            stream.write(f"{json.dumps(record)}\n".encode())

    def records(self, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The whole lines of a log; those that a full disk or a kill tore are left out."""
        path = self.path / log
        found = []
        for line in path.read_text().splitlines(keepends=True) if path.is_file() else ():
            with suppress(json.JSONDecodeError):
                if line.endswith("}\n"):
                    found.append(json.loads(line))
        return found

    def cut_back(self, step: int) -> None:
        """Drop log lines later than ``step``, and torn ones, before a training goes on from there."""
        for log in ("metrics.jsonl", "evaluation.jsonl"):
            if (self.path / log).is_file():
                kept = [record for record in self.records(log) if record["step"] <= step]
                with atomic_write(self.path / log) as partial:
                    partial.write_text("".join(json.dumps(record) + "\n" for record in kept))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that whoever may read the files beside it may read, as the umask says.

    The library's own are its owner's alone.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(apart(tensors), path, metadata=metadata)
    with suppress(OSError):  # a file system that knows no modes
        path.chmod(mode)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, no two in the same memory, as safetensors wants them: tied weights are written under each name."""
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().contiguous().cpu()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in places else value
        places.add(place)
    return found


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The checkpoints in ``RUN/checkpoints`` by step; other names there are not the run's."""
    found = {path.name.removeprefix(CHECKPOINT_PREFIX): path for path in folder.glob(f"{CHECKPOINT_PREFIX}*")}
    return {int(number): path for number, path in found.items() if number.isdecimal()}


def leave_newest(folder: Path, keep: int | None, keep_every: int | None = None) -> None:
    """Remove checkpoints in ``RUN/checkpoints`` that the newest one replaces. Warns of one that cannot be removed.

    Those of an interruption, once the run has gone on to another one; of the others all but the ``keep`` newest and
    those of multiples of ``keep_every`` steps.
    """
    steps = sorted(checkpoints_in(folder).items())
    found = [path for _, path in steps]
    passing = [path for path in found if _of_interruption(path)]
    regular = [(step, path) for step, path in steps if path not in passing]
    replaced = [path for path in passing if path != found[-1]]
    if keep is not None:
        replaced += [path for step, path in regular[:-keep] if keep_every is None or step % keep_every]
    for old in replaced:
        doomed = old.with_name(f".{old.name}")  # an end in between leaves no half of a checkpoint
        try:
            old.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warnings.warn(f"{old}: cannot be removed ({error.strerror}), which is not needed any more", stacklevel=2)


def _of_interruption(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / "state.json").read_text())["interrupted"])
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or damaged
        return False


def differing_keys(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Dotted keys in which two recipes, as mappings, differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs))
        return [
            name
            for key in keys
            for name in differing_keys(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if ours == theirs else [path]


def may_change_on_resume(key: str) -> bool:
    """Keys that a resumed run may have otherwise than its recipe: they change no step that was taken.

    Where memory or disk do not suffice any more, a run can go on in smaller parts and keep fewer checkpoints.
    """
    if key.endswith("_every") or key.split(".")[0] in ("evaluate", "sample"):
        return True
    return key in {f"train.{name}" for name in ("steps", "keep", "accumulate", "gradient_checkpointing")}


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    packages = ("layersync", "torch", "torchaudio", "accelerate", "diffusers", "transformers", "numpy", "scipy")
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def environment(device: torch.device, precision: str, reason: str, processes: int) -> dict[str, Any]:
    """Versions, device, precision and why: ``RUN/environment.json``."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # with the instructions that torch uses: they decide how sums are rounded
        name = f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "python": platform.python_version(),
        "packages": package_versions(),
        "device": str(device),
        "device_name": name,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "precision_reason": reason,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Of the repository that this code is the source of; none where it was installed, be it inside another one."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return None
    top, _, commit = done.stdout.strip().partition("\n")
    return commit if done.returncode == 0 and Path(top).resolve() == root.resolve() else None
