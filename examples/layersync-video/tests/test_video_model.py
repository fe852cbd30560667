"""From clips to a model and back: windows, rates, masks, and the scores of what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving
from layersync_video.adapter import VideoAdapter
from layersync_video.clip import Clip, conformed
from layersync_video.features import NormalFlow, VideoMae, temporal_flickering
from layersync_video.tokenizer import Pixels, PixelsConfig
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor

from layersync import load, load_recipe, train
from layersync.core.adapter import Example
from layersync.core.errors import InputError


def test_a_window_is_what_its_latent_holds() -> None:
    tokenizer, clip = Pixels(PixelsConfig(num_frames=8)), moving(4, 16)
    stored = tokenizer.encode([clip])[0]
    assert stored.shape == (1, 16, 16, 16) and stored.dtype == torch.float32
    assert (float(stored.min()), float(stored.max())) == (-1.0, pytest.approx(clip.frames.max() / 127.5 - 1))
    for position, first in ((0.0, 0), (0.5, 4), (0.999, 8), (1.0, 8)):
        window = tokenizer.window(clip, position)
        assert np.array_equal(window.frames, clip.frames[first : first + 8])
        assert np.array_equal(tokenizer.decode(stored[None, ..., first : first + 8])[0].frames, window.frames)
    short = moving(4, 5)
    assert np.array_equal(tokenizer.window(short, 0.7).frames, short.frames)
    mask = torch.arange(8)[None] < 5
    assert len(tokenizer.decode(stored[None, ..., :8], mask)[0]) == 5


def test_clips_of_any_rate_size_and_colour_become_alike() -> None:
    clip = replace(moving(2, 16), fps=16.0)
    halved = conformed(clip, 16, 1, 8.0)
    assert np.array_equal(halved.frames, clip.frames[::2]) and halved.fps == 8
    assert np.array_equal(conformed(halved, 16, 1, 16.0).frames[::2], halved.frames)
    wide = Clip(np.random.default_rng(0).integers(0, 256, (3, 40, 64, 3), dtype=np.uint8), 8.0)
    wide.frames[:, :, 12:52] = (200, 40, 40)  # the centre that is kept
    small = conformed(wide, 16, 1)
    assert small.frames.shape == (3, 16, 16, 1) and np.abs(small.frames[:, :, 2:-2].astype(int) - 88).max() <= 1
    assert conformed(small, 16, 3).frames.shape == (3, 16, 16, 3)


def test_a_tree_of_long_and_short_clips_trains_samples_and_scores(tree: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        {
            "modality": "video",
            "data": {"name": "folder", "path": str(tree)},
            "tokenizer": {"num_frames": 8, "image_size": 8, "fps": 8.333},
            "backbone": {"depth": 3, "hidden_size": 36, "num_heads": 2, "patch_size": [4, 4, 2]},
            "regularizer": {"name": "layersync", "weight": 0.3},
            "train": {"steps": 3, "batch_size": 8, "precision": "float32", "log_every": 1},
            "sample": {"solver": "euler", "steps": 2},
        }
    )
    model = load(train(recipe, out=tmp_path / "run").path)
    clips = model.sample(6, labels=[0, 1])
    assert [len(clip) for clip in clips] == [8, 5] * 3  # as long as clips of their label are
    assert {clip.frames.shape[1:] for clip in clips} == {(8, 8, 1)}
    inputs, mask = VideoAdapter().classifier_input(clips)
    assert inputs.shape == (6, 8, 8, 8) and mask is None
    assert np.array_equal(inputs[0].numpy(), clips[0].frames[..., 0] / np.float32(127.5) - 1)


def features(*clips: Clip) -> np.ndarray:
    return np.concatenate(NormalFlow()([Example(clip, {}, "clip") for clip in clips])["features"])


def test_normal_flow_is_the_direction_of_motion() -> None:
    """Bins of 45 degrees from rightwards on, rows downwards; mirroring and time reversal move them as they should."""
    pixels = np.zeros((8, 16, 16, 1), np.uint8)
    pixels[:, 6:10, 2:6] = 200
    for towards, step in enumerate(((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))):
        frames = np.stack([np.roll(frame, np.multiply(step, n), (0, 1)) for n, frame in enumerate(pixels)])
        bins = features(Clip(frames, 8.0)).reshape(8, 8).mean(0)
        assert bins.argmax() == towards or towards % 2  # of a square, what is seen of a diagonal is its two sides
        assert bins[(towards - 1) % 8] + bins[(towards + 1) % 8] + bins[towards] > 0.7 * bins.sum()
    clip = moving(8)
    cells = features(clip)[0].reshape(2, 2, 2, 8)  # time, rows, columns
    mirrored = features(replace(clip, frames=clip.frames[:, :, ::-1]))[0].reshape(2, 2, 2, 8)
    reverse = features(replace(clip, frames=clip.frames[::-1]))[0].reshape(2, 2, 2, 8)
    assert np.allclose(mirrored[:, :, ::-1][..., [4, 3, 2, 1, 0, 7, 6, 5]], cells, atol=1e-3)
    assert np.allclose(np.roll(reverse[::-1], 4, axis=-1), cells, atol=1e-3)
    assert not features(replace(clip, frames=np.repeat(clip.frames[:1], 8, axis=0))).any()
    with pytest.raises(InputError, match="clip: has to be a clip of at least 3 frames"):
        features(moving(0, 2))
    with pytest.raises(InputError, match="without weights"):
        NormalFlow("weights.pth")


def test_flickering_is_one_for_a_still_and_zero_for_black_and_white_in_turn() -> None:
    still, turns = np.full((4, 6, 6, 3), 77, np.uint8), np.zeros((4, 6, 6, 1), np.uint8)
    turns[::2] = 255
    examples = [Example(Clip(frames, 8.0), {}, "clip") for frames in (still, turns, turns // 5)]
    assert temporal_flickering(examples).tolist() == [1.0, 0.0, pytest.approx(0.8)]


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the published one, with a network of two narrow blocks."""
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, num_labels=5, use_mean_pooling=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("videomae")
    VideoMAEForVideoClassification(config).eval().save_pretrained(folder)
    VideoMAEImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def test_videomae_is_the_published_network_on_its_own_preprocessing(videomae: Path) -> None:
    extractor = VideoMae(str(videomae))
    colours = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    clips = [Clip(frames, 8.0) for frames in colours]
    streams = extractor([Example(clip, {}, "clip") for clip in clips])
    processor = VideoMAEImageProcessor.from_pretrained(videomae)
    pixels = processor([list(clip.frames) for clip in clips], return_tensors="pt")
    network = VideoMAEForVideoClassification.from_pretrained(videomae).eval()
    with torch.no_grad():
        wanted = network(**pixels).logits.numpy()
    assert np.allclose(np.concatenate(streams["logits"]), wanted, atol=1e-5)
    assert np.concatenate(streams["features"]).shape == (2, 32) and np.ptp(wanted[0] - wanted[1]) > 1e-3
    long = Clip(np.repeat(clips[0].frames, 2, axis=0)[[0, 2, 4, 7]], 8.0)
    grey = extractor([Example(moving(0, 9), {}, "clip"), Example(long, {}, "clip")])["logits"]
    assert np.allclose(grey[1][0], wanted[0], atol=1e-5)  # alone or beside others


def test_videomae_weights_of_another_network_are_one_line(videomae: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((videomae / "config.json").read_text().replace('"videomae"', '"vit"'))
    (tmp_path / "model.safetensors").write_bytes((videomae / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="holds a model of type 'vit', not 'videomae'"):
        VideoMae(str(tmp_path))
    with pytest.raises(InputError, match="extractor videomae: its weights, MCG-NJU/videomae-base-finetuned-ssv2"):
        VideoMae(None)
