"""Medical scans as images: DICOM files by pydicom, slices of NIfTI volumes by nibabel.

What a scan holds is a measurement in 8 to 64 bits, not a picture: a window of its values becomes the 256 grey levels of
an image. Both packages are optional: ``pip install "layersync[medical]"``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from layersync.core.errors import InputError

DICOM, NIFTI = (".dcm",), (".nii", ".nii.gz")
SCANS = (*DICOM, *NIFTI)
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Axes of a volume whose voxels run towards the patient's right, front and top (RAS+)."""
MOST_COMPRESSED = 1032
"""Bytes that DEFLATE makes of one at most."""
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What pydicom and nibabel raise besides their own errors for files that are cut short or miss an element."""


class MedicalConfig(BaseModel):
    """Which slices of a scan are images, and what values are black and white. For DICOM and NIfTI files alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    plane: Literal["axial", "coronal", "sagittal"] = Field("axial", description="Plane that a NIfTI volume is cut in.")
    step: int = Field(1, ge=1, description="Of a volume's slices, or a file's frames, every step-th is taken.")
    margin: float = Field(0.0, ge=0, lt=0.5, description="Share of the slices that is left out at either end.")
    volume: int = Field(0, ge=0, description="Which volume of a four-dimensional NIfTI file.")
    window: tuple[float, float] | None = Field(
        None, description="Centre and width in rescaled values, such as Hounsfield units; null: as DICOM says."
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="Black and white where neither window nor file says: of a volume, or a DICOM frame."
    )
    split_by: Literal["patient", "volume"] = Field(
        "patient", description="What is never on both sides of a split. NIfTI names no patient: each file is one."
    )

    @model_validator(mode="after")
    def _ordered(self) -> MedicalConfig:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles: {[low, high]} is no range within [0, 100]")
        if self.window is not None and self.window[1] <= 0:
            raise ValueError(f"window: {list(self.window)}: the width, its second number, must be above 0")
        return self


def is_scan(file: Path) -> bool:
    """Whether the name is that of a DICOM or NIfTI file."""
    return file.name.lower().endswith(SCANS)


def grey_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values to uint8: ``low`` and below is 0, ``high`` and above 255, what is no number 0."""
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def _take_frames_own(dataset: Any, number: int) -> None:
    """Give ``dataset`` rescaling and window of frame ``number``, where they lie with the frames (PS3.3 C.7.6.16)."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *own[number : number + 1]):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if found := group.get(name):
                dataset.update(found[0])


def _by_table(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Grey levels by the first VOI LUT of a DICOM data set (PS3.3 C.11.2.1.1), which runs from 0 to 2^bits - 1."""
    from pydicom.pixels import apply_voi

    table = dataset.VOILUTSequence[0]
    entries, first, bits = table.LUTDescriptor
    table.LUTDescriptor = [entries, first, 16]  # apply_voi counts the entries of a table of 8 bits in a byte
    inside = np.rint(values).clip(first, first + (entries or 2**16) - 1).astype(np.int64)
    return grey_levels(apply_voi(inside, dataset), 0, 2**bits - 1)


@dataclass(frozen=True)
class _Header:
    """``group`` is what its slices share a split with; ``slices`` are numbers of those that are taken."""

    group: Hashable
    slices: Sequence[int]


class Scans:
    """Reads the scans of one data set; looks into each file's header once.

    With ``skip`` a file whose header cannot be read counts as one slice, which cannot be read either.
    """

    def __init__(self, config: MedicalConfig, skip: bool):
        self.config, self.skip = config, skip
        self._headers: dict[Path, _Header] = {}
        self._held: tuple[Path, np.ndarray] | None = None

    def group(self, file: Path) -> Hashable:
        """The patient or volume that ``file`` belongs to; itself for what is no scan."""
        return self._header(file).group if is_scan(file) else file

    def expand(self, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """Images of ``files``: for each its file's number and its slice in there, 0 for what is no scan."""
        slices = [self._header(file).slices if is_scan(file) else (0,) for file in files]
        rows = np.repeat(np.arange(len(files)), [len(numbers) for numbers in slices])
        return rows, np.fromiter((number for numbers in slices for number in numbers), np.int64, len(rows))

    def read(self, file: Path, number: int) -> np.ndarray:
        """Slice ``number`` as uint8 (height, width, 1 or 3). InputError for what cannot be read.

        Slices of a volume are shown as DICOM shows them: the patient's right on the left, front or top above.
        """
        if file.name.lower().endswith(DICOM):
            return self._dicom_frame(file, number)
        if self._held is None or self._held[0] != file:
            self._held = file, self._nifti_volume(file)
        return np.ascontiguousarray(self._held[1][number].T[::-1, ::-1, None])

    def _header(self, file: Path) -> _Header:
        if file not in self._headers:
            read = self._dicom_header if file.name.lower().endswith(DICOM) else self._nifti_header
            self._headers[file] = read(file)
        return self._headers[file]

    def _unreadable(self, error: InputError, file: Path) -> _Header:
        if self.skip:
            return _Header(file, (0,))
        raise error from None

    def _taken(self, count: int) -> Sequence[int]:
        left_out = int(self.config.margin * count)
        return range(left_out, count - left_out, self.config.step)

    def _dicom_header(self, file: Path) -> _Header:
        pydicom = _pydicom(file)
        wanted = ["PatientID", "SeriesInstanceUID", "NumberOfFrames", "Rows"]
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=wanted)
            if "Rows" not in header:
                raise ValueError("there are no pixels in it")
            count = int(header.get("NumberOfFrames") or 1)
            _check_count(count, file)
            syntax = header.file_meta.TransferSyntaxUID
            decodable = pydicom.pixels.get_decoder(syntax).is_available
        except (pydicom.errors.InvalidDicomError, *DAMAGED) as error:
            return self._unreadable(_damaged(file, "DICOM image", error), file)
        if not decodable:
            return self._unreadable(_undecodable(file, syntax.name), file)
        patient = header.get("PatientID") if self.config.split_by == "patient" else None
        return _Header(patient or header.get("SeriesInstanceUID") or file, self._taken(count))

    def _dicom_frame(self, file: Path, number: int) -> np.ndarray:
        pydicom = _pydicom(file)
        pixels = pydicom.pixels
        try:
            dataset = pydicom.dcmread(file)
            try:
                frame = pixels.pixel_array(dataset, index=number)
            except RuntimeError:  # of the decoders that are there, none knows this kind of compression
                raise _undecodable(file, dataset.file_meta.TransferSyntaxUID.name) from None
            photometric = str(dataset.PhotometricInterpretation)
            if photometric == "PALETTE COLOR":
                frame = pixels.apply_color_lut(frame, dataset)
                return (frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame
            if frame.ndim == 3:
                return (frame >> max(int(dataset.BitsStored) - 8, 0)).astype(np.uint8)
            _take_frames_own(dataset, number)
            values = pixels.apply_modality_lut(frame, dataset)
            grey = self._dicom_window(values, dataset)
        except (pydicom.errors.InvalidDicomError, *DAMAGED) as error:
            raise error if isinstance(error, InputError) else _damaged(file, "DICOM image", error) from None
        return (255 - grey if photometric == "MONOCHROME1" else grey)[..., None]

    def _dicom_window(self, values: np.ndarray, dataset: Any) -> np.ndarray:
        """Grey levels by the recipe's window, else the file's first table, else its first window, else percentiles."""
        from pydicom.pixels import apply_windowing

        if self.config.window is None and dataset.get("VOILUTSequence"):
            return _by_table(values, dataset)
        own = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
        if self.config.window is not None or not own:
            return self._levels(values)
        ends = np.array([-1e12, 1e12])  # what the file's function makes of these is its black and white
        with np.errstate(over="ignore"):
            low, high = apply_windowing(ends, dataset)
            return grey_levels(apply_windowing(values, dataset), low, high)

    def _levels(self, values: np.ndarray) -> np.ndarray:
        if self.config.window is not None:
            centre, width = self.config.window
            return grey_levels(values, centre - width / 2, centre + width / 2)
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, self.config.percentiles) if finite.size else (0.0, 0.0)
        if low == high and finite.size:  # a mask or a nearly empty slice: what stands out is few voxels
            low, high = finite.min(), finite.max()
        return grey_levels(values, float(low), float(high))

    def _nifti(self, file: Path) -> tuple[Any, np.ndarray]:
        """The volume of ``file``, its voxels unread, and the orientation of its axes."""
        nibabel = _nibabel(file)
        errors = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, *DAMAGED)
        try:
            image = nibabel.load(file)
            if not isinstance(image, nibabel.spatialimages.SpatialImage) or len(image.shape) not in (3, 4):
                raise ValueError("it holds no volume of three axes, nor several")
            orientation = nibabel.io_orientation(image.affine)
            if np.isnan(orientation).any():
                raise ValueError("its affine has no orientation")
            _check_count(max(image.shape), file)
        except errors as error:
            raise _damaged(file, "NIfTI volume", error) from None
        if len(image.shape) == 4 and self.config.volume >= image.shape[3]:
            raise InputError(f"data.medical.volume: {self.config.volume}, {file} has {image.shape[3]}, counted from 0")
        return image, orientation

    def _nifti_header(self, file: Path) -> _Header:
        _nibabel(file)
        try:
            image, orientation = self._nifti(file)
        except InputError as error:
            return self._unreadable(error, file)
        axis = int(np.flatnonzero(orientation[:, 0] == PLANES[self.config.plane])[0])
        return _Header(file, self._taken(image.shape[axis]))

    def _nifti_volume(self, file: Path) -> np.ndarray:
        """uint8 (slices, ., .): the plane's axis first, the others towards the patient's right, front or top."""
        image, orientation = self._nifti(file)
        try:
            stored = image.dataobj[..., self.config.volume] if len(image.shape) == 4 else np.asarray(image.dataobj)
            values = _nibabel(file).apply_orientation(np.asarray(stored, dtype=np.float32), orientation)
        except DAMAGED as error:
            raise _damaged(file, "NIfTI volume", error) from None
        return np.moveaxis(self._levels(values), PLANES[self.config.plane], 0)


def _check_count(count: int, file: Path) -> None:
    """Raise ValueError for slices, or voxels along an axis, that ``file`` cannot hold, whatever its header says."""
    size = file.stat().st_size
    if count > size * MOST_COMPRESSED:
        raise ValueError(f"its header says {count:,}, and it has {size:,} bytes")


def _pydicom(file: Path) -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise InputError(f"{file}: DICOM is read by pydicom; pip install 'layersync[medical]'") from None
    return pydicom


def _nibabel(file: Path) -> Any:
    try:
        import nibabel
    except ImportError:
        raise InputError(f"{file}: NIfTI is read by nibabel; pip install 'layersync[medical]'") from None
    return nibabel


def _undecodable(file: Path, syntax: str) -> InputError:
    return InputError(
        f"{file}: is compressed as {syntax}, which pydicom cannot decode with what is installed; "
        f"pip install 'pydicom[pixeldata]', or decompress it"
    )


def _damaged(file: Path, what: str, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(f"{file}: is corrupt or no {what} ({reason})")
