"""gm-notes: rendered from the packaged soundfont, the same wherever and however often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from layersync.core.errors import InputError
from layersync.modalities.audio.gm_notes import CLASSES, SOUNDFONT, GmNotes, GmNotesConfig, planned_notes

RENDER = """
import hashlib, sys
from layersync.modalities.audio.gm_notes import GmNotesConfig
sys.stdout.write(hashlib.sha256(GmNotesConfig(num_pitches=2, seconds=0.3).prepare().read_bytes()).hexdigest())
"""


@pytest.fixture(autouse=True)
def own_cache(notes_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is rendered here is not left where later sessions would read it."""
    monkeypatch.setenv("LAYERSYNC_CACHE", str(notes_cache))


def fundamental(waveform: np.ndarray, rate: int) -> float:
    """Hz of the autocorrelation's highest peak between 60 and 1,000 Hz."""
    middle = waveform[rate // 8 : rate // 2]
    lags = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    shortest, longest = rate // 1000, rate // 60
    return rate / (shortest + int(lags[shortest:longest].argmax()))


def test_the_soundfont_comes_with_licence_and_checksum(few_notes: GmNotes) -> None:
    assert SOUNDFONT.present() and "GPL-2" in (SOUNDFONT.directory / "SOURCE.json").read_text()


def test_the_default_plan_is_3072_notes_of_16_families_an_eighth_held_out() -> None:
    notes = list(planned_notes(GmNotesConfig()))
    assert len(notes) == 3072 and len(CLASSES) == 16
    held_out = [note for note in notes if note.held_out]
    assert len(held_out) == 384
    assert np.bincount([note.program for note in held_out]).tolist() == [3] * 128


def test_notes_are_clips_of_the_asked_length_labelled_with_their_family(few_notes: GmNotes) -> None:
    assert len(few_notes) > 400
    labels = [few_notes[index].condition["label"] for index in range(len(few_notes))]
    assert sorted(set(labels)) == list(range(16)) and labels == sorted(labels)
    example = few_notes[0]
    assert example.sample.waveform.shape == (16320,) and example.sample.sample_rate == 16000
    assert example.sample.waveform.dtype == np.float32
    assert "program 0 pitch" in example.source


def test_every_note_sounds_at_the_loudness_of_its_velocity(few_notes: GmNotes) -> None:
    peaks = [np.abs(few_notes[index].sample.waveform).max() for index in range(0, len(few_notes), 5)]
    np.testing.assert_allclose(peaks, 0.9 * 100 / 127, atol=1e-3)


@pytest.mark.parametrize("program", [16, 52, 73])
def test_a_note_has_the_pitch_that_its_key_names(few_notes: GmNotes, program: int) -> None:
    chosen = [i for i in range(len(few_notes)) if few_notes.note(i).program == program and few_notes.note(i).pitch < 80]
    clip, pitch = few_notes[chosen[0]].sample, few_notes.note(chosen[0]).pitch
    semitones = 69 + 12 * np.log2(fundamental(clip.waveform, clip.sample_rate) / 440)
    assert abs((semitones - pitch + 6) % 12 - 6) < 0.5


def test_splits_share_no_key_of_an_instrument(few_notes: GmNotes) -> None:
    held_out = GmNotesConfig(num_pitches=4).build("test")
    keys = [{(d.note(i).program, d.note(i).pitch) for i in range(len(d))} for d in (few_notes, held_out)]
    assert keys[0].isdisjoint(keys[1]) and keys[1]
    assert few_notes.fingerprint != held_out.fingerprint


def test_a_note_does_not_depend_on_the_others_that_are_played(few_notes: GmNotes) -> None:
    """Whatever rang before it, a note is the same: few and many pitches share the lowest."""
    fewer = GmNotesConfig(num_pitches=2).build("train")
    wanted = {fewer.note(i): i for i in range(0, len(fewer), 17)}
    same = [(wanted[few_notes.note(i)], i) for i in range(len(few_notes)) if few_notes.note(i) in wanted]
    assert len(same) > 3
    for ours, theirs in same:
        assert np.array_equal(fewer[ours].sample.waveform, few_notes[theirs].sample.waveform)


@pytest.mark.parametrize("change", [{"velocities": (60, 100)}, {"seconds": 0.3}, {"num_pitches": 2}])
def test_every_option_changes_the_notes(few_notes: GmNotes, change: dict[str, object]) -> None:
    small = {"num_pitches": 1, "seconds": 0.25}
    plain = GmNotesConfig.model_validate(small).build("train")
    other = GmNotesConfig.model_validate({**small, **change}).build("train")
    assert plain.fingerprint != other.fingerprint
    assert len(plain) != len(other) or plain[0].sample.waveform.shape != other[0].sample.waveform.shape


def test_two_processes_at_once_render_the_same_bytes(few_notes: GmNotes, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gm-notes").symlink_to(SOUNDFONT.directory)
    environment = {**os.environ, "LAYERSYNC_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", RENDER]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = [process.communicate(timeout=120)[0] for process in both]
    assert len(digests[0]) == 64 and digests[0] == digests[1]
    assert not list(tmp_path.glob("data/*/.*"))


def test_a_loud_and_a_soft_note_peak_at_their_own_velocities() -> None:
    notes = GmNotesConfig(num_pitches=1, seconds=0.25, velocities=(60, 100)).build("train")
    for velocity in (60, 100):
        chosen = [index for index in range(len(notes)) if notes.note(index).velocity == velocity]
        peaks = np.array([np.abs(notes[index].sample.waveform).max() for index in chosen])
        at_level = np.abs(peaks - 0.9 * velocity / 127) < 1e-3
        assert len(peaks) > 100 and at_level.mean() > 0.95  # one that is loudest at its very end is faded there


def test_without_the_player_the_message_says_how_to_get_it(
    few_notes: GmNotes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    assert len(GmNotesConfig(num_pitches=4).build("train")) == len(few_notes)  # rendered before: needs no player
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / SOUNDFONT.directory.name).symlink_to(SOUNDFONT.directory)
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path))  # where nothing has been rendered
    with pytest.raises(InputError, match="pip install --no-deps tinysoundfont"):
        GmNotesConfig(num_pitches=3).build("train")
