"""Windows and masks: what lies behind the end of a series counts nowhere."""

from __future__ import annotations

import pytest
import torch
from layersync_timeseries.adapter import SeriesTransformerConfig, TimeSeriesAdapter
from layersync_timeseries.data import SeriesDataset
from layersync_timeseries.tokenizer import WindowConfig, WindowTokenizer

from layersync.core.adapter import ConditionSpec, LatentSpec
from layersync.core.errors import InputError


@pytest.fixture(scope="module")
def fitted(vowels: SeriesDataset) -> WindowTokenizer:
    tokenizer = WindowTokenizer(WindowConfig(channels=12, num_frames=32))
    tokenizer.fit(tokenizer.encode([vowels[index].sample for index in range(len(vowels))]))
    return tokenizer


def test_every_channel_has_mean_0_and_deviation_1(fitted: WindowTokenizer, vowels: SeriesDataset) -> None:
    stored = torch.cat(fitted.encode([vowels[index].sample for index in range(len(vowels))]))
    latents = fitted.latents(stored[None])[0]
    assert latents.mean(0).abs().max() < 1e-4
    assert (latents.std(0) - 1).abs().max() < 1e-3


def test_decoding_undoes_encoding_and_keeps_lengths(fitted: WindowTokenizer, vowels: SeriesDataset) -> None:
    samples = [vowels[index].sample for index in (0, 5)]
    padded = torch.nn.utils.rnn.pad_sequence(fitted.encode(samples), batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(sample) for sample in samples])[:, None]
    assert not mask.all()
    for sample, decoded in zip(samples, fitted.decode(fitted.latents(padded), mask), strict=True):
        assert decoded.shape == sample.shape
        torch.testing.assert_close(torch.from_numpy(decoded), torch.from_numpy(sample), atol=1e-6, rtol=1e-5)


def test_a_constant_channel_stays_finite() -> None:
    tokenizer = WindowTokenizer(WindowConfig(channels=1))
    stored = torch.full((10, 1), 3.0)
    tokenizer.fit([stored])
    latents = tokenizer.latents(stored[None])
    assert latents.abs().max() == 0
    assert tokenizer.decode(latents)[0].tolist() == stored.tolist()


def test_statistics_of_other_channels_are_refused(fitted: WindowTokenizer) -> None:
    with pytest.raises(InputError, match=r"window: mean must have 3 values, found \(12,\)"):
        WindowTokenizer(WindowConfig(channels=3)).load_state(fitted.state())


@pytest.mark.parametrize(("position", "first"), [(0.0, 0), (0.5, 2), (0.999, 3), (1.0, 3)])
def test_windows_start_where_there_is_room(position: float, first: int) -> None:
    sample = torch.arange(7.0)[:, None].numpy()
    tokenizer = WindowTokenizer(WindowConfig(channels=1, num_frames=4))
    assert tokenizer.window(sample, position)[:, 0].tolist() == list(range(first, first + 4))
    assert len(tokenizer.window(sample[:3], position)) == 3


def test_padding_changes_no_prediction() -> None:
    torch.manual_seed(0)
    latent = LatentSpec(channels=12, grid=(32,), sequence=True, variable=True)
    config = SeriesTransformerConfig(depth=3, hidden_size=32)
    backbone = TimeSeriesAdapter().backbone(config, latent, ConditionSpec(num_classes=9))
    for parameter in backbone.parameters():  # not the identity that it starts as
        torch.nn.init.normal_(parameter, std=0.1)
    mask = torch.arange(32)[None] < torch.tensor([32, 13])[:, None]
    x, t, condition = torch.randn(2, 32, 12), torch.tensor([0.3, 0.7]), {"label": torch.tensor([1, 9])}
    other = torch.where(mask[..., None], x, 1000.0)
    first, second = (backbone(values, t, condition, taps=(2,), mask=mask) for values in (x, other))
    assert second.token_mask.sum(1).tolist() == [16, 7]
    torch.testing.assert_close(first.prediction[mask], second.prediction[mask])
    torch.testing.assert_close(first.features[2][first.token_mask], second.features[2][second.token_mask])
