"""Medical scans as images, on the files that pydicom and nibabel ship for their own tests."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from layersync import InputError, Run, load_recipe
from layersync.core.adapter import ExampleDataset
from layersync.modalities.image.data import SOURCES

DICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI_FILES = Path(nibabel.__file__).parent / "tests" / "data"
CT = "dicomdirtests/77654033/CT2/17106"
CR = "dicomdirtests/77654033/CR1/6154"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")


def dataset(path: Path, split: str = "train", medical: dict[str, Any] | None = None, **more: Any) -> ExampleDataset:
    section = {"name": "folder", "path": str(path), "medical": medical or {}, **more}
    return SOURCES["folder"].model_validate(section).build(split)  # type: ignore[arg-type]


def only(tmp_path: Path, source: Path, medical: dict[str, Any] | None = None, **more: Any) -> ExampleDataset:
    """The data set of one file."""
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(source, folder / (source.name if source.suffix in (".dcm", ".gz", ".nii") else f"{source.name}.dcm"))
    return dataset(folder, medical=medical, **more)


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return 255 * ((values - low) / (high - low)).clip(0, 1)


def test_the_window_is_the_files(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1: of Hounsfield units, from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2."""
    raw = pydicom.dcmread(DICOM_FILES / CT)
    assert (raw.WindowCenter, raw.WindowWidth, raw.RescaleIntercept) == (30, 100, -1024)
    expected = levels(raw.pixel_array - 1024.0, 29.5 - 49.5, 29.5 + 49.5)
    found = only(tmp_path, DICOM_FILES / CT)[0].sample
    assert found.shape == (16, 16, 1) and found.dtype == np.uint8 and len(np.unique(found)) > 5
    assert np.abs(found[..., 0] - expected).max() <= 0.51


def test_the_recipes_window_goes_before_the_files(tmp_path: Path) -> None:
    hounsfield = pydicom.dcmread(DICOM_FILES / CT).pixel_array - 1024.0
    found = only(tmp_path, DICOM_FILES / CT, {"window": [-200, 1600]})[0].sample
    assert np.abs(found[..., 0] - levels(hounsfield, -1000, 600)).max() <= 0.51


@pytest.mark.parametrize(("bits", "signed"), [(12, True), (8, True), (16, False)])
def test_a_table_of_grey_levels_goes_before_the_window(tmp_path: Path, bits: int, signed: bool) -> None:
    """PS3.3 C.11.2.1.1: values below the first entry are the first, above the last the last, 2^bits - 1 is white."""
    raw = pydicom.dcmread(DICOM_FILES / CT)
    hounsfield = raw.pixel_array - 1024.0
    first, entries = (-900, 1000) if signed else (20, 1000)
    curve = np.round((2**bits - 1) * np.linspace(0, 1, entries) ** 0.5).astype(np.uint16)
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "SS" if signed else "US", [entries, first, bits])
    table.add_new("LUTData", "OW" if signed else "US", curve.tobytes() if signed else curve.tolist())
    raw.VOILUTSequence = pydicom.Sequence([table])
    raw.save_as(tmp_path / "table.dcm")
    found = only(tmp_path, tmp_path / "table.dcm")[0].sample[..., 0]
    expected = levels(curve[(hounsfield - first).clip(0, entries - 1).astype(int)], 0, 2**bits - 1)
    assert np.abs(found - expected).max() <= 0.51 and len(np.unique(found)) > 5
    shutil.rmtree(tmp_path / "scans")
    by_recipe = only(tmp_path, tmp_path / "table.dcm", {"window": [-200, 1600]})[0].sample[..., 0]
    assert np.abs(by_recipe - levels(hounsfield, -1000, 600)).max() <= 0.51


def test_frames_of_an_enhanced_file_have_windows_of_their_own(tmp_path: Path) -> None:
    """PS3.3 C.7.6.16: what all frames share lies in one group, what is a frame's own in the group of its number."""
    raw = pydicom.dcmread(DICOM_FILES / CT)
    stored, bits = raw.pixel_array, raw.PixelData
    del raw.WindowCenter, raw.WindowWidth, raw.RescaleSlope, raw.RescaleIntercept
    raw.NumberOfFrames, raw.PixelData = 2, bits + bits

    def group(name: str, **values: float) -> pydicom.Dataset:
        inner, outer = pydicom.Dataset(), pydicom.Dataset()
        inner.update(values)
        setattr(outer, name, pydicom.Sequence([inner]))
        return outer

    shared = group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-1024)
    windows = [(1000, 800), (1200, 300)]
    own = [group("FrameVOILUTSequence", WindowCenter=centre, WindowWidth=width) for centre, width in windows]
    raw.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    raw.PerFrameFunctionalGroupsSequence = pydicom.Sequence(own)
    raw.save_as(tmp_path / "enhanced.dcm")
    found = only(tmp_path, tmp_path / "enhanced.dcm")
    assert len(found) == 2 and (found[0].sample != found[1].sample).any()
    for number, (centre, width) in enumerate(windows):
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        assert np.abs(found[number].sample[..., 0] - levels(2 * stored - 1024.0, low, high)).max() <= 0.51


def test_without_a_window_percentiles_are_black_and_white(tmp_path: Path) -> None:
    raw = pydicom.dcmread(DICOM_FILES / "CT_small.dcm")
    assert "WindowCenter" not in raw and raw.BitsStored == 16
    values = raw.pixel_array.astype(float)
    found = only(tmp_path, DICOM_FILES / "CT_small.dcm", {"percentiles": [5, 95]})[0].sample[..., 0]
    assert np.abs(found - levels(values, *np.percentile(values, [5, 95]))).max() <= 0.51
    assert 0.04 < (found == 255).mean() < 0.06


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    raw = pydicom.dcmread(DICOM_FILES / CR)
    assert raw.PhotometricInterpretation == "MONOCHROME1"
    found = only(tmp_path, DICOM_FILES / CR)[0].sample[..., 0]
    order = np.argsort(raw.pixel_array.ravel(), kind="stable")
    assert len(np.unique(found)) > 5 and (np.diff(found.ravel()[order].astype(int)) <= 0).all()


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm"])
def test_transfer_syntaxes_of_one_image_agree(name: str, tmp_path: Path) -> None:
    for folder in ("first", "other"):
        (tmp_path / folder).mkdir()
    first = only(tmp_path / "first", DICOM_FILES / "MR_small.dcm")[0].sample
    assert (only(tmp_path / "other", DICOM_FILES / name)[0].sample == first).all()


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("examples_rgb_color.dcm", 8),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 8),
        ("SC_ybr_full_422_uncompressed.dcm", 8),
        ("SC_rgb_rle_16bit.dcm", 16),
        ("SC_rgb_rle_32bit.dcm", 32),
    ],
)
def test_colour_stays_colour(name: str, bits: int, tmp_path: Path) -> None:
    source = next(DICOM_FILES.parent.rglob(name))
    expected = pydicom.pixels.pixel_array(source) >> (bits - 8)
    found = only(tmp_path, source)[0].sample
    assert found.dtype == np.uint8 and (found == expected).all()
    assert found[..., 0].max() > 200


def test_palettes_become_colour(tmp_path: Path) -> None:
    source = next(DICOM_FILES.parent.rglob("examples_palette.dcm"))
    found = only(tmp_path, source)[0].sample
    assert found.shape == (350, 800, 3) and found.dtype == np.uint8
    assert (np.ptp(found.astype(int), axis=2) > 50).any()


def test_frames_of_one_file_are_images(tmp_path: Path) -> None:
    data = only(tmp_path, DICOM_FILES / "rtdose.dcm", {"step": 3, "margin": 0.2})
    assert [data[i].source.rpartition("[")[2] for i in range(len(data))] == ["3]", "6]", "9]"]
    frames = pydicom.dcmread(DICOM_FILES / "rtdose.dcm")
    for index, number in enumerate((3, 6, 9)):
        values = frames.pixel_array[number] * float(frames.get("DoseGridScaling", 1))
        expected = levels(values, *np.percentile(values, [0.5, 99.5]))
        assert np.abs(data[index].sample[..., 0] - expected).max() <= 0.51


def test_a_few_bright_voxels_and_numbers_that_are_none(tmp_path: Path) -> None:
    values = np.zeros((10, 10, 10), np.float32)
    values[2, 3, 4], values[1, 1, 1], values[5, 5, 5] = 7, 3.5, np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "mask.nii.gz")
    shown = np.stack([dataset(tmp_path)[number].sample for number in range(10)])
    assert (shown > 0).sum() == 2 and shown[4, 9 - 3, 9 - 2] == 255 and shown[1, 9 - 1, 9 - 1] == 128


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_follow_the_patient_not_the_file(plane: str, tmp_path: Path) -> None:
    """``anatomical.nii`` is stored left, front, top; nibabel's own reorientation is right, front, top."""
    image = nibabel.load(NIFTI_FILES / "anatomical.nii")
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    values = nibabel.as_closest_canonical(image).get_fdata()
    low, high = np.percentile(values, [0.5, 99.5])
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    data = only(tmp_path, NIFTI_FILES / "anatomical.nii", {"plane": plane})
    assert len(data) == values.shape[axis]
    number = values.shape[axis] // 2
    cut = levels(values.take(number, axis), low, high)
    found = data[number].sample[..., 0]
    assert len(np.unique(found)) > 50
    # columns run from the patient's right (front, of a sagittal slice), rows from the front or the top
    assert np.abs(found - cut[::-1, ::-1].T).max() <= 0.51


def test_one_of_several_volumes_is_chosen(tmp_path: Path) -> None:
    source = NIFTI_FILES / "example_nifti2.nii.gz"
    values = nibabel.load(source).get_fdata()
    assert values.shape == (32, 20, 12, 2)
    data = only(tmp_path, source, {"volume": 1})
    flipped = levels(values[..., 1], *np.percentile(values[..., 1], [0.5, 99.5]))[:, :, 6]
    assert len(data) == 12 and np.abs(data[6].sample[..., 0] - flipped[:, ::-1].T).max() <= 0.51  # stored left to right
    with pytest.raises(InputError, match=r"data\.medical\.volume: 2, .*nifti2\.nii\.gz has 2, counted from 0"):
        dataset(tmp_path / "scans", medical={"volume": 2})


def test_a_volume_is_on_one_side_of_the_split(tmp_path: Path) -> None:
    for label in ("heads", "knees"):
        (tmp_path / label).mkdir()
        for number in range(12):
            shutil.copy(NIFTI_FILES / "standard.nii.gz", tmp_path / label / f"{number:02d}.nii.gz")
    parts = [dataset(tmp_path, split) for split in ("train", "test")]
    files = [{part[i].source.partition("[")[0] for i in range(len(part))} for part in parts]
    assert [len(part) for part in parts] == [2 * 11 * 7, 2 * 7]
    assert files[0].isdisjoint(files[1]) and len(files[1]) == 2
    assert parts[0].classes == ("heads", "knees")
    assert {part[i].condition["label"] for part in parts for i in range(len(part))} == {0, 1}


def test_a_patients_series_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    scan = pydicom.dcmread(DICOM_FILES / CT)
    for patient in range(10):
        for series in range(2):
            for number in range(3):
                scan.PatientID, scan.SeriesInstanceUID = f"P{patient}", f"1.2.3.{patient}.{series}"
                scan.save_as(tmp_path / f"{number}-{patient}-{series}.dcm")  # a series is not together by name

    def held_out(split_by: str) -> list[Path]:
        test = dataset(tmp_path, "test", {"split_by": split_by})
        train = dataset(tmp_path, "train", {"split_by": split_by})
        assert len(test) + len(train) == 60
        return [Path(test[i].source.partition("[")[0]) for i in range(len(test))]

    patients = {file.stem[2] for file in held_out("patient")}
    assert len(patients) == 1 and len(held_out("patient")) == 6
    series = {file.stem[2:] for file in held_out("volume")}
    assert series == {"4-1", "9-1"} and len(held_out("volume")) == 6


def test_fingerprints_follow_the_settings(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    shutil.copy(DICOM_FILES / "CT_small.dcm", tmp_path / "scans")
    prints = [
        dataset(tmp_path / "scans", medical=medical).fingerprint
        for medical in ({}, {"window": [40, 400]}, {"percentiles": [1, 99]})
    ]
    assert len(set(prints)) == 3


def test_exif_has_nothing_to_say_of_scans(tmp_path: Path) -> None:
    before = only(tmp_path, DICOM_FILES / CT).fingerprint
    with pytest.warns(UserWarning, match=r"data\.orientation has no effect: .* holds DICOM and NIfTI alone"):
        assert dataset(tmp_path / "scans", orientation="exif").fingerprint == before


def test_settings_without_scans_are_said(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    before = dataset(tmp_path).fingerprint
    with pytest.warns(UserWarning, match=r"data\.medical has no effect: .* holds no DICOM and no NIfTI"):
        assert dataset(tmp_path, medical={"step": 2}).fingerprint == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        only(tmp_path, NIFTI_FILES / "standard.nii.gz", {"step": 2})
        assert len(dataset(tmp_path / "scans", "test", {"step": 2})) == 0


@pytest.fixture
def no_more_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pydicom's decoders Pillow alone, which we need ourselves, whatever else is installed."""
    from pydicom.pixels.decoders import base

    for decoder in vars(base).values():
        if isinstance(decoder, base.Decoder):
            kept = {name: plugin for name, plugin in decoder._available.items() if name == "pillow"}
            monkeypatch.setattr(decoder, "_available", kept)


@pytest.mark.usefixtures("no_more_decoders")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "is compressed as JPEG-LS Lossless Image Compression, which pydicom cannot"),
        ("JPGExtended.dcm", "is compressed as JPEG Extended (Process 2 and 4), which pydicom cannot decode"),
        ("MR_truncated.dcm", "is corrupt or no DICOM image"),
        ("nested_priv_SQ.dcm", "is corrupt or no DICOM image (there are no pixels in it)"),
        ("rtstruct.dcm", "is corrupt or no DICOM image (File is missing DICOM File Meta"),
        ("badVR.dcm", "is corrupt or no DICOM image"),
    ],
)
def test_what_cannot_be_read_is_named_or_skipped(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        only(tmp_path, DICOM_FILES / name)[0]
    assert name in str(refused.value) and words in str(refused.value) and "\n" not in str(refused.value)
    skipping = dataset(tmp_path / "scans", on_error="skip")
    assert len(skipping) == 1
    with pytest.raises(InputError, match=r"\.dcm"):
        skipping[0]


@pytest.mark.usefixtures("no_more_decoders")
def test_a_decoder_that_is_missing_is_found_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"JPEG-LS.*pip install 'pydicom\[pixeldata\]'"):
        only(tmp_path, DICOM_FILES / "MR_small_jpeg_ls_lossless.dcm")


def test_more_frames_than_a_file_can_hold_are_refused(tmp_path: Path) -> None:
    scan = pydicom.dcmread(DICOM_FILES / "CT_small.dcm")
    scan.NumberOfFrames = 2**31 - 1
    scan.save_as(tmp_path / "many.dcm")
    said = r"many\.dcm: is corrupt or no DICOM image \(its header says 2,147,483,647, and it has [\d,]+ bytes\)$"
    with pytest.raises(InputError, match=said):
        dataset(tmp_path)
    assert len(dataset(tmp_path, on_error="skip")) == 1


def test_more_voxels_than_a_file_can_hold_are_refused(tmp_path: Path) -> None:
    header = nibabel.Nifti2Header()
    header.set_data_shape((2, 2, 2**40))
    header["vox_offset"], header["magic"] = 544, b"n+2"
    (tmp_path / "deep.nii").write_bytes(header.binaryblock + bytes(64))
    said = r"deep\.nii: is corrupt or no NIfTI volume \(its header says 1,099,511,627,776, and it has [\d,]+ bytes\)$"
    with pytest.raises(InputError, match=said):
        dataset(tmp_path)
    assert len(dataset(tmp_path, on_error="skip")) == 1


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b\x08nothing", b"text, no volume"])
def test_damaged_volumes_are_named(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "head.nii.gz").write_bytes(damage)
    with pytest.raises(InputError, match=r"head\.nii\.gz: is corrupt or no NIfTI volume"):
        dataset(tmp_path)


def test_a_volume_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "head.nii").write_bytes((NIFTI_FILES / "anatomical.nii").read_bytes()[:9000])
    with pytest.raises(InputError, match=r"head\.nii: is corrupt or no NIfTI volume"):
        dataset(tmp_path)[0]
    shutil.copy(NIFTI_FILES / "row_major.dconn.nii", tmp_path / "head.nii")
    with pytest.raises(InputError, match=r"head\.nii: is corrupt or no NIfTI volume"):
        dataset(tmp_path)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(("package", "file"), [("pydicom", "CT_small.dcm"), ("nibabel", "standard.nii.gz")])
def test_a_missing_package_names_the_extra(
    package: str, file: str, on_error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy((DICOM_FILES if package == "pydicom" else NIFTI_FILES) / file, tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"read by {package}; pip install 'layersync\[medical\]'"):
        dataset(tmp_path, on_error=on_error)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.medical.plane=transverse", ["data.medical.plane", "'axial'"]),
        ("data.medical.window=[40, 0]", ["data.medical", "window: [40.0, 0.0]", "width"]),
        ("data.medical.percentiles=[99, 1]", ["data.medical", "percentiles: [99.0, 1.0]"]),
        ("data.medical.stp=2", ["data.medical.stp", "did you mean 'step'?"]),
        ("data.medical.margin=0.5", ["data.medical.margin", "0.5"]),
    ],
)
def test_bad_settings_are_named(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe("image/medical-slices", [override])
    assert all(word in str(refused.value) for word in words), refused.value


def test_the_shipped_recipe_trains_samples_and_is_scored(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    for name in ("MR_small.dcm", "CT_small.dcm", "rtstruct.dcm"):
        (scans / "dicom").mkdir(parents=True, exist_ok=True)
        shutil.copy(DICOM_FILES / name, scans / "dicom")
    for number in range(11):
        (scans / "heads").mkdir(exist_ok=True)
        shutil.copy(NIFTI_FILES / "anatomical.nii", scans / "heads" / f"{number:02d}.nii")
    monkeypatch.setenv("LAYERSYNC_DATA", str(tmp_path))
    tiny = ["backbone.depth=3", "backbone.hidden_size=32", "train.steps=2", "train.batch_size=8"]
    tiny += ["sample.steps=2", "evaluate.num_samples=4", "optimizer.warmup=0"]
    given = [part for override in tiny for part in ("--set", override)]
    status, _, said = command("train", "image/medical-slices", *given, "--out", tmp_path / "run")
    assert status == 0, said
    run = Run(tmp_path / "run")
    assert run.data.num_examples == 10 * 11 + 2  # 11 of 25 slices of 10 volumes; the file without pixels is skipped
    assert run.recipe.to_mapping()["data"]["path"] == "$LAYERSYNC_DATA/scans"
    status, _, said = command("sample", tmp_path / "run", "--num", 2, "--out", tmp_path / "samples")
    assert status == 0 and (tmp_path / "samples" / "000.png").is_file(), said
    status, out, said = command("evaluate", tmp_path / "run", "--json")
    assert status == 0 and '"nearest-training"' in out, said
