"""What of a data set scores compare samples with: how many windows, which, and what is done with them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strokes import Offsets, OffsetsConfig, Outline, Strokes, StrokesAdapter

from layersync.core import classifier
from layersync.core.adapter import Example, ExampleDataset
from layersync.core.classifier import WINDOWS_AT_LEAST, TrainingWindows, Windows
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams
from layersync.core.featureset import FeatureSet, extract
from layersync.core.metric import parse_metrics
from layersync.core.packaged import cache_folder
from layersync.core.parallel import Processes
from layersync.core.reference import RunData, SampleFiles

SIZE = 96


def test_neighbours_are_looked_for_among_one_window_of_each_clip() -> None:
    """Of so few clips there are copies among the windows that statistics are of: the distance to them is 0."""
    strokes, tokenizer = Strokes(SIZE, "train"), Offsets(OffsetsConfig())
    real = RunData(strokes, tokenizer, "strokes", "train", Processes())
    rows, statistics = (real.features(Outline(), rows=wanted) for wanted in (True, False))
    found = rows.per_sample(None)
    assert rows.num_samples == len(found) == len(np.unique(found, axis=0)) == SIZE
    windows = Windows(strokes, tokenizer)
    repeated = extract(Outline(), windows.get, range(len(windows)), Processes(), texts=False).per_sample(None)
    assert statistics.num_samples == len(repeated) >= WINDOWS_AT_LEAST > len(np.unique(repeated, axis=0))
    assert np.allclose(statistics.stream(None).statistics.mean, repeated.mean(axis=0, dtype=float))
    assert len(real.features(Outline(), rows=True).per_sample(None)) == SIZE, "the two are kept apart"


class Many(FeatureExtractor):
    """A thousand rows of noise for each sample, and another stream of one."""

    name, preprocessing, batch_size = "many", "none", 4
    streams = ("rows", "one")

    def __call__(self, examples: Sequence[Example]) -> Streams:
        numbers = [int(example.source) for example in examples]
        found = [np.random.default_rng(number).normal(5, 1, (1000, 20)).astype(np.float32) for number in numbers]
        return {"rows": found, "one": [part[:1, :3] for part in found]}


def test_statistics_hold_few_rows_at_a_time() -> None:
    """And are those of all rows, to rounding."""

    def found(*, rows: bool) -> tuple[FeatureSet, int]:
        tracemalloc.start()
        try:
            made = extract(Many(), lambda n: Example(None, {}, str(n)), range(200), Processes(), texts=False, rows=rows)
            return made, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (whole, needed), (statistics, peak) = found(rows=True), found(rows=False)
    assert needed > 200_000 * 20 * 4 > 5 * peak
    for name in Many.streams:
        wanted, ours = whole.stream(name).statistics, statistics.stream(name)
        assert ours.rows is None and ours.statistics.count == wanted.count
        np.testing.assert_allclose(ours.statistics.mean, wanted.mean, rtol=1e-12)
        np.testing.assert_allclose(ours.statistics.covariance, wanted.covariance, rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="statistics alone are not enough"):
        statistics.per_sample("one")


@pytest.mark.parametrize("rows", [True, False])
def test_a_single_row_is_no_set(rows: bool) -> None:
    with pytest.raises(InputError, match="extractor many: 1 row of one; a score needs at least 2"):
        extract(Many(), lambda n: Example(None, {}, str(n)), [3], Processes(), texts=False, rows=rows)


def test_one_file_of_features_serves_metrics_of_rows_and_of_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of statistics alone has no rows, and does not serve metrics of rows."""
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path))
    passes: list[int] = []

    class Counting(Strokes):
        def __getitem__(self, index: int) -> Example:
            passes.append(index)
            return super().__getitem__(index)

    class Folder(StrokesAdapter):
        def open_samples(self, path: Path) -> ExampleDataset:
            return Counting(SIZE, "train")

    def take(*, rows: bool) -> FeatureSet:
        return SampleFiles(Folder(), tmp_path, "--real", Processes()).features(Outline(), rows=rows)

    alone = take(rows=False)
    (kept,) = cache_folder("features").glob("*.npz")
    with np.load(kept) as stored:
        assert set(stored.files) == {"mu", "sigma", "layersync"}
    passes.clear()
    assert take(rows=False).stream(None).statistics.count == SIZE and not passes
    with_rows = take(rows=True)
    assert len(with_rows.per_sample(None)) == SIZE and sorted(passes) == list(range(SIZE))
    passes.clear()
    kept.unlink()
    again = take(rows=False)
    assert not passes and again.stream(None).rows is None
    for made in (alone, with_rows):
        ours = made.stream(None).statistics
        np.testing.assert_allclose(ours.covariance, again.stream(None).statistics.covariance, rtol=1e-9, atol=1e-15)


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
