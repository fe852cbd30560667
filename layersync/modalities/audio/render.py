"""What a person listens to and looks at: a WAV file for each clip, and one picture of their spectrograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layersync.modalities.audio.clip import Clip

PICTURE = "spectrograms.png"

_MOST_PANELS = 64
_COLUMNS = 8
_RANGE_DB = 80.0
_WINDOW_SECONDS = 0.064


def render(samples: Sequence[Clip], directory: Path) -> list[Path]:
    """Write ``000.wav``, ``001.wav`` ... (16 bits, stereo clips as such) and ``spectrograms.png``; return these files.

    The picture shows the first 64 clips, time in seconds across and frequency in kHz upwards, in decibels below the
    loudest point of each clip. No samples write no file.
    """
    import soundfile

    if not samples:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for number, clip in enumerate(samples):
        files.append(directory / f"{number:03d}.wav")
        channels = clip.channels(1 if clip.side is None else 2)
        soundfile.write(files[-1], np.clip(channels.T, -1, 1), clip.sample_rate, subtype="PCM_16")
    _picture(samples[:_MOST_PANELS], directory / PICTURE)
    return [*files, directory / PICTURE]


def _picture(samples: Sequence[Clip], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(samples))
    rows = math.ceil(len(samples) / columns)
    figure = Figure(figsize=(1.9 * columns + 0.9, 1.5 * rows + 0.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for number, panel in enumerate(axes.flat):
        if number >= len(samples):
            panel.set_visible(False)
            continue
        clip = samples[number]
        extent = (0.0, clip.seconds, 0.0, clip.sample_rate / 2000)
        drawn = panel.imshow(_decibels(clip), origin="lower", aspect="auto", extent=extent, vmin=-_RANGE_DB, vmax=0)
        panel.set_title(f"{number:03d}", fontsize=8, pad=2)
        panel.tick_params(labelsize=7)
    axes[0, 0].set_xlim(0, max(clip.seconds for clip in samples))
    axes[0, 0].set_ylim(0, max(clip.sample_rate for clip in samples) / 2000)
    figure.supxlabel("time (s)", fontsize=9)
    figure.supylabel("frequency (kHz)", fontsize=9)
    figure.colorbar(drawn, ax=axes, label="dB below the clip's loudest point", aspect=30)
    figure.savefig(file)


def _decibels(clip: Clip) -> NDArray[np.float32]:
    """(frequencies, frames) magnitudes in decibels, 0 at the loudest."""
    from scipy.signal import stft

    window = max(16, round(_WINDOW_SECONDS * clip.sample_rate))
    waveform = np.pad(clip.waveform, (0, max(0, window - len(clip.waveform))))
    magnitudes = np.abs(stft(waveform, clip.sample_rate, nperseg=window, noverlap=window * 3 // 4)[2])
    return (20 * np.log10(np.maximum(magnitudes / max(magnitudes.max(), 1e-12), 1e-12))).astype(np.float32)
