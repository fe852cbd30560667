"""A voice and weights that are the same wherever they are made: what golden outputs were recorded for.

Neither depends on a random generator; the voice is rounded to 16 bits, so that no last digit of a sine matters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_PERIOD = 10007


def voice(seconds: float, rate: int, level: float = 0.5, pitch: float = 120.0) -> np.ndarray:
    """A buzzing voice of two vowels with pauses, (samples,) float32, whole multiples of 1 / 32768."""
    time = np.arange(round(seconds * rate)) / rate
    frequency = pitch * (1 + 0.1 * np.sin(2 * np.pi * 1.7 * time))
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    open_mouth = 0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * time)
    sound = np.zeros(len(time))
    for number in range(1, 31):
        height = number * frequency
        formants = [
            np.exp(-(((height - centre) / 180) ** 2)) for centre in (350 + 400 * open_mouth, 2100 - 900 * open_mouth)
        ]
        sound += (sum(formants) + 0.02) / number * np.sin(number * phase) * (height < 0.45 * rate)
    loudness = np.clip(1.2 * np.sin(2 * np.pi * 0.9 * time + 0.4) + 0.5, 0, 1)
    hiss = np.sin(1e4 * np.sin(np.arange(len(time)) * 12.9898))
    sound = sound / np.abs(sound).max() * loudness + 0.003 * hiss
    return (np.round(sound * level * 32767) / 32768).astype(np.float32)


def patterned(shapes: Mapping[str, torch.Size | tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights by name: matrices of about unit gain, gains and variances near 1, biases near 0.

    Each is a stretch of a sine, repeated every 10,007 values, at a frequency that its place among the sorted names
    gives it.
    """
    state = {}
    for place, name in enumerate(sorted(shapes)):
        shape = tuple(shapes[name])
        size = int(np.prod(shape))
        wave = torch.from_numpy(np.sin((0.7 + 0.013 * place) * np.arange(_PERIOD) + place)).float()
        values = wave.repeat(-(-size // _PERIOD))[:size].reshape(shape)
        if len(shape) > 1:
            values *= np.sqrt(3.0 / (size / shape[0]))
        elif name.endswith("weight") or "var" in name or "original0" in name:
            values = 1 + 0.1 * values
        else:
            values *= 0.05
        state[name] = values
    return state
