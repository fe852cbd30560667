"""Series go out and come back the same; what holds none is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layersync_timeseries.adapter import TimeSeriesAdapter
from layersync_timeseries.data import SeriesDataset
from PIL import Image

from layersync.core.errors import InputError

ADAPTER = TimeSeriesAdapter()


def test_an_archive_comes_back_with_lengths_and_labels(tmp_path: Path, vowels: SeriesDataset) -> None:
    examples = [vowels[index] for index in (0, 40, 269)]
    ADAPTER.archive([one.sample for one in examples], [one.label for one in examples], tmp_path / "samples.npz")
    opened = ADAPTER.open_samples(tmp_path / "samples.npz")
    assert len({len(one.sample) for one in examples}) > 1
    for index, example in enumerate(examples):
        assert opened[index].sample.tolist() == example.sample.tolist()
        assert opened[index].label == example.label


def test_arrays_and_folders_open(tmp_path: Path) -> None:
    array = np.arange(24.0).reshape(2, 4, 3)
    np.save(tmp_path / "series.npy", array)
    for row, series in enumerate(array):
        np.savetxt(tmp_path / f"{row}.csv", series, delimiter=",")
    for path in (tmp_path / "series.npy", tmp_path):
        opened = ADAPTER.open_samples(path)
        assert [opened[row].sample.tolist() for row in range(2)] == array.tolist()


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("x.npz", {"motions": np.zeros((2, 3, 4))}, "has no array series; it holds motions"),
        ("x.npz", {"series": np.zeros((2, 3))}, r"series is float64 \[2, 3\]; floating \[n, steps, channels\]"),
        (
            "x.npz",
            {"series": np.zeros((2, 3, 4)), "lengths": np.array([3, 4])},
            "lengths go from 3 to 4, not from 1 to 3",
        ),
        ("x.npz", {"series": np.zeros((2, 3, 4)), "labels": np.array([0.5, 1])}, "labels is float64"),
        ("x.npz", {"series": np.full((2, 3, 4), np.nan)}, r"x\.npz\[0\]: has missing values"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, name: str, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / name, **arrays)
    with pytest.raises(InputError, match=message):
        ADAPTER.open_samples(tmp_path / name)


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "folder.csv").mkdir()
    for path, message in (
        (tmp_path / "torn.npz", "no readable npz"),
        (tmp_path, "no .csv"),
        (Path("a.txt"), r"a\.txt: does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            ADAPTER.open_samples(path)


def test_every_sample_has_a_picture_and_the_sheet_all(tmp_path: Path, vowels: SeriesDataset) -> None:
    samples = [vowels[index].sample for index in range(3)]
    files = ADAPTER.render(samples, tmp_path / "pictures")
    assert [file.name for file in files] == ["series.png", "000.png", "001.png", "002.png"]
    sheet, first = (Image.open(file) for file in files[:2])
    assert sheet.width > first.width and len(sheet.getcolors(1 << 24) or []) > 12  # a colour a channel


def test_the_classifier_sees_what_is_real_at_order_1() -> None:
    samples = [np.full((5, 2), 1e6, np.float32), np.full((3, 2), 1e-3, np.float32)]
    x, mask = ADAPTER.classifier_input(samples)
    assert x.shape == (2, 2, 5) and mask.sum(1).tolist() == [5, 3]
    assert 1 < x[0].max() < 20 and not x[1, :, 3:].any()
    assert x[1, 0, 0].item() == pytest.approx(1e-3)
