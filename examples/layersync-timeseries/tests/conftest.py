"""A cache of this session's own; only data that was fetched from a package index is kept between sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from layersync_timeseries.data import JapaneseVowels, SeriesDataset

from layersync.core.packaged import cache_directory

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Latents, classifiers and features of a session's own."""
    fetched = cache_directory() / "data"
    fetched.mkdir(parents=True, exist_ok=True)
    directory = tmp_path_factory.mktemp("cache")
    (directory / "data").symlink_to(fetched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERSYNC_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session")
def vowels(cache: Path) -> SeriesDataset:
    """270 series of 12 channels and 7 to 26 steps."""
    return JapaneseVowels().build("train")
