"""What the tests share: a cache of the session's own, and clips on disk as a user has them."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else is

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from layersync_video.clip import Clip
from layersync_video.data import MOTIONS, moving_digit
from layersync_video.render import render_clips

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Latents, features and classifiers of this session."""
    patch = pytest.MonkeyPatch()
    directory = tmp_path_factory.mktemp("cache")
    patch.setenv("LAYERSYNC_CACHE", str(directory))
    yield directory
    patch.undo()


def moving(index: int, num_frames: int = 8) -> Clip:
    """Clip ``index`` of the training split, 16x16 pixels; it moves as ``MOTIONS[index % 6]`` says."""
    return moving_digit("train", index, 16, num_frames)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``clockwise-slow/000.gif`` and on: 12 clips of 5 frames, and 12 of 12 in ``clockwise-medium``, 8 a second."""
    root = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(MOTIONS[:2]):
        render_clips([moving(number + 6 * row, (5, 12)[number]) for row in range(12)], root / name)
    return root
