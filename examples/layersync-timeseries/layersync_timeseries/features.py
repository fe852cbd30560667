"""What scores of series are taken on: formulas without weights, the same on every machine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.signal import welch

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams
from layersync_timeseries.data import Series

NUM_KERNELS = 64
REACH = 32
"""Steps that the widest kernel spans, and that a segment of a spectrum has."""
NUM_LAGS = 8
POWER_FLOOR = 1e-6


def standardised(series: Series) -> NDArray[np.float64]:
    """Each channel with mean 0 and deviation 1 over the series; a constant channel is 0."""
    centred = series.astype(np.float64) - series.mean(0, dtype=np.float64)
    deviation = centred.std(0)
    result: NDArray[np.float64] = centred / np.where(deviation > 1e-8, deviation, 1.0)
    return result


class SeriesFeatures(FeatureExtractor):
    """One row a series, by a formula; all series of a comparison have the same channels."""

    def __init__(self, given: str | None = None) -> None:
        if given is not None:
            raise InputError(f"--extractor {self.name}={given}: {self.name} is a formula, it takes no weights")
        self._channels: int | None = None

    @abstractmethod
    def formula(self, series: Sequence[Series]) -> dict[str, NDArray[np.float64]]:
        """(series, features) of each stream."""

    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Rows (1, features). Raises :class:`InputError` for a series with other channels than those before it."""
        for example in examples:
            count = example.sample.shape[1]
            self._channels = self._channels or count
            if count != self._channels:
                raise InputError(f"{example.source}: has {count} channels, the series before it have {self._channels}")
        found = self.formula([example.sample for example in examples])
        return {stream: list(rows[:, None].astype(np.float32)) for stream, rows in found.items()}


class Rocket(SeriesFeatures):
    """ROCKET (Dempster, Petitjean and Webb 2020, arXiv 1910.13051): convolutions with random kernels, pooled.

    Pooled as MultiRocket does (Tan et al. 2022, arXiv 2102.00457): stream ``mpv`` is the mean of a kernel's positive
    responses, ``ppv`` the share of steps where it is positive, which is ROCKET's own and tells less of few samples.
    As published: lengths 7, 9 or 11, normal weights with their mean removed, bias uniform in [-1, 1], exponential
    dilations, each series and channel standardised, so that level and size do not count (``spectrum`` has those). As
    in its multivariate form, a kernel reads a random subset of the channels. Unlike the published ones all kernels are
    padded, since a series may be shorter than a kernel, and with its first and last values, since zeros would be a
    jump that outweighs the rest of a short series. There are 64 of them instead of 10,000: a Fréchet distance wants
    more samples than features.
    """

    name = "rocket"
    streams = ("mpv", "ppv")
    preprocessing = f"each series and channel standardised, {NUM_KERNELS} kernels up to {REACH} steps wide, seed 0"

    def formula(self, series: Sequence[Series]) -> dict[str, NDArray[np.float64]]:
        """Series by series: lengths differ."""
        weights, bias = random_kernels(series[0].shape[1])
        means, shares = [], []
        for one in series:
            padded = np.pad(standardised(one), ((REACH // 2, REACH // 2), (0, 0)), mode="edge").T
            response = F.conv1d(torch.from_numpy(padded).float()[None], weights, bias)[0].double()
            positive = (response > 0).sum(1)
            means.append((response.clamp(min=0).sum(1) / positive.clamp(min=1)).numpy())
            shares.append((positive / response.shape[1]).numpy())
        return {"mpv": np.stack(means), "ppv": np.stack(shares)}


def random_kernels(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (kernels, channels, reach + 1), dilation written out as zeros around the middle, and bias (kernels,)."""
    rng = np.random.default_rng(0)
    weights = np.zeros((NUM_KERNELS, channels, REACH + 1), dtype=np.float32)
    for kernel in weights:
        length = int(rng.choice([7, 9, 11]))
        dilation = int(2 ** rng.uniform(0, np.log2(REACH / (length - 1))))
        chosen = rng.choice(channels, int(2 ** rng.uniform(0, np.log2(channels + 1))), replace=False)
        drawn = rng.standard_normal((len(chosen), length))
        first = REACH // 2 - dilation * (length // 2)
        kernel[chosen, first : first + dilation * length : dilation] = drawn - drawn.mean(1, keepdims=True)
    return torch.from_numpy(weights), torch.from_numpy(rng.uniform(-1, 1, NUM_KERNELS).astype(np.float32))


class Spectrum(SeriesFeatures):
    """How strong each channel is at each frequency, and how alike it is to itself a few steps later.

    Stream ``power``: log10 of Welch's power density (segments of at most 32 steps, Hann window, the mean kept, so that
    level and size count), 17 frequencies a channel. Stream ``autocorrelation``: lags 1 to 8 of each channel.
    """

    name = "spectrum"
    streams = ("power", "autocorrelation")
    preprocessing = f"in the units of the data; Welch segments of {REACH} steps, {NUM_LAGS} lags"

    def formula(self, series: Sequence[Series]) -> dict[str, NDArray[np.float64]]:
        """Series by series: lengths differ."""
        return {
            "power": np.stack([_log_power(one) for one in series]),
            "autocorrelation": np.stack([autocorrelation(one).ravel() for one in series]),
        }


def _log_power(series: Series) -> NDArray[np.float64]:
    segment = min(len(series), REACH)
    power = welch(series.astype(np.float64), nperseg=segment, nfft=REACH, detrend=False, axis=0)[1]
    logarithm: NDArray[np.float64] = np.log10(power + POWER_FLOOR).ravel()
    return logarithm


def autocorrelation(series: Series) -> NDArray[np.float64]:
    """(lags, channels) in [-1, 1], the biased estimate: 0 at lags that a short series does not have."""
    values = standardised(series)
    lags = [(values[lag:] * values[:-lag]).sum(0) / len(values) for lag in range(1, NUM_LAGS + 1)]
    return np.stack(lags)


def von_neumann_ratio(examples: Sequence[Example]) -> NDArray[np.float64]:
    """(samples,) mean squared step over variance, mean over channels: near 0 for smooth series, 2 for white noise.

    Von Neumann (1941), Annals of Mathematical Statistics 12(4). Noise that a model has not removed shows here, on
    generated samples alone; a constant channel counts as 0. Compare with the ratio of the data.
    """
    return np.array([np.square(np.diff(standardised(one.sample), axis=0)).mean() for one in examples], dtype=np.float64)
