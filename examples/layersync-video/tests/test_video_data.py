"""Clips: what moves and how, what is read from disk, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import moving
from layersync_video.clip import Clip
from layersync_video.data import Folder, MovingDigits, find_clips, moving_digit
from layersync_video.features import NormalFlow
from layersync_video.render import render_clips
from layersync_video.samples import open_clips, write_clips
from PIL import Image
from sklearn.linear_model import LogisticRegression

from layersync.core.errors import InputError


def velocity(clip: Clip) -> np.ndarray:
    """(frames - 1, 2) rows and columns a frame, by the phase of the lowest frequency: the edges are joined."""
    spectrum = np.fft.fft2(clip.frames[..., 0])
    phases = np.angle(np.stack([spectrum[:, 1, 0], spectrum[:, 0, 1]], axis=1))
    return -np.angle(np.exp(1j * np.diff(phases, axis=0))) * clip.frames.shape[1] / (2 * np.pi)


@pytest.mark.parametrize("index", range(16))
def test_digits_move_as_their_label_says(index: int) -> None:
    dataset = MovingDigits().build("train")
    example = dataset[index]
    words = dataset.classes[example.label].split("-")
    signs = np.array([("down" in words) - ("up" in words), ("right" in words) - ("left" in words)])
    mean = velocity(example.sample).mean(0)
    assert np.allclose(mean / np.linalg.norm(mean), signs / np.linalg.norm(signs), atol=0.05)
    assert 0.95 < np.linalg.norm(mean) < 2.05
    assert velocity(example.sample).std(0).max() < 0.2


def test_a_clip_depends_on_split_and_index_alone() -> None:
    data = MovingDigits(num_examples=60)
    train, test = data.build("train"), data.build("test")
    assert (len(train), len(test)) == (60, 12)
    assert train[7].sample.frames.shape == (16, 16, 16, 1) and train[7].sample.frames.dtype == np.uint8
    again = MovingDigits(num_examples=6000).build("train")
    assert np.array_equal(train[7].sample.frames, again[7].sample.frames)
    assert not np.array_equal(train[7].sample.frames, test[7].sample.frames)
    assert not np.array_equal(train[7].sample.frames, train[15].sample.frames)
    told = {train.fingerprint, test.fingerprint, again.fingerprint}
    assert len(told | {MovingDigits(num_examples=60, image_size=17).build("train").fingerprint}) == 4


def test_motion_tells_the_label_and_no_single_frame_does() -> None:
    dataset = MovingDigits(num_frames=8).build("train")
    examples = [dataset[index] for index in range(960)]
    labels = np.array([example.label for example in examples])
    frames = np.stack([example.sample.frames[5].ravel() for example in examples]) / 255
    flow = np.concatenate(NormalFlow()(examples)["features"])
    read = {}
    for name, features in (("frame", frames), ("flow", flow * 30)):
        read[name] = (
            LogisticRegression(max_iter=300).fit(features[:600], labels[:600]).score(features[600:], labels[600:])
        )
    assert read["frame"] < 0.2 and read["flow"] > 0.7, read  # chance is 0.125


def test_a_tree_is_read_with_its_labels_and_splits(tree: Path) -> None:
    train, test = (Folder(path=str(tree)).build(split) for split in ("train", "test"))
    assert train.classes == ("down-right", "right") and (len(train), len(test)) == (22, 2)
    assert sorted(example.label for example in (test[0], test[1])) == [0, 1]
    first = train[11].sample
    assert len(first) == 5 and first.fps == pytest.approx(8, abs=0.5)  # a GIF counts hundredths of a second
    assert np.array_equal(first.frames[:, ::4, ::4], np.repeat(moving(0, 5).frames, 3, axis=3))
    assert train.fingerprint != test.fingerprint
    assert train.fingerprint != Folder(path=str(tree), fps=4).build("train").fingerprint


def test_own_splits_and_folders_of_pictures(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            folder = tmp_path / split / "waving" / f"clip{number}"
            folder.mkdir(parents=True)
            for place, frame in enumerate(moving(number).frames):
                Image.fromarray(frame[..., 0]).save(folder / f"{place:03d}.png")
    train, test = (Folder(path=str(tmp_path), fps=12).build(split) for split in ("train", "test"))
    assert (len(train), len(test), train.classes) == (3, 2, ("waving",))
    assert train[2].sample.fps == 12 and train[2].label == 0
    assert np.array_equal(train[2].sample.frames[..., :1], moving(2).frames)


def test_frames_that_last_longer_are_shown_longer(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), grey, dtype=np.uint8)) for grey in (10, 90, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=[50, 150, 100], lossless=True)
    clip = open_clips(tmp_path)[0].sample
    assert clip.fps == 20
    assert clip.frames[:, 0, 0, 0].tolist() == [10, 90, 90, 90, 200, 200]


def test_trees_that_hold_no_clips_are_refused_in_one_line(tmp_path: Path, tree: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            Folder(path=str(path)).build("train")[0]
        return str(caught.value)

    assert "does not exist" in refused(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"samples: '.*/nowhere' does not exist"):
        find_clips(tmp_path / "nowhere", "samples")
    assert "is a file, not a folder" in refused(tree / "right" / "000.gif")
    (tmp_path / "walk.mp4").write_bytes(b"\0")
    Image.new("L", (4, 4)).save(tmp_path / "title.png")
    assert "walk.mp4 is no animation: ffmpeg" in refused(tmp_path)
    (tmp_path / "walk.gif").write_bytes((tree / "right" / "000.gif").read_bytes()[:40])
    assert "walk.gif: is damaged" in refused(tmp_path)
    (tmp_path / "walk.gif").unlink()
    Image.new("L", (5, 4)).save(tmp_path / "title2.png")
    assert "several sizes" in refused(tmp_path)


def test_samples_go_out_and_come_back(tmp_path: Path) -> None:
    clips = [moving(0, 8), moving(1, 5)]
    write_clips(tmp_path / "samples.npz", clips, [3, 1])
    found = open_clips(tmp_path / "samples.npz")
    assert [example.label for example in (found[0], found[1])] == [3, 1]
    for number, clip in enumerate(clips):
        assert np.array_equal(found[number].sample.frames, clip.frames) and found[number].sample.fps == clip.fps
    drawn = render_clips(clips, tmp_path / "drawn")
    assert [file.name for file in drawn] == ["frames.png", "000.gif", "001.gif"]
    assert Image.open(drawn[0]).size == (2 + 8 * 66, 2 + 2 * 66)
    with Image.open(drawn[1]) as image:
        assert image.info["loop"] == 0 and image.n_frames == 8
    shown = open_clips(tmp_path / "drawn")
    assert len(shown) == 2 and len(shown[1].sample) == 5  # the sheet is no clip
    assert np.array_equal(shown[0].sample.frames[:, ::4, ::4, 0], clips[0].frames[..., 0])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"frames": np.zeros((2, 4, 4, 4, 1), np.uint8)}, "has no array videos; it holds frames"),
        (
            {"videos": np.zeros((2, 4, 4, 4, 1))},
            r"float64 \[2, 4, 4, 4, 1\]; uint8 \[n, frames, height, width, 1 or 3\]",
        ),
        ({"videos": np.zeros((2, 1, 4, 4, 4), np.uint8)}, "videos have 4 channels; 1 or 3"),
        ({"videos": np.zeros((2, 4, 4, 4, 1), np.uint8), "lengths": [4, 5]}, "lengths go from 4 to 5, not from 1 to 4"),
        ({"videos": np.zeros((2, 4, 4, 4, 1), np.uint8), "fps": [8, 8]}, "fps is int64"),
        ({"videos": np.zeros((2, 4, 4, 4, 1), np.uint8), "labels": [0.5, 1]}, "labels is float64"),
    ],
)
def test_arrays_of_another_layout_are_refused(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(InputError, match=words):
        open_clips(tmp_path / "other.npz")


def test_clips_of_two_sizes_fit_no_array(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several sizes or rates"):
        write_clips(tmp_path / "a.npz", [moving(0), moving_digit("train", 1, 12, 8)], None)
