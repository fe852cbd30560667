"""Anybody's audio samples: folders and arrays in, clips out, and what is refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from layersync.core.errors import InputError
from layersync.modalities.audio.adapter import AudioAdapter
from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.samples import open_audio_samples, write_waveforms

WriteAudio = Callable[..., Path]


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as raised:
        dataset = open_audio_samples(path)
        for index in range(len(dataset)):
            dataset[index]
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_a_folder_is_read_at_any_depth_in_the_order_of_names(write_audio: WriteAudio, tmp_path: Path) -> None:
    for number, name in enumerate(["b.wav", "a/z.flac", "a/c.ogg", "c.mp3", "a.wav", ".hidden/x.wav"]):
        write_audio(name, frequency=200.0 + 100 * number)
    (tmp_path / "notes.md").write_text("not audio")
    dataset = AudioAdapter().open_samples(tmp_path)
    sources = [Path(dataset[index].source).relative_to(tmp_path).as_posix() for index in range(len(dataset))]
    assert sources == ["a.wav", "a/c.ogg", "a/z.flac", "b.wav", "c.mp3"]
    clip = dataset[3].sample
    expected, rate = soundfile.read(tmp_path / "b.wav", dtype="float32")
    assert clip.sample_rate == rate == 16000
    np.testing.assert_array_equal(clip.waveform, expected)
    assert dataset.classes == () and not dataset[0].condition


def test_linked_folders_are_read_as_others_are(write_audio: WriteAudio, tmp_path: Path) -> None:
    for name in ("of-one/a.wav", "of-two/b.wav"):
        write_audio(name)
    joint = tmp_path / "joint"
    joint.mkdir()
    for name in ("of-one", "of-two"):
        (joint / name).symlink_to(tmp_path / name)
    dataset = open_audio_samples(joint)
    assert [dataset[index].source for index in range(2)] == [str(joint / "of-one/a.wav"), str(joint / "of-two/b.wav")]
    (joint / "again").symlink_to(tmp_path / "of-two")
    with pytest.warns(UserWarning, match=rf"{joint}: links to folders that are read already are left out: \S+of-two"):
        assert len(open_audio_samples(joint)) == 2


def test_captions_beside_the_files_become_texts(write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("a.wav")
    write_audio("deep/b.wav")
    (tmp_path / "deep/b.txt").write_text("\n  ein Hund bellt \na dog barks\n", encoding="utf-8")
    dataset = open_audio_samples(tmp_path)
    assert [dict(dataset[index].condition) for index in range(2)] == [{}, {"text": "ein Hund bellt"}]


def test_a_name_that_is_no_utf8_is_read_as_others_are(write_audio: WriteAudio, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/set/caf\xe9.wav"))
    write_audio("set/plain.wav", 300).rename(odd)
    odd.with_suffix(".txt").write_text("a tone\n")
    dataset = open_audio_samples(tmp_path / "set")
    example = dataset[0]
    assert len(dataset) == 1 and example.source == str(odd) and example.captions == ("a tone",)
    assert example.sample.waveform.max() > 0.1 and len(dataset.fingerprint) > 16


def test_an_empty_or_binary_caption_is_named(write_audio: WriteAudio, tmp_path: Path) -> None:
    write_audio("a.wav")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "a.txt", "UTF-8")
    (tmp_path / "a.txt").write_text(" \n")
    refused(tmp_path, "a.txt", "holds no caption")


def test_different_sample_rates_are_said_once(write_audio: WriteAudio, tmp_path: Path) -> None:
    for name, rate in (("a.wav", 16000), ("b.wav", 44100), ("c.wav", 16000)):
        write_audio(name, rate=rate)
    with pytest.warns(UserWarning, match="16000, 44100 Hz") as said:
        dataset = open_audio_samples(tmp_path)
    assert len(said) == 1 and [dataset[index].sample.sample_rate for index in range(3)] == [16000, 44100, 16000]
    (tmp_path / "b.wav").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_audio_samples(tmp_path)


def test_the_fingerprint_follows_contents_names_and_captions(write_audio: WriteAudio, tmp_path: Path) -> None:
    file = write_audio("a.wav")
    write_audio("b.wav")
    prints = [open_audio_samples(tmp_path).fingerprint for _ in range(2)]
    write_audio("a.wav", seed=1)
    prints.append(open_audio_samples(tmp_path).fingerprint)
    file.rename(tmp_path / "c.wav")
    prints.append(open_audio_samples(tmp_path).fingerprint)
    (tmp_path / "c.txt").write_text("a tone")
    prints.append(open_audio_samples(tmp_path).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 4


def test_what_cannot_be_read_is_named(write_audio: WriteAudio, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such")
    refused(tmp_path, str(tmp_path), "no audio file", ".wav")
    good = write_audio("a.wav")
    refused(good, "a.wav", "folder")
    (tmp_path / "b.wav").write_text("not audio")
    refused(tmp_path, "b.wav", "cannot be read as audio")
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 16000)
    refused(tmp_path, "b.wav", "no samples")


@pytest.mark.parametrize("kind", ["files", "array"])
def test_silent_sounds_are_scored_as_they_are_and_said_once(kind: str, write_audio: WriteAudio, tmp_path: Path) -> None:
    """As those of a run are: a model that makes them is not spared them."""
    tone, silence = np.sin(np.arange(800) / 5).astype(np.float32) / 2, np.zeros(800, dtype=np.float32)
    path = tmp_path / "out.npz" if kind == "array" else tmp_path
    if kind == "array":
        np.savez(path, waveforms=np.stack([tone, silence, silence]), sample_rate=16000)
    else:
        for name, waveform in (("a", tone), ("b", silence), ("c", silence)):
            soundfile.write(tmp_path / f"{name}.wav", waveform, 16000)
    dataset = open_audio_samples(path)
    with pytest.warns(UserWarning, match="is silent .* scored as they are") as said:
        peaks = [float(np.abs(dataset[index].sample.waveform).max()) for index in range(3)]
    assert peaks[0] > 0.4 and peaks[1:] == [0, 0] and len(said) == 1


class TestArrays:
    def test_clips_of_any_lengths_come_back(self, tmp_path: Path) -> None:
        path = tmp_path / "out.npz"
        waveforms = [np.random.default_rng(0).uniform(-0.5, 0.5, length).astype(np.float32) for length in (40, 7, 25)]
        write_waveforms(path, [Clip(waveform, 22050) for waveform in waveforms])
        dataset = open_audio_samples(path)
        for index, waveform in enumerate(waveforms):
            np.testing.assert_array_equal(dataset[index].sample.waveform, waveform)

    def test_clips_of_several_rates_do_not_fit_one_array(self, tmp_path: Path) -> None:
        clips = [Clip(np.zeros(8, np.float32), rate) for rate in (22050, 8000, 22050)]
        with pytest.raises(InputError, match=r"out\.npz: clips of 8000, 22050 Hz do not fit one array; take the WAVs"):
            write_waveforms(tmp_path / "out.npz", clips)
        assert list(tmp_path.iterdir()) == []

    def test_rows_of_an_npz_are_clips(self, tmp_path: Path) -> None:
        path = tmp_path / "out.npz"
        waveforms = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 800))
        waveforms[2] *= 4
        np.savez(path, waveforms=waveforms, sample_rate=22050)
        dataset = open_audio_samples(path)
        assert len(dataset) == 3 and dataset[1].sample.sample_rate == 22050
        assert dataset[1].sample.waveform.dtype == np.float32
        np.testing.assert_allclose(dataset[1].sample.waveform, waveforms[1], atol=1e-7)
        assert np.abs(dataset[2].sample.waveform).max() == pytest.approx(1)
        assert "clip 1" in dataset[1].source

    def test_the_fingerprint_follows_the_contents(self, tmp_path: Path) -> None:
        path, prints = tmp_path / "out.npz", []
        for level in (0.1, 0.2):
            np.savez(path, waveforms=np.full((2, 100), level), sample_rate=16000)
            prints.append(open_audio_samples(path).fingerprint)
        assert prints[0] != prints[1]

    def test_an_npy_has_no_sample_rate(self, tmp_path: Path) -> None:
        np.save(tmp_path / "out.npy", np.full((2, 100), 0.1))
        refused(tmp_path / "out.npy", "out.npy", "sample_rate=", "savez")

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"waveforms": np.full((2, 9), 0.1)}, ["sample_rate", "holds waveforms"]),
            ({"sample_rate": 16000}, ["waveforms"]),
            ({"waveforms": np.full(9, 0.1), "sample_rate": 16000}, ["[9]"]),
            ({"waveforms": np.ones((2, 9), np.int16), "sample_rate": 16000}, ["int16", "floating"]),
            ({"waveforms": np.ones((0, 9)), "sample_rate": 16000}, ["[0, 9]"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": 0}, ["positive"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": 16000.5}, ["whole"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": "fast"}, ["sample_rate"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": np.nan}, ["sample_rate"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": [1, 2]}, ["sample_rate"]),
            ({"waveforms": np.array([[0.1, np.nan]]), "sample_rate": 16000}, ["clip 0", "not finite"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": 1, "lengths": [9]}, ["lengths", "[clips]"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": 1, "lengths": [9, 0]}, ["lengths", "from 1 to 9"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": 1, "lengths": [9, 10]}, ["lengths", "from 1 to 9"]),
            ({"waveforms": np.full((2, 9), 0.1), "sample_rate": 1, "lengths": [9, 8.5]}, ["lengths", "whole"]),
            ({"waveforms": np.array([[None]]), "sample_rate": 16000}, ["no readable npz file"]),
        ],
    )
    def test_bad_arrays_are_refused(self, arrays: dict[str, object], words: list[str], tmp_path: Path) -> None:
        path = tmp_path / "out.npz"
        np.savez(path, **arrays)
        refused(path, str(path), *words)

    def test_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "out.npz"
        np.savez(path, waveforms=np.full((2, 100), 0.1), sample_rate=16000)
        path.write_bytes(path.read_bytes()[:200])
        refused(path, "out.npz", "no readable npz file")
