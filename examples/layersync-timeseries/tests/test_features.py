"""What scores are taken on tells what it says that it tells, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from layersync_timeseries.data import JapaneseVowels, Series, SeriesDataset
from layersync_timeseries.features import REACH, Rocket, SeriesFeatures, Spectrum, von_neumann_ratio

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.metrics import frechet_distance

RNG = np.random.default_rng(7)


def rows(extractor: SeriesFeatures, series: list[Series], stream: str | None = None) -> np.ndarray:
    found = extractor([Example(one) for one in series])
    return np.concatenate(found[stream or extractor.streams[0]])


def real(dataset: SeriesDataset) -> list[Series]:
    return [dataset[index].sample for index in range(len(dataset))]


@pytest.mark.parametrize(
    ("kind", "stream"),
    [(Rocket, "mpv"), (Rocket, "ppv"), (Spectrum, "power"), (Spectrum, "autocorrelation")],
)
def test_real_series_are_nearer_than_noise_and_than_shuffled_steps(
    kind: type[SeriesFeatures], stream: str, vowels: SeriesDataset
) -> None:
    train, test = real(vowels), real(JapaneseVowels().build("test"))
    noise = [RNG.standard_normal(one.shape).astype(np.float32) * one.std(0) + one.mean(0) for one in test]
    shuffled = [RNG.permutation(one) for one in test]
    reference = rows(kind(), train, stream)
    near, *far = (float(frechet_distance(reference, rows(kind(), set_, stream))) for set_ in (test, noise, shuffled))
    assert near < min(far) / 2


@pytest.mark.parametrize("kind", [Rocket, Spectrum])
def test_a_row_does_not_depend_on_the_batch(kind: type[SeriesFeatures], vowels: SeriesDataset) -> None:
    series = real(vowels)[:20]
    for stream in kind.streams:
        together = rows(kind(), series, stream)
        alone = np.concatenate([rows(kind(), [one], stream) for one in series])
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_rocket_sees_shape_and_spectrum_sees_size(vowels: SeriesDataset) -> None:
    series = real(vowels)[:10]
    louder = [3 * one + 5 for one in series]
    np.testing.assert_allclose(rows(Rocket(), louder), rows(Rocket(), series), atol=1e-3)
    assert (rows(Spectrum(), louder) > rows(Spectrum(), series)).mean() > 0.9
    lifted = [one + 5 for one in series]
    changed = np.abs(rows(Spectrum(), lifted) - rows(Spectrum(), series)).reshape(len(series), REACH // 2 + 1, 12)
    assert changed[:, 0].min() > 0.5 > changed[:, -1].max()  # the mean is at frequency 0, and stays there


@pytest.mark.parametrize("cycles", [2, 5, 11])
def test_the_spectrum_of_a_sine_peaks_at_its_frequency(cycles: int) -> None:
    sine = np.sin(2 * np.pi * cycles * np.arange(200) / REACH)[:, None].astype(np.float32)
    assert rows(Spectrum(), [sine]).argmax() == cycles


def test_autocorrelation_of_what_alternates() -> None:
    series = np.tile([[1.0], [-1.0]], (50, 1)).astype(np.float32)
    wanted = [(-1) ** lag * (100 - lag) / 100 for lag in range(1, 9)]
    np.testing.assert_allclose(rows(Spectrum(), [series], "autocorrelation")[0], wanted, atol=1e-6)
    short = rows(Spectrum(), [series[:4]], "autocorrelation")[0]
    assert short[:3].all() and not short[3:].any()


def test_von_neumanns_ratio_is_2_for_noise_and_0_for_what_is_smooth() -> None:
    noise = Example(9 * RNG.standard_normal((20_000, 2)).astype(np.float32))
    smooth = Example(np.sin(np.linspace(0, 6, 1000))[:, None].astype(np.float32))
    constant = Example(np.full((10, 2), 3.0, dtype=np.float32))
    assert von_neumann_ratio([noise, smooth, constant]).tolist() == pytest.approx([2.0, 0.0, 0.0], abs=0.05)


def test_series_of_other_channels_and_weights_are_refused() -> None:
    examples = [Example(np.zeros((9, channels), np.float32), {}, f"file {channels}") for channels in (3, 4)]
    with pytest.raises(InputError, match="file 4: has 4 channels, the series before it have 3"):
        Rocket()(examples)
    with pytest.raises(InputError, match=r"--extractor rocket=weights\.pt"):
        Rocket("weights.pt")
