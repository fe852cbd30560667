"""The latent cache: what is read is what was encoded, and a stale or torn cache is never read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from layersync import InputError
from layersync.core.adapter import Example, ExampleDataset, LatentSpec, Tokenizer
from layersync.core.draws import StepDraws
from layersync.core.latents import LatentCache, cache_key
from layersync.modalities.image.data import Digits, Folder
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig

Make = Callable[..., Any]
PIXELS = Pixels(PixelsConfig(image_size=8, channels=1))


def draws(indices: list[int], variant: float = 0.0, position: float = 0.0, caption: float = 0.0) -> StepDraws:
    filled = [torch.full((len(indices),), value) for value in (0.5, 0.5, variant, position)]
    return StepDraws(np.array(indices), *filled, torch.zeros(1), None, torch.full((len(indices),), caption))


class Clips(ExampleDataset):
    """Clips of differing lengths; frame f of clip c holds 100 c + f."""

    fingerprint, classes = "clips", ("a", "b")

    def __init__(self, lengths: tuple[int, ...] = (9, 4, 30), variants: tuple[str, ...] = ("original",)):
        self.lengths, self.variants = lengths, variants

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        return Example(100 * index + torch.arange(self.lengths[index]).float(), {"label": index % 2}, f"clip {index}")

    def variant(self, sample: Tensor, name: str) -> Tensor:
        return -sample if name == "negative" else sample


class Frames(Tokenizer):
    """One channel a frame, as a sequence or as a spectrogram of 3 rows."""

    fingerprint = "frames"

    def __init__(self, sequence: bool = True, window: int = 8):
        self.latent = LatentSpec(2, (window,) if sequence else (3, window), sequence=sequence, variable=True)

    def encode(self, samples: Any) -> list[Tensor]:
        if self.latent.sequence:
            return [torch.stack([s, s + 0.5], 1) for s in samples]
        return [torch.stack([s, s + 0.5])[:, None].repeat(1, 3, 1) for s in samples]

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Any]:
        return list(latents)


def test_read_equals_encode() -> None:
    dataset = Digits(name="digits", flip=True).build("train")
    cache = LatentCache.open(dataset, PIXELS)
    chosen = [0, 7, 400, len(dataset) - 1]
    for variant, name in ((0.0, "original"), (0.99, "flip")):
        batch = cache.read(draws(chosen, variant))
        wanted = PIXELS.encode([dataset.variant(dataset[index].sample, name) for index in chosen])
        assert torch.equal(batch.stored, torch.stack(wanted))
        assert batch.mask is None
        assert batch.label.tolist() == [dataset[index].condition["label"] for index in chosen]
    assert len(cache) == len(dataset) and torch.equal(cache.stored(7, 1), PIXELS.encode([dataset[7].sample])[0].flip(2))


@pytest.mark.parametrize("sequence", [True, False])
def test_windows_are_cut_and_padding_is_masked(tmp_path: Path, sequence: bool) -> None:
    cache = LatentCache.open(Clips(), Frames(sequence), directory=tmp_path)
    assert cache.frames.tolist() == [9, 4, 30]
    for position, first in ((0.0, [0, 100, 200]), (0.999, [1, 100, 222])):
        batch = cache.read(draws([0, 1, 2], position=position))
        assert batch.stored.shape == ((3, 8, 2) if sequence else (3, 2, 3, 8))
        frames = batch.stored[..., 0] if sequence else batch.stored[:, 0, 1]
        assert frames[:, 0].tolist() == first
        assert frames[2].tolist() == list(range(first[2], first[2] + 8))
        assert frames[1].tolist() == [100, 101, 102, 103, 0, 0, 0, 0]
        assert batch.mask is not None and batch.mask.sum(1).tolist() == [8, 4, 8]
        assert batch.captions == ("", "", "")


class Captioned(Clips):
    """The first clip has two texts, the second one, the third none."""

    fingerprint = "captioned"

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        text = ({"text": ("a walk", "someone walks")}, {"text": "a run"}, {})[index]
        return Example(example.sample, {**example.condition, **text})


def test_captions_are_kept_and_one_of_several_is_drawn(tmp_path: Path) -> None:
    cache = LatentCache.open(Captioned(), Frames(), directory=tmp_path)
    assert [tuple(texts) for texts in cache.captions] == [("a walk", "someone walks"), ("a run",), ()]
    assert cache.read(draws([0, 1, 2], caption=0.49)).captions == ("a walk", "a run", "")
    assert cache.read(draws([0, 1, 2], caption=0.51)).captions == ("someone walks", "a run", "")


def test_all_window_positions_occur_equally(tmp_path: Path) -> None:
    cache = LatentCache.open(Clips((10,)), Frames(), directory=tmp_path)
    firsts = [int(cache.read(draws([0], position=p)).stored[0, 0, 0]) for p in np.linspace(0, 0.9999, 300)]
    assert [firsts.count(n) for n in range(3)] == [100, 100, 100]


def test_variants_lie_beside_each_other(tmp_path: Path) -> None:
    cache = LatentCache.open(Clips(variants=("original", "negative")), Frames(), directory=tmp_path)
    assert cache.frames.tolist() == [9, 4, 30]
    batch = cache.read(draws([2], variant=0.6))
    assert batch.stored[0, :3, 0].tolist() == [-200, -201, -202]
    assert len(list(cache.clips())) == 6


def test_clips_to_fit_on_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LatentCache.open(Clips((3,) * 9, ("original", "negative")), Frames(), directory=tmp_path)
    assert len(list(cache.clips())) == 18
    monkeypatch.setattr("layersync.core.latents.FIT_LIMIT", 5)
    firsts = [float(clip[0, 0]) for clip in cache.clips()]
    assert firsts == [sign * 100.0 * number for number in (0, 2, 4, 6, 8) for sign in (1, -1)]


def test_the_key_changes_with_data_tokenizer_and_variants() -> None:
    digits = Digits(name="digits")
    keys = [
        cache_key(digits.build("train"), PIXELS),
        cache_key(digits.build("test"), PIXELS),
        cache_key(Digits(name="digits", flip=True).build("train"), PIXELS),
        cache_key(digits.build("train"), Pixels(PixelsConfig(image_size=16, channels=1))),
        cache_key(digits.build("train"), Pixels(PixelsConfig(image_size=8, channels=3))),
    ]
    assert len(set(keys)) == 5 and keys[0] == cache_key(digits.build("train"), PIXELS)


def pictures(root: Path, count: int = 6) -> Path:
    for index in range(count):
        folder = root / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * index + 5, np.uint8)).save(folder / f"{index}.png")
    return root


def test_a_changed_picture_or_label_makes_a_new_cache(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    keys = [cache_key(Folder(name="folder", path=str(root)).build("train"), PIXELS)]
    Image.fromarray(np.full((8, 8), 1, np.uint8)).save(root / "dog" / "0.png")
    keys.append(cache_key(Folder(name="folder", path=str(root)).build("train"), PIXELS))
    (root / "dog" / "0.png").rename(root / "cat" / "0.png")
    keys.append(cache_key(Folder(name="folder", path=str(root)).build("train"), PIXELS))
    assert len(set(keys)) == 3


def test_it_is_built_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LatentCache.open(Clips(), Frames(), directory=tmp_path)
    monkeypatch.setattr(Frames, "encode", lambda *_: pytest.fail("tokenized twice"))
    assert len(LatentCache.open(Clips(), Frames(), directory=tmp_path)) == 3


@pytest.mark.parametrize("damage", ["rows", "meta", "no meta", "index"])
def test_a_torn_cache_is_built_anew(tmp_path: Path, damage: str) -> None:
    whole = LatentCache.open(Clips(), Frames(), directory=tmp_path)
    wanted, folder = whole.read(draws([0, 2])).stored, whole.directory
    if damage == "rows":
        rows = folder / "shard-00000.bin"
        rows.write_bytes(rows.read_bytes()[:-5])
    elif damage == "index":
        (folder / "index.npz").unlink()
    elif damage == "meta":
        (folder / "meta.json").write_text('{"format": 1, "by')
    else:
        (folder / "meta.json").unlink()
    again = LatentCache.open(Clips(), Frames(), directory=tmp_path)
    assert torch.equal(again.read(draws([0, 2])).stored, wanted)
    assert not list(tmp_path.glob(".build-*"))


BUILDER = """
import os, sys, time
from pathlib import Path
from layersync.core.latents import LatentCache
from layersync.modalities.image.data import Digits
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig

class Counted(Pixels):
    def encode(self, samples):
        with open(sys.argv[2], "a") as stream:
            stream.write(f"{len(samples)}\\n")
        return super().encode(samples)

dataset = Digits(name="digits").build("train")
meeting = Path(sys.argv[3])
(meeting / str(os.getpid())).touch()
while len(list(meeting.iterdir())) < 2:
    time.sleep(0.001)
cache = LatentCache.open(dataset, Counted(PixelsConfig(image_size=8, channels=1)),
                         directory=Path(sys.argv[1]))
print(len(cache), float(sum(clip.sum() for clip in cache.clips())))
"""


def test_two_processes_at_once_build_one(tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    places = [str(tmp_path / name) for name in ("latents", "encoded", "meeting")]
    command = [sys.executable, "-c", BUILDER, *places]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and said[0] == said[1]
    size = len(Digits(name="digits").build("train"))
    assert sum(map(int, (tmp_path / "encoded").read_text().split())) == size
    assert len([p for p in (tmp_path / "latents").iterdir() if p.is_dir()]) == 1


def test_a_corrupt_picture_stops_and_is_named(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    (root / "cat" / "3.png").write_bytes(b"\x89PNG nothing")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"cat/3\.png: is corrupt or no image"):
        LatentCache.open(Folder(name="folder", path=str(root)).build("train"), PIXELS, directory=tmp_path / "cache")
    assert not [p for p in set(tmp_path.rglob("*")) - before if p.is_dir() and p != tmp_path / "cache"]


def test_a_corrupt_picture_can_be_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = pictures(tmp_path / "data")
    (root / "cat" / "3.png").write_bytes(b"\x89PNG nothing")
    dataset = Folder(name="folder", path=str(root), on_error="skip").build("train")
    cache = LatentCache.open(dataset, PIXELS, directory=tmp_path / "cache")
    assert len(cache) == 5 and cache.meta["skipped"] == 1
    assert "1 of 6 samples could not be read and were skipped" in caplog.text and "3.png" in caplog.text
    for entry, example in enumerate(cache.examples):
        assert torch.equal(cache.stored(entry), PIXELS.encode([dataset[int(example)].sample])[0])
        assert cache.labels[entry] == dataset[int(example)].condition["label"]


@pytest.mark.parametrize("classes", [("a",), ()])
def test_labels_that_are_no_classes_any_more_are_refused(classes: tuple[str, ...], tmp_path: Path) -> None:
    """Of data whose classes have changed and whose fingerprint has not."""
    LatentCache.open(Clips(), Frames(), directory=tmp_path)
    fewer = Clips()
    fewer.classes = classes
    with pytest.raises(
        InputError, match=f"Clips: has labels from 0 to 1 of {len(classes)} classes; a label is an index"
    ):
        LatentCache.open(fewer, Frames(), directory=tmp_path)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data", 2)
    for file in root.rglob("*.png"):
        file.write_bytes(b"nothing")
    dataset = Folder(name="folder", path=str(root), on_error="skip").build("train")
    with pytest.raises(InputError, match="nothing could be read"):
        LatentCache.open(dataset, PIXELS, directory=tmp_path / "cache")
