"""The time-series modality as the core sees it: where each part of the package plugs in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from layersync.core.adapter import ConditionSpec, DataConfig, ExampleDataset, LatentSpec, Section, Split
from layersync.core.features import FeatureExtractorFactory, Metric
from layersync.core.transformer import PositiveInt, TransformerConfig
from layersync_timeseries.data import BasicMotions, CsvFolder, JapaneseVowels, Series, TsFile
from layersync_timeseries.features import Rocket, Spectrum, von_neumann_ratio
from layersync_timeseries.render import render_series
from layersync_timeseries.samples import open_series, write_series
from layersync_timeseries.tokenizer import WindowConfig, WindowTokenizer


class SeriesTransformerConfig(TransformerConfig):
    """The core's transformer on a 1-D grid: one token for every ``patch_size`` steps."""

    name: Literal["transformer"] = "transformer"
    hidden_size: PositiveInt = 128
    num_heads: PositiveInt = 4


class TimeSeriesAdapter:
    """Series of any length and number of channels, labelled or not."""

    name = "timeseries"
    api = 1
    sections: ClassVar[Mapping[str, Mapping[str, type[Section]]]] = {
        "data": {
            "japanese-vowels": JapaneseVowels,
            "basic-motions": BasicMotions,
            "ts": TsFile,
            "csv": CsvFolder,
        },
        "tokenizer": {"window": WindowConfig},
        "backbone": {"transformer": SeriesTransformerConfig},
    }

    def dataset(self, data: DataConfig, split: Split) -> ExampleDataset:
        """The series of ``split``."""
        return data.build(split)

    def tokenizer(self, config: WindowConfig) -> WindowTokenizer:
        """The tokenizer of that section, not fitted yet."""
        return WindowTokenizer(config)

    def backbone(self, config: SeriesTransformerConfig, latent: LatentSpec, condition: ConditionSpec) -> nn.Module:
        """The transformer for latents of that shape."""
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:
        """Two formulas without weights: what shapes there are, and how strong, at which frequency."""
        return {"rocket": Rocket, "spectrum": Spectrum}

    def metrics(self) -> Mapping[str, Metric]:
        """How rough generated series are."""
        return {"von-neumann-ratio": von_neumann_ratio}

    def aliases(self) -> Mapping[str, str]:
        """The usual name of the Fréchet distance on autocorrelations."""
        return {"fd-autocorrelation": "fd-spectrum.autocorrelation"}

    def open_samples(self, path: Path) -> ExampleDataset:
        """Anybody's series: a ``.ts`` file, an ``.npz`` or ``.npy`` array, or a folder of CSV files."""
        return open_series(path)

    def archive(self, samples: Sequence[Series], labels: Sequence[int] | None, path: Path) -> None:
        """``series`` (n, longest, channels), zeros behind the end of a series, ``lengths`` (n,), ``labels`` (n,)."""
        write_series(path, samples, labels)

    def classifier_input(self, samples: Sequence[Series]) -> tuple[Tensor, Tensor]:
        """(batch, channels, longest) float32 and the mask (batch, longest); 0 behind the end of a series.

        The inverse hyperbolic sine brings any unit to order 1: it leaves small values as they are, takes the logarithm
        of large ones, and keeps the level of a channel, by which classes may differ.
        """
        lengths = torch.tensor([len(sample) for sample in samples])
        values = torch.zeros(len(samples), samples[0].shape[1], int(lengths.max()))
        for row, sample in enumerate(samples):
            values[row, :, : len(sample)] = torch.from_numpy(np.arcsinh(sample).T)
        return values, torch.arange(values.shape[-1]) < lengths[:, None]

    def render(self, samples: Sequence[Series], directory: Path) -> list[Path]:
        """A line plot of each series and a sheet of the first ones, as PNG."""
        return render_series(samples, directory)
