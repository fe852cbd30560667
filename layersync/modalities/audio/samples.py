"""Anybody's audio samples, such as another project's outputs: a folder of files, or arrays in an ``.npz``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layersync.core.adapter import Example, ExampleDataset
from layersync.core.archive import opened_npz
from layersync.core.errors import InputError
from layersync.core.paths import files_below, fingerprint_files, first_caption
from layersync.core.run import atomic_write
from layersync.modalities.audio.clip import SILENCE, Clip, check_header, read_clip

EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg")
"""What is taken from a folder."""


def open_audio_samples(path: Path) -> ExampleDataset:
    """The clips of a folder (any depth, by relative name), or of an ``.npz`` with ``waveforms`` and ``sample_rate``.

    The first line of ``NAME.txt`` beside an audio file that is not empty is its caption. Files of several sample rates
    are warned of, since every score converts them to its own. Raises :class:`InputError` for what holds no audio or
    cannot be read, captions included.
    """
    path = path.expanduser()
    if path.is_dir():
        return AudioFiles(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if path.suffix.lower() == ".npz":
        return WaveformArray(path)
    if path.suffix.lower() == ".npy":
        raise InputError(
            f"{path}: an .npy holds no sample rate; write numpy.savez(FILE, waveforms=..., sample_rate=...) instead"
        )
    raise InputError(f"{path}: is neither a folder of audio files ({', '.join(EXTENSIONS)}) nor an .npz of waveforms")


def write_waveforms(path: Path, clips: Sequence[Clip]) -> None:
    """Write the mono mix of clips of one sample rate as one ``.npz`` that :func:`open_audio_samples` reads.

    Shorter ones are filled up with zeros; ``lengths`` (clips,) says where each ends. Raises :class:`InputError` for
    clips of several sample rates.
    """
    if len(rates := sorted({clip.sample_rate for clip in clips})) > 1:
        raise InputError(f"{path}: clips of {', '.join(map(str, rates))} Hz do not fit one array; take the WAVs")
    lengths = np.array([len(clip.waveform) for clip in clips])
    waveforms = np.zeros((len(clips), lengths.max()), np.float32)
    for row, clip in zip(waveforms, clips, strict=True):
        row[: len(clip.waveform)] = clip.waveform
    with atomic_write(path) as partial, partial.open("wb") as stream:
        np.savez(stream, waveforms=waveforms, lengths=lengths, sample_rate=clips[0].sample_rate)


class AudioFiles(ExampleDataset):
    """Every audio file below a folder, decoded when asked for. Headers are checked at once."""

    def __init__(self, root: Path) -> None:
        found = files_below(root, EXTENSIONS, given=str(root))
        self._files = sorted(found, key=lambda file: file.relative_to(root).as_posix())
        if not self._files:
            raise InputError(f"{root}: holds no audio file ({', '.join(EXTENSIONS)})")
        _warn_of_rates(root, {_sample_rate(file) for file in self._files})
        self._silence = _Silence()
        captions = [caption for file in self._files if (caption := file.with_suffix(".txt")).is_file()]
        self._captions = {caption.with_suffix(""): first_caption(caption) for caption in captions}
        self.fingerprint = f"audio-files-{fingerprint_files(root, [*self._files, *captions], None)}"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        file = self._files[index]
        caption = self._captions.get(file.with_suffix(""))
        clip = read_clip(file, str(file), silence=True)
        self._silence.heard(float(np.abs(clip.waveform).max()), str(file))
        return Example(clip, {} if caption is None else {"text": caption}, str(file))


class WaveformArray(ExampleDataset):
    """``waveforms`` (clips, samples), floating, full scale 1, at ``sample_rate`` Hz, of one ``.npz`` file.

    ``lengths`` (clips,) may say where each ends. As with files, a clip beyond full scale is scaled down to a peak of 1.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waveforms, self._lengths, self._sample_rate = _read_arrays(path)
        self._silence = _Silence()
        self.fingerprint = f"audio-array-{fingerprint_files(path.parent, [path], None)}"

    def __len__(self) -> int:
        return len(self._waveforms)

    def __getitem__(self, index: int) -> Example:
        source = f"{self._path} clip {index}"
        waveform = self._waveforms[index, : self._lengths[index]].astype(np.float32)
        if not np.isfinite(waveform).all():
            raise InputError(f"{source}: holds samples that are not finite numbers")
        peak = float(np.abs(waveform).max())
        self._silence.heard(peak, source)
        return Example(Clip(waveform / np.float32(max(peak, 1.0)), self._sample_rate), {}, source)


class _Silence:
    """Says once that there are silent sounds: a model that makes them is scored with them."""

    def __init__(self) -> None:
        self._said = False

    def heard(self, peak: float, source: str) -> None:
        """Of each sound its peak."""
        if peak < SILENCE and not self._said:
            self._said = True
            warnings.warn(f"{source}: is silent (peak {peak:.1e}); silent sounds are scored as they are", stacklevel=4)


def _sample_rate(file: Path) -> int:
    import soundfile

    check_header(file)
    return int(soundfile.info(os.fsencode(file)).samplerate)


def _warn_of_rates(root: Path, rates: set[int]) -> None:
    if len(rates) > 1:
        listed = ", ".join(str(rate) for rate in sorted(rates))
        warnings.warn(f"{root}: files of different sample rates ({listed} Hz); each is converted", stacklevel=4)


def _read_arrays(path: Path) -> tuple[NDArray[np.floating], NDArray[np.integer], int]:
    """Waveforms, where each ends, and their sample rate."""
    with opened_npz(path) as stored:
        arrays = {name: stored[name] for name in ("waveforms", "sample_rate", "lengths") if name in stored.files}
        names = ", ".join(stored.files) or "nothing"
    if not {"waveforms", "sample_rate"} <= set(arrays):
        raise InputError(f"{path}: holds {names}; waveforms (clips, samples) and sample_rate are wanted")
    waveforms, rate = arrays["waveforms"], arrays["sample_rate"]
    if waveforms.ndim != 2 or not np.issubdtype(waveforms.dtype, np.floating) or 0 in waveforms.shape:
        raise InputError(
            f"{path}: waveforms is {waveforms.dtype} of shape {list(waveforms.shape)}; floating numbers of shape "
            f"[clips, samples] and full scale 1 are wanted"
        )
    real = np.issubdtype(rate.dtype, np.integer) or np.issubdtype(rate.dtype, np.floating)
    if rate.size != 1 or not real or not float(rate.item()).is_integer() or rate.item() < 1:
        raise InputError(f"{path}: sample_rate is {rate.tolist()}; one positive whole number (Hz) is wanted")
    lengths = arrays.get("lengths", np.full(len(waveforms), waveforms.shape[1]))
    whole = lengths.shape == (len(waveforms),) and np.issubdtype(lengths.dtype, np.integer)
    if not whole or lengths.min() < 1 or lengths.max() > waveforms.shape[1]:
        raise InputError(f"{path}: lengths has to be [clips], whole numbers of samples from 1 to {waveforms.shape[1]}")
    return waveforms, lengths, int(rate.item())
