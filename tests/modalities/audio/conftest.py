"""Generated recordings of several rates, formats and channel counts, and a small rendering of gm-notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.gm_notes import SOUNDFONT, GmNotes, GmNotesConfig


def _harmonic(frequency: float, seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A decaying tone with three overtones and a little noise, (samples,) float32."""
    time = np.arange(round(seconds * rate)) / rate
    overtones = sum(np.sin(2 * np.pi * frequency * k * time) / k for k in range(1, 5) if frequency * k < rate / 2)
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.3 * overtones * np.exp(-2 * time) + 0.003 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def harmonic() -> Callable[..., np.ndarray]:
    """Make a tone of ``(frequency, seconds, rate)``."""
    return _harmonic


@pytest.fixture
def write_audio(tmp_path: Path) -> Callable[..., Path]:
    """Write a tone of ``frequency`` under a relative name; the ending says the format."""

    def write(
        name: str, frequency: float = 440.0, seconds: float = 0.4, rate: int = 16000, channels: int = 1, seed: int = 0
    ) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        mono = _harmonic(frequency, seconds, rate, seed)
        soundfile.write(file, np.repeat(mono[:, None], channels, axis=1), rate)
        return file

    return write


@pytest.fixture(scope="session")
def notes_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the soundfont that is kept, and no rendering of an earlier session."""
    folder, soundfont = tmp_path_factory.mktemp("notes"), SOUNDFONT.prepare()
    (folder / "data").mkdir()
    (folder / "data" / SOUNDFONT.name).symlink_to(soundfont)
    return folder


@pytest.fixture(scope="session")
def few_notes(notes_cache: Path) -> GmNotes:
    """The training notes of four pitches of each instrument, in that cache, which is nobody else's afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERSYNC_CACHE", str(notes_cache))
        return GmNotesConfig(num_pitches=4).build("train")


@pytest.fixture(scope="session")
def note_clips(few_notes: GmNotes) -> list[Clip]:
    """One clip of every eighth instrument."""
    return [few_notes[index].sample for index in range(0, len(few_notes), len(few_notes) // 16)][:16]
