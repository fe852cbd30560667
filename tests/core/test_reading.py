"""Samples that threads read ahead are those that one thread reads, in the same order, and few of them wait."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from layersync import InputError
from layersync.core import reading, shards
from layersync.core.adapter import Example, ExampleDataset, LatentSpec, Tokenizer
from layersync.core.reading import AHEAD_BYTES, read_ahead, reading_threads
from layersync.modalities.image.data import Folder
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig

PIXELS = Pixels(PixelsConfig(image_size=8, channels=1))


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_order_is_kept_and_an_error_comes_in_its_turn(threads: int) -> None:
    def read(number: int) -> int:
        time.sleep(0.02 if number % 2 else 0.0)
        if number == 9:
            raise InputError("the tenth")
        return number

    found = read_ahead(read, range(20), threads, lambda _: 1)
    assert [next(found) for _ in range(9)] == list(range(9))
    with pytest.raises(InputError, match="the tenth"):
        next(found)


@pytest.mark.parametrize(("size", "at_most"), [(1, 8), (AHEAD_BYTES // 2, 2), (2 * AHEAD_BYTES, 1)])
def test_few_wait_to_be_taken(size: int, at_most: int) -> None:
    """As many as are begun once it is known how large they are; four are before."""
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        return number

    ahead = []
    for taken in read_ahead(read, range(40), 4, lambda _: size):
        time.sleep(0.01)
        ahead.append(len(begun) - taken)
    assert max(ahead[8:]) <= at_most and max(ahead) <= 8 and sorted(begun) == list(range(40))


def test_what_is_left_is_not_read() -> None:
    begun: list[int] = []
    found = read_ahead(lambda number: begun.append(number), range(1000), 2, lambda _: 1)
    next(found)
    found.close()
    assert len(begun) <= 5


def test_threads_are_this_processs_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "usable_cores", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    found = [reading_threads()]
    for processes in (2, 3, 8, 100):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        found.append(reading_threads())
    assert found == [8, 6, 4, 0, 0]


class Meeting(ExampleDataset):
    """Every read waits until three are going on, if they may."""

    fingerprint = "meeting"

    def __init__(self, concurrent: bool) -> None:
        self.concurrent, self.readers = concurrent, set[str]()
        self.together = threading.Barrier(3 if concurrent else 1)

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Example:
        self.readers.add(threading.current_thread().name)
        self.together.wait(timeout=30)
        return Example(torch.full((4,), float(index)))


class Fours(Tokenizer):
    fingerprint, latent = "fours", LatentSpec(1, (4,))

    def encode(self, samples: Any) -> list[Tensor]:
        return [sample[None] for sample in samples]

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Any]:
        return list(latents)


@pytest.mark.parametrize("concurrent", [True, False])
def test_a_data_set_is_read_by_several_threads_only_where_it_says_so(
    concurrent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "reading_threads", lambda: 3)
    dataset = Meeting(concurrent)
    shards.build(tmp_path / "cache", dataset, Fours())
    rows = np.fromfile(tmp_path / "cache/shard-00000.bin", dtype=np.float32).reshape(30, 4)
    assert rows[:, 0].tolist() == list(range(30))
    assert len(dataset.readers) == (3 if concurrent else 1)
    assert (threading.current_thread().name in dataset.readers) == (not concurrent)


def test_threads_build_the_same_cache_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its unreadable files, captions and labels included."""
    rng = np.random.default_rng(0)
    for number in range(70):
        file = tmp_path / f"data/{number % 3}/{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
        file.with_suffix(".txt").write_text(f"number {number}\n")
    for broken in ("0/33.png", "1/52.png"):
        (tmp_path / "data" / broken).write_bytes(b"no image")
    dataset = Folder(name="folder", path=str(tmp_path / "data"), on_error="skip").build("train")
    assert dataset.concurrent
    found = []
    for threads in (0, 4):
        monkeypatch.setattr(shards, "reading_threads", lambda threads=threads: threads)
        caplog.clear()
        target = tmp_path / f"by-{threads}"
        shards.build(target, dataset, PIXELS)
        skipped = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
        files = {f.name: f.read_bytes() for f in target.iterdir() if f.suffix != ".lock"}
        found.append((files, skipped))
    assert found[0] == found[1]
    assert len(found[0][1]) == 2
