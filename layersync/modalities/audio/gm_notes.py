"""``gm-notes``: single notes of the 128 General MIDI instruments, rendered from a sampled soundfont.

The soundfont is ``TimGM6mb.sf2`` of Tim Brechbill, under GPL-2, which the wheel of ``pretty_midi`` carries. Every
instrument plays pitches spread over its usual range; the label is its family, eight instruments each.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from layersync.core.adapter import DataConfig, Example, ExampleDataset, Split
from layersync.core.errors import InputError
from layersync.core.packaged import WheelData, cache_directory
from layersync.modalities.audio.clip import Clip, resample

if TYPE_CHECKING:
    from tinysoundfont import Synth

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000

SOUNDFONT = WheelData(
    name="gm-notes",
    requirement="pretty_midi==0.2.11.post0",
    members=("pretty_midi/TimGM6mb.sf2",),
    licence="TimGM6mb.sf2 by Tim Brechbill: GPL-2",
    digests=(("TimGM6mb.sf2", "82475b91a76de15cb28a104707d3247ba932e228bada3f47bba63c6b31aaf7a1"),),
)

FAMILIES: dict[str, tuple[tuple[int, int], ...]] = {
    "piano": ((36, 84),) * 8,
    "chromatic-percussion": ((60, 96), (67, 96), (60, 96), (53, 89), (45, 84), (60, 96), (55, 84), (48, 84)),
    "organ": ((36, 84),) * 5 + ((48, 84),) * 3,
    "guitar": ((40, 76),) * 8,
    "bass": ((28, 55),) * 8,
    "strings": ((55, 96), (48, 84), (36, 72), (28, 60), (36, 84), (36, 84), (36, 84), (33, 60)),
    "ensemble": ((36, 84),) * 4 + ((48, 79),) * 3 + ((48, 79),),
    "brass": ((52, 82), (40, 70), (28, 58), (52, 82), (40, 76), (40, 76), (40, 79), (40, 79)),
    "reed": ((56, 87), (49, 80), (44, 75), (36, 67), (58, 87), (52, 81), (34, 70), (50, 87)),
    "pipe": ((72, 102), (60, 94), (60, 90), (55, 90), (48, 84), (55, 86), (55, 81), (60, 90)),
    "synth-lead": ((48, 84),) * 7 + ((36, 72),),
    "synth-pad": ((48, 84),) * 8,
    "synth-effects": ((48, 84),) * 8,
    "ethnic": ((48, 77), (48, 79), (48, 79), (48, 84), (55, 84), (50, 77), (55, 91), (60, 88)),
    "percussive": ((60, 88), (48, 76), (52, 84), (48, 76), (36, 64), (36, 64), (36, 64), (48, 76)),
    "sound-effects": ((48, 76),) * 8,
}
"""Each family's eight programs in General MIDI's order: the lowest and highest pitch that they play (60 is middle C).

Acoustic instruments keep to their written ranges, rounded; synthetic ones to the octaves around middle C."""

CLASSES = tuple(FAMILIES)
PROGRAMS_PER_FAMILY = 8

_RENDERING = 1  # raised whenever the same settings would sound different, so that no stale rendering is read
_PLAYED_RATE = 48000  # the player interpolates without a filter: at 16 kHz its high notes would alias
_HELD_FRACTION = 0.8
_FADE_SAMPLES = 160
_FULL_SCALE = 0.9
_FAINTEST = 1e-3
_TEST_EVERY = 8
_FLUSHED_SECONDS = 0.1  # what the note before rings on for; without the wait, a note depends on its predecessor
_STALE_SECONDS = 86400.0


class Note(NamedTuple):
    """One key of one instrument: General MIDI program from 0, pitch in semitones (60 is middle C), velocity to 127.

    ``held_out`` notes make up the test split.
    """

    program: int
    pitch: int
    velocity: int
    held_out: bool


class GmNotesConfig(DataConfig):
    """Which notes are played. The defaults give 3,072: 128 instruments, 24 pitches each, at one velocity.

    ``num_pitches`` are spread evenly over an instrument's range, ``velocities`` set the loudness (1 to 127), and
    ``seconds`` the length with the release: the key is let go after four fifths. 1.02 s are 64 frames of 256 samples.
    Every eighth (instrument, pitch) is held out, whatever the velocity: split ``test``.
    """

    packaged: ClassVar[str] = "3,072 notes of the 128 General MIDI instruments, 16 families (pretty_midi, GPL-2, 6 MB)"
    name: Literal["gm-notes"] = "gm-notes"
    num_pitches: int = Field(default=24, ge=1, le=88)
    velocities: tuple[Annotated[int, Field(ge=1, le=127)], ...] = (100,)
    seconds: float = Field(default=1.02, ge=0.1, le=20.0)

    @field_validator("velocities")
    @classmethod
    def _several_and_different(cls, velocities: tuple[int, ...]) -> tuple[int, ...]:
        if not velocities or len(set(velocities)) < len(velocities):
            raise ValueError("velocities must be different whole numbers from 1 to 127, at least one")
        return velocities

    def prepare(self) -> Path:
        """Fetch the soundfont and render the notes, each where it is missing; return the file of the rendering."""
        return rendered_file(self)

    def build(self, split: Split) -> GmNotes:
        """The notes of ``split``, memory-mapped."""
        return GmNotes(self, split)


class GmNotes(ExampleDataset):
    """Notes as clips at 16 kHz, labelled with the family. Programs in order, pitches rising."""

    classes = CLASSES

    def __init__(self, config: GmNotesConfig, split: Split) -> None:
        file = rendered_file(config)
        self._notes = np.load(file, mmap_mode="r")
        self._indices = np.flatnonzero(self._notes["held_out"] == (split == "test"))
        self.fingerprint = f"gm-notes-{file.parent.name.rpartition('-')[2]}-{split}"

    def __len__(self) -> int:
        return len(self._indices)

    def note(self, index: int) -> Note:
        """Which key of which instrument sample ``index`` is."""
        row = self._notes[self._indices[index]]
        return Note(int(row["program"]), int(row["pitch"]), int(row["velocity"]), bool(row["held_out"]))

    def __getitem__(self, index: int) -> Example:
        note = self.note(index)
        waveform = self._notes[self._indices[index]]["waveform"].astype(np.float32) / np.float32(32767)
        source = f"gm-notes program {note.program} pitch {note.pitch} velocity {note.velocity}"
        return Example(Clip(waveform, SAMPLE_RATE), {"label": note.program // PROGRAMS_PER_FAMILY}, source)


def planned_notes(config: GmNotesConfig) -> Iterator[Note]:
    """The notes that ``config`` asks for, in the order in which they are stored."""
    ranges = [span for family in CLASSES for span in FAMILIES[family]]
    for program, (low, high) in enumerate(ranges):
        pitches = np.unique(np.linspace(low, high, config.num_pitches).round().astype(int))
        for position, pitch in enumerate(pitches):
            held_out = (position + program) % _TEST_EVERY == 0
            for velocity in config.velocities:
                yield Note(program, int(pitch), velocity, held_out)


def rendered_file(config: GmNotesConfig) -> Path:
    """The file of the rendered notes, made now when it is missing.

    One structured ``.npy``: ``program``, ``pitch``, ``velocity`` (uint8), ``held_out`` (bool) and ``waveform``
    (samples,) int16 at 16 kHz. Written beside and renamed, so that of two processes at once each reads a whole file,
    and the same bytes.
    Raises :class:`InputError` when the player is not installed or the soundfont cannot be fetched.
    """
    settings = {
        "rendering": _RENDERING,
        "soundfont": dict(SOUNDFONT.digests),
        "notes": [config.num_pitches, *config.velocities],
        "seconds": config.seconds,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_directory() / "data" / f"gm-notes-rendered-{digest}" / "notes.npy"
    if not file.is_file():
        soundfont = SOUNDFONT.prepare() / "TimGM6mb.sf2"
        notes = list(planned_notes(config))
        logger.info("rendering %d notes for the data set gm-notes", len(notes))
        _write_atomically(_render(soundfont, notes, config.seconds), file)
    return file


def _render(soundfont: Path, notes: Sequence[Note], seconds: float) -> np.ndarray:
    """Play ``notes``; those that the soundfont leaves silent are dropped, and their number is logged."""
    try:
        import tinysoundfont
    except ImportError:
        raise InputError(
            "data gm-notes: rendering needs tinysoundfont; install it without pyaudio, which only live playback needs: "
            "pip install --no-deps tinysoundfont"
        ) from None
    synth = tinysoundfont.Synth(samplerate=_PLAYED_RATE)
    font = synth.sfload(str(soundfont))
    num_samples = round(seconds * SAMPLE_RATE)
    row = [
        ("program", "u1"),
        ("pitch", "u1"),
        ("velocity", "u1"),
        ("held_out", "?"),
        ("waveform", "<i2", (num_samples,)),
    ]
    rendered, num_kept = np.zeros(len(notes), dtype=row), 0
    for note in notes:
        waveform = _play(synth, font, note, num_samples)
        peak = float(np.abs(waveform).max())
        if peak < _FAINTEST:
            continue
        waveform *= _FULL_SCALE * note.velocity / 127 / peak
        waveform[-_FADE_SAMPLES:] *= np.linspace(1, 0, _FADE_SAMPLES)
        rendered[num_kept] = (*note, (waveform * 32767).round().astype(np.int16))
        num_kept += 1
    if num_kept < len(notes):
        logger.info("gm-notes: dropped %d notes that the soundfont leaves silent", len(notes) - num_kept)
    return rendered[:num_kept]


def _play(synth: Synth, font: int, note: Note, num_samples: int) -> NDArray[np.float64]:
    """One note alone at 16 kHz, mono: whatever was played before leaves no trace in it."""
    ratio = _PLAYED_RATE // SAMPLE_RATE
    num_played = num_samples * ratio
    num_held = round(_HELD_FRACTION * num_played)
    synth.sounds_off(0)
    synth.generate(round(_FLUSHED_SECONDS * _PLAYED_RATE))
    synth.program_select(0, font, 0, note.program)
    synth.noteon(0, note.pitch, note.velocity)
    held = bytes(synth.generate(num_held))
    synth.noteoff(0, note.pitch)
    released = bytes(synth.generate(num_played - num_held))
    stereo = np.frombuffer(held + released, dtype=np.float32).reshape(-1, 2)
    return resample(stereo.mean(axis=1), _PLAYED_RATE, SAMPLE_RATE)[:num_samples].astype(np.float64)


def _write_atomically(rendered: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(".notes-*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:  # of a process that was killed
            left.unlink(missing_ok=True)
    scratch = file.parent / f".notes-{uuid.uuid4().hex}"
    try:
        with scratch.open("wb") as stream:
            np.save(stream, rendered)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
