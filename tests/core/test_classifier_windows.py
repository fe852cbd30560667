"""What of a data set scores compare samples with: how many windows, which, and what is done with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from strokes import Offsets, OffsetsConfig, Outline, Strokes, StrokesAdapter

from layersync.core import classifier
from layersync.core.classifier import WINDOWS_AT_LEAST, TrainingWindows, Windows
from layersync.core.errors import InputError
from layersync.core.featureset import extract
from layersync.core.metric import parse_metrics
from layersync.core.parallel import Processes
from layersync.core.reference import RunData

SIZE = 96


def test_neighbours_are_looked_for_among_one_window_of_each_clip() -> None:
    """Of so few clips there are copies among the windows that statistics are of: the distance to them is 0."""
    real = RunData(Strokes(SIZE, "train"), Offsets(OffsetsConfig()), "strokes", "train", Processes())
    rows, statistics = (real.features(Outline(), rows=wanted) for wanted in (True, False))
    found, repeated = (part.per_sample(None) for part in (rows, statistics))
    assert rows.num_samples == len(found) == len(np.unique(found, axis=0)) == SIZE
    assert statistics.num_samples == len(repeated) >= WINDOWS_AT_LEAST > len(np.unique(repeated, axis=0))
    assert len(real.features(Outline(), rows=True).per_sample(None)) == SIZE, "the two are kept apart"


def test_rows_are_those_of_their_samples_in_whatever_order_these_are_read() -> None:
    """Windows of a clip are read together, so their numbers do not ascend."""
    strokes = Strokes(SIZE, "train")
    found = [
        extract(Outline(), strokes.__getitem__, numbers, Processes(), texts=False).per_sample(None)
        for numbers in (range(40), [*range(1, 40, 2), *range(0, 40, 2)])
    ]
    assert len(np.unique(found[0], axis=0)) > 30 and np.allclose(found[0], found[1])


def test_classifiers_hold_few_raw_windows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And read of them what they read of all at once, in the same order."""
    sizes = []

    class Adapter(StrokesAdapter):
        def classifier_input(self, samples: Any) -> Any:
            sizes.append(len(samples))
            return super().classifier_input(samples)

    windows = Windows(Strokes(SIZE, "train"), Offsets(OffsetsConfig()), at_least=3 * SIZE)
    whole = classifier.classifier_input(StrokesAdapter(), windows.read())
    monkeypatch.setattr(classifier, "WINDOWS_AT_ONCE", 50)
    x, mask, labels = classifier.inputs_of(Adapter(), windows)
    assert max(sizes) == 50 and sum(sizes) == len(windows) == 3 * SIZE
    assert torch.equal(x, whole[0]) and torch.equal(mask, whole[1])
    assert labels.tolist() == [windows.get(item).label for item in range(len(windows))]


def test_too_few_clips_for_neighbours_are_found_at_once() -> None:
    metrics = parse_metrics("image", ["fd-dinov2", "precision-dinov2"])
    real = [
        RunData(Strokes(size, "train"), Offsets(OffsetsConfig()), "strokes", "train", Processes()) for size in (5, 6)
    ]
    with pytest.raises(InputError, match=r"precision-dinov2: .* at least 6; data strokes, split train, has 5"):
        real[0].check(metrics)
    real[0].check(metrics[:1])
    real[1].check(metrics)


def test_of_a_large_data_set_20000_examples_are_the_reference() -> None:
    """The same ones for every run, spread over all of it."""
    size = 21_000
    real = [RunData(Strokes(size, "train"), Offsets(OffsetsConfig()), "strokes", "train", Processes()) for _ in "ab"]
    for found in (real[0].windows, real[0].once):
        indices = [index for index, _, _ in found.items]
        assert len(found) == 20_000 == len(set(indices)) and indices[-1] > size - 50
        assert indices == [index for index, _, _ in real[1].windows.items]
    everything = Windows(Strokes(size, "train"), Offsets(OffsetsConfig()), at_most=None)
    assert len(everything) == size


def test_a_limit_picks_the_same_ones_from_everywhere() -> None:
    windows = [Windows(Strokes(SIZE, "train"), Offsets(OffsetsConfig()), at_least=1, at_most=20) for _ in range(2)]
    indices = [index for index, _, _ in windows[0].items]
    assert indices == [index for index, _, _ in windows[1].items] == sorted(set(indices))
    assert len(indices) == 20 and min(indices) < SIZE / 4 and max(indices) > 3 * SIZE / 4


def test_every_excerpt_that_training_can_draw_is_among_the_windows_of_training() -> None:
    """Of strokes longer than the window all cuts, of shorter ones the whole, once."""
    strokes, offsets = Strokes(SIZE, "train"), Offsets(OffsetsConfig())
    windows = {window.sample.tobytes() for window in TrainingWindows(strokes, offsets).read()}
    for index in range(SIZE):
        for position in np.random.default_rng(index).random(4):
            assert offsets.window(strokes[index].sample, float(position)).tobytes() in windows
    short = [index for index in range(SIZE) if len(strokes[index].sample) <= OffsetsConfig().num_frames]
    assert short and len(TrainingWindows(strokes, offsets).read(short)) == len(short)
    for index in set(range(SIZE)) - set(short):
        room = len(strokes[index].sample) - OffsetsConfig().num_frames
        assert len(TrainingWindows(strokes, offsets).read([index])) == room + 1, "each cut once"


def test_of_many_clips_there_are_fewer_windows_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "PLACES_IN_ALL", 3 * SIZE)
    strokes = Strokes(SIZE, "train")
    windows = TrainingWindows(strokes, Offsets(OffsetsConfig()))
    long = [index for index in range(SIZE) if len(strokes[index].sample) > OffsetsConfig().num_frames + 1]
    assert windows.places == 3 and len(windows.read(long)) == 3 * len(long)


def test_each_clip_is_read_once_for_all_of_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the windows all the same."""
    windows = Windows(Strokes(SIZE, "train"), Offsets(OffsetsConfig()))
    wanted = [windows.get(item) for item in range(len(windows))]
    read, get = [], Strokes.__getitem__
    monkeypatch.setattr(Strokes, "__getitem__", lambda self, index: (read.append(index), get(self, index))[1])
    found = Windows(Strokes(SIZE, "train"), Offsets(OffsetsConfig())).read()
    assert len(found) > 20 * SIZE and sorted(read) == list(range(SIZE))
    assert all(np.array_equal(a.sample, b.sample) for a, b in zip(found, wanted, strict=True))
