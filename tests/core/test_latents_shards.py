"""Building latents at scale: bounded files, several processes, killed and resumed, damaged and found out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from layersync import InputError, load_recipe
from layersync.core import shards
from layersync.core.adapter import Example, ExampleDataset, LatentSpec, Tokenizer
from layersync.core.draws import StepDraws
from layersync.core.latents import LatentCache, cache_key
from layersync.modalities.image.data import Digits, Folder
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig

PIXELS = Pixels(PixelsConfig(image_size=8, channels=1))
DIGITS = Digits(name="digits", flip=True)
EXAMPLES, BYTES = 200, 40_000


def build(
    target: Path, dataset: ExampleDataset, tokenizer: Tokenizer, examples: int = EXAMPLES, size: int = BYTES
) -> None:
    """As the package builds a cache, in smaller shards and files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_EXAMPLES", examples)
        patch.setattr(shards, "SHARD_BYTES", size)
        shards.build(target, dataset, tokenizer)


def draws(indices: list[int], variant: float = 0.0) -> StepDraws:
    filled = [torch.full((len(indices),), value) for value in (0.5, 0.5, variant, 0.5)]
    return StepDraws(np.array(indices), *filled, torch.zeros(1), None, torch.zeros(len(indices)))


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a cache, but for the record of what was verified and when, and (empty) locks."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "verified.json" and f.suffix != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in shards of 200, built by one process at one go; the folder that holds the cache."""
    root = tmp_path_factory.mktemp("whole")
    dataset = DIGITS.build("train")
    build(root / cache_key(dataset, PIXELS), dataset, PIXELS)
    return root


def test_files_are_bounded_and_hold_what_was_encoded(whole: Path) -> None:
    dataset = DIGITS.build("train")
    cache = LatentCache.open(dataset, PIXELS, directory=whole)
    sizes = {f.name: f.stat().st_size for f in cache.directory.glob("*.bin")}
    assert max(sizes.values()) <= BYTES and sum(sizes.values()) == len(dataset) * 2 * 64 * 4
    assert len(sizes) > len(dataset) / EXAMPLES and "shard-00000-1.bin" in sizes
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if path.is_relative_to(whole)], "of thousands of files none stays open"
    chosen = np.random.default_rng(0).permutation(len(dataset)).tolist()
    for variant, name in ((0.0, "original"), (0.99, "flip")):
        wanted = PIXELS.encode([dataset.variant(dataset[index].sample, name) for index in chosen])
        batch = cache.read(draws(chosen, variant))
        assert torch.equal(batch.stored, torch.stack(wanted))
        assert batch.label.tolist() == [dataset[index].condition["label"] for index in chosen]
        assert torch.equal(cache.stored(chosen[3], int(variant > 0.5)), wanted[3])


class Clips(ExampleDataset):
    """Clips of differing lengths, with captions; frame f of clip c holds 100 c + f."""

    fingerprint, classes, lengths = "clips", ("a", "b"), (9, 4, 30, 7, 5)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        frames = 100 * index + torch.arange(self.lengths[index]).float()
        return Example(frames, {"label": index % 2, "text": (f"clip {index}", "a clip")[: index % 3]})


class Frames(Tokenizer):
    fingerprint = "frames"
    latent = LatentSpec(1, (8,), sequence=True, variable=True)

    def encode(self, samples: Any) -> list[Tensor]:
        return [sample[:, None] for sample in samples]

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Any]:
        return list(latents)


def test_clips_stay_in_one_piece_and_captions_with_their_clip(tmp_path: Path) -> None:
    dataset, tokenizer = Clips(), Frames()
    target = tmp_path / cache_key(dataset, tokenizer)
    build(target, dataset, tokenizer, examples=2, size=40)
    cache = LatentCache.open(dataset, tokenizer, directory=tmp_path)
    sizes = {f.name: f.stat().st_size for f in target.glob("*.bin")}
    assert sizes == {  # 9 frames and 4 frames do not fit in 40 bytes; 30 frames are one clip
        "shard-00000.bin": 36, "shard-00000-1.bin": 16, "shard-00001.bin": 120, "shard-00001-1.bin": 28,
        "shard-00002.bin": 20,
    }  # fmt: skip
    assert cache.frames.tolist() == list(Clips.lengths)
    assert [clip[0, 0].item() for clip in cache.clips()] == [0, 100, 200, 300, 400]
    batch = cache.read(draws([4, 2, 0]))
    assert batch.captions == ("clip 4", "clip 2", "") and batch.label.tolist() == [0, 0, 0]
    assert batch.stored[:, 0, 0].tolist() == [400, 211, 1]
    assert cache.captions == [[], ["clip 1"], ["clip 2", "a clip"], [], ["clip 4"]]


class Unsteady(Frames):
    """Encodes clip 3, which has 7 frames, in a way of its own until it is repaired."""

    broken: Callable[[Tensor], Any] | None

    def encode(self, samples: Any) -> list[Tensor]:
        encoded = super().encode(samples)
        return [self.broken(clip) if self.broken and len(clip) == 7 else clip for clip in encoded]


@dataclass(frozen=True)
class Recording:
    rate: int
    frames: Tensor | None


class Recordings(Clips):
    """Clips as a modality of a user's may hold them, the third of which cannot be read."""

    on_error = "skip"

    def __getitem__(self, index: int) -> Example:
        if index == 2:
            raise InputError("clip 2 is torn")
        example = super().__getitem__(index)
        return Example(Recording(8000, example.sample), example.condition)


class Counting(Frames):
    """Notes how many samples it is given at once."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def encode(self, samples: Any) -> list[Tensor]:
        self.given.append(len(samples))
        return super().encode([sample.frames for sample in samples])


def test_large_samples_are_encoded_fewer_at_once_and_give_the_same_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = Counting(), Counting()
    build(tmp_path / "whole", Recordings(), whole)
    monkeypatch.setattr(shards, "ENCODE_BYTES", 13 * 4)  # of the first two clips
    build(tmp_path / "parts", Recordings(), parts)
    assert (whole.given, parts.given) == ([4], [2, 2])
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda clip: clip.double(), "expected float32 tensors on the CPU; got torch.float64 on cpu of example 3"),
        (lambda clip: clip.numpy(), "expected float32 tensors on the CPU; got ndarray"),
        (lambda clip: clip[:, 0], "expected 2 axes, laid out as [8, 1]; got [7] of example 3"),
        (lambda clip: clip[:0], "expected frames along axis 0; got [0, 1] of example 3"),
        (lambda clip: clip / (clip - 302), "expected finite numbers; got 1 of 7 that are not, of example 3"),
        (lambda clip: clip.repeat(1, 2), "all of one shape, [1] so far; got [7, 2] of example 3"),
    ],
)
def test_a_stored_form_of_another_shape_is_refused_and_never_kept(broken: Any, said: str, tmp_path: Path) -> None:
    dataset, tokenizer = Clips(), Unsteady()
    tokenizer.broken = broken
    with pytest.raises(InputError, match=r"^Unsteady\.encode: expected") as raised:
        LatentCache.open(dataset, tokenizer, directory=tmp_path)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    tokenizer.broken = None
    assert LatentCache.open(dataset, tokenizer, directory=tmp_path).frames.tolist() == list(Clips.lengths)


def test_shards_of_different_shapes_make_no_cache(tmp_path: Path) -> None:
    dataset, tokenizer = Clips(), Unsteady()
    tokenizer.broken = lambda clip: clip.repeat(1, 2)
    target = tmp_path / cache_key(dataset, tokenizer)
    for _ in range(2):  # finished shards stay, and are refused again
        with pytest.raises(InputError, match=r"Unsteady\.encode: expected one shape .* rows of \[1\] and \[2\]"):
            build(target, dataset, tokenizer, examples=1)
        assert not shards.complete(target)


def test_a_grid_that_is_not_the_latents_is_refused(tmp_path: Path) -> None:
    dataset, tokenizer = DIGITS.build("train"), Pixels(PixelsConfig(image_size=8, channels=1))
    LatentCache.open(dataset, tokenizer, limit=3, directory=tmp_path / "kept")
    tokenizer.latent = LatentSpec(1, (4, 4))
    with pytest.raises(InputError, match=r"Pixels\.encode: expected \[1, 4, 4\], besides channels; got \[1, 8, 8\]"):
        LatentCache.open(dataset, tokenizer, limit=3, directory=tmp_path / "new")
    with pytest.raises(InputError, match=r"Pixels\.latent is \[1, 4, 4\], but the latents kept .* rows of \[1, 8, 8\]"):
        LatentCache.open(dataset, tokenizer, limit=3, directory=tmp_path / "kept")


class Slow(Pixels):
    """Waits before it encodes, and writes down how much it did."""

    def __init__(self, log: Path, pause: float):
        super().__init__(PIXELS.config)
        self.log, self.pause = log, pause

    def encode(self, samples: Any) -> list[Tensor]:
        time.sleep(self.pause)
        with self.log.open("a") as stream:
            stream.write(f"{len(samples)}\n")
        return super().encode(samples)


def builder(root: Path, log: Path, pause: float) -> Any:
    """A process of its own that builds the cache of the digits."""
    dataset = DIGITS.build("train")
    target, tokenizer = root / cache_key(dataset, PIXELS), Slow(log, pause)
    process = get_context("fork").Process(target=build, args=(target, dataset, tokenizer))
    process.start()
    return process


def ended(process: Any) -> int:
    process.join(60)
    return process.exitcode


def encoded(log: Path) -> int:
    return sum(map(int, log.read_text().split()))


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_midway_and_run_again_is_the_same_and_redoes_nothing_finished(tmp_path: Path, whole: Path) -> None:
    process = builder(tmp_path, tmp_path / "log", 0.05)
    wait_for(lambda: len(list(tmp_path.glob("*/shard-*.json"))) >= 2 and bool(list(tmp_path.glob("*/.*.partial"))))
    process.kill()
    assert ended(process) == -signal.SIGKILL
    (target,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    finished = {f.name: f.stat().st_mtime_ns for f in target.glob("shard-*")}
    assert not (target / "meta.json").exists() and list(target.glob(".*.partial"))
    before = encoded(tmp_path / "log")
    assert ended(builder(tmp_path, tmp_path / "log", 0.0)) == 0
    assert {name: (target / name).stat().st_mtime_ns for name in finished} == finished
    assert contents(target) == contents(whole / target.name)
    size = 2 * len(DIGITS.build("train"))
    kept = sum(len(shards.read_shard(target, number).frames) for number in range(len(list(target.glob("*.json")))) if
               f"shard-{number:05d}.json" in finished)  # fmt: skip
    assert encoded(tmp_path / "log") - before == size - kept


def test_two_processes_share_the_work_and_equal_one(tmp_path: Path, whole: Path) -> None:
    both = [builder(tmp_path, tmp_path / f"log{number}", 0.03) for number in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    (target,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert contents(target) == contents(whole / target.name)
    counts = [encoded(tmp_path / f"log{number}") for number in range(2)]
    assert min(counts) > 0 and sum(counts) == 2 * len(DIGITS.build("train"))


def test_a_process_that_is_killed_is_replaced_by_the_one_that_waits(tmp_path: Path, whole: Path) -> None:
    first = builder(tmp_path, tmp_path / "log0", 3.0)
    wait_for(lambda: bool(list(tmp_path.glob("*/.*.partial"))) or bool(list(tmp_path.glob("*/.*.lock"))))
    second = builder(tmp_path, tmp_path / "log1", 0.0)
    wait_for(lambda: len(list(tmp_path.glob("*/shard-*.json"))) == 7)  # all but the first's
    first.kill()
    assert ended(first) == -signal.SIGKILL and ended(second) == 0
    (target,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert contents(target) == contents(whole / target.name)


@pytest.mark.parametrize("read_before", [False, True])
def test_a_flipped_byte_is_found_and_its_shard_alone_built_anew(
    tmp_path: Path, whole: Path, read_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = DIGITS.build("train")
    target = tmp_path / cache_key(dataset, PIXELS)
    build(target, dataset, PIXELS)
    if read_before:
        LatentCache.open(dataset, PIXELS, directory=tmp_path)
    damaged = target / "shard-00003-1.bin"
    content = bytearray(damaged.read_bytes())
    content[777] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00003-1\.bin is damaged.* delete it and run again"):
        LatentCache.open(dataset, PIXELS, directory=tmp_path)
    times = {f.name: f.stat().st_mtime_ns for f in target.glob("*.bin") if "00003" not in f.name}
    damaged.unlink()
    LatentCache.open(dataset, PIXELS, directory=tmp_path)
    assert contents(target) == contents(whole / target.name)
    assert {name: (target / name).stat().st_mtime_ns for name in times} == times
    monkeypatch.setattr(shards, "_checksum", lambda _: pytest.fail("verified twice"))
    LatentCache.open(dataset, PIXELS, directory=tmp_path)


def test_all_is_checked_again_where_the_record_of_it_is_gone(tmp_path: Path) -> None:
    dataset, tokenizer = Clips(), Frames()
    file = LatentCache.open(dataset, tokenizer, directory=tmp_path).directory / "shard-00000.bin"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    LatentCache.open(dataset, tokenizer, directory=tmp_path)  # as large and as old as when it was checked
    (file.parent / "verified.json").unlink()
    with pytest.raises(InputError, match=r"shard-00000\.bin is damaged"):
        LatentCache.open(dataset, tokenizer, directory=tmp_path)


def test_an_unreadable_sample_keeps_what_was_finished_before(tmp_path: Path) -> None:
    for index in range(8):
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "5.png").write_bytes(b"nothing")
    dataset = Folder(name="folder", path=str(tmp_path)).build("train")
    target = tmp_path / "cache"
    with pytest.raises(InputError, match=r"5\.png: is corrupt"):
        build(target, dataset, PIXELS, examples=3)
    assert [f.name for f in target.glob("shard-*.json")] == ["shard-00000.json"]
    assert not list(target.glob(".*.partial")) and not (target / "meta.json").exists()


def test_work_goes_on_in_shards_as_it_was_begun(tmp_path: Path) -> None:
    dataset, target = DIGITS.build("test"), tmp_path / "cache"
    build(target, dataset, PIXELS, examples=100)
    (target / "meta.json").unlink()
    before = {f.name: f.stat().st_mtime_ns for f in target.glob("shard-*")}
    build(target, dataset, PIXELS, examples=50)
    assert {f.name: f.stat().st_mtime_ns for f in target.glob("shard-*")} == before
    assert sum(name.endswith(".json") for name in before) == 4


def test_the_command_tokenizes_and_training_finds_it(
    tiny_file: Path, command: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "cache"))
    status, out, said = command("data", "tokenize", tiny_file, "--set", "data.split=test")
    held_out = load_recipe(tiny_file).data.build("test")
    assert status == 0 and f"train: {len(held_out):,} examples" in said and "held out" not in said
    status, out, said = command("data", "tokenize", tiny_file)
    dataset = load_recipe(tiny_file).data.build("train")
    assert status == 0 and out == "" and f"train: {len(dataset):,} examples" in said and "held out" in said
    monkeypatch.setattr(Pixels, "encode", lambda *_: pytest.fail("tokenized twice"))
    status, _, said = command("train", tiny_file, "--out", tmp_path / "run", "--set", "train.steps=1")
    assert status == 0, said
