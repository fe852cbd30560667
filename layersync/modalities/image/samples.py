"""Anybody's image samples, in and out: folders of images, ADM's ``.npz``, ``.npy``."""

from __future__ import annotations

import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from layersync.core.adapter import Example, ExampleDataset
from layersync.core.errors import InputError
from layersync.core.paths import caption_files, files_below, fingerprint_files, first_caption
from layersync.core.run import atomic_write
from layersync.modalities.image.decoding import CORRUPT, EXTENSIONS, FLOATING_POINT, decode_image, is_transparent
from layersync.modalities.image.tokenizer import with_channels

STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
CONTACT_SHEET = "grid.png"
MOST_CLASSES = 65536
DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, tokenize.TokenError)
"""What NumPy and zipfile raise for files that are cut short, pickled or of another kind."""
FLOAT_HINT = "from [-1, 1] that is clip(127.5 * x + 128, 0, 255), from [0, 1] clip(255 * x + 0.5, 0, 255), cut to uint8"


class ImageSamples(ExampleDataset):
    """Samples read on demand: ``read(i)`` gives a uint8 array (height, width, 1 or 3) or raises InputError."""

    def __init__(
        self,
        read: Callable[[int], NDArray[np.uint8]],
        condition: Callable[[int], Mapping[str, int | str]],
        sources: Sequence[str],
        fingerprint: str,
        classes: Sequence[str] = (),
    ):
        self._read, self._condition, self._sources = read, condition, sources
        self.fingerprint, self.classes = fingerprint, tuple(classes)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Example:
        return Example(self._read(index), self._condition(index), self._sources[index])


def open_image_samples(path: Path) -> ImageSamples:
    """All images of a folder, an ADM ``.npz`` or a ``.npy``, in the order of their names or rows.

    - A folder is searched at any depth. The first line of ``NAME.txt`` beside ``NAME.png`` that is not empty is that
      image's ``text``. The contact sheet that ``layersync sample`` draws is left out. Of 16 bits a channel the upper
      eight are taken.
    - An ``.npz`` holds images in ``arr_0``, uint8 (n, height, width[, 1, 3 or 4]), and may hold integer labels in
      ``arr_1``.
    - A ``.npy`` holds an array of that layout.

    Pixels are read when they are asked for: arrays are memory-mapped unless they are compressed. Transparency is
    dropped, with one warning.

    Raises:
        InputError: for a path that holds no images, images of differing sizes, captions that are empty or no UTF-8, or
            arrays of another layout or type.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if path.suffix == ".npz":
        return _open_npz(path)
    if path.suffix == ".npy":
        with _readable(path):
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        return _from_array(path, images, None, str(path))
    raise InputError(f"{path} holds no image samples; they are a folder of images, an .npz with arr_0, or an .npy")


def write_adm_samples(path: Path, samples: Sequence[NDArray[np.uint8]], labels: Sequence[int] | None = None) -> None:
    """Write images (height, width, 1 or 3) as ADM's ``.npz``: ``arr_0`` uint8 (n, height, width, 3), labels ``arr_1``.

    Grey becomes RGB, which is what ADM's evaluator reads. One image at a time is held in memory besides ``samples``.
    The file appears when it is whole.

    Raises:
        InputError: for another suffix, no samples, samples of differing or other shapes, or another number of labels.
    """
    if path.suffix != ".npz":
        raise InputError(f"{path}: ADM's samples are an .npz")
    if not len(samples):
        raise InputError(f"{path}: there are no samples to write")
    if labels is not None and len(labels) != len(samples):
        raise InputError(f"{path}: {len(labels)} labels for {len(samples)} samples")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    height, width = samples[0].shape[:2]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(samples), height, width, 3)}
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for number, sample in enumerate(samples):
                member.write(_rgb_bytes(path, number, sample, (height, width)))
        if labels is not None:
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(labels, dtype=np.int64), allow_pickle=False)


def _rgb_bytes(path: Path, number: int, sample: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    if sample.dtype != np.uint8 or sample.ndim != 3 or sample.shape[:2] != size or sample.shape[2] not in (1, 3):
        raise InputError(
            f"{path}: sample {number} is {sample.dtype} {list(sample.shape)}; all have to be uint8 "
            f"{[*size, 3]} as the first is, or grey"
        )
    return with_channels(sample, 3).tobytes()


def _open_folder(root: Path) -> ImageSamples:
    sheet = root / CONTACT_SHEET if (root / "000.png").is_file() else None
    found = (file for file in files_below(root, EXTENSIONS, given=str(root)) if file != sheet)
    files = sorted(found, key=lambda file: file.relative_to(root).as_posix())
    if not files:
        raise InputError(f"{root}: there is no image in it; looked for {', '.join(EXTENSIONS)}")
    _check_headers(root, files)
    beside = caption_files(files)
    texts = {file: first_caption(text) for file, text in beside.items()}
    return ImageSamples(
        lambda index: decode_image(_content(files[index]), str(files[index])),
        lambda index: {"text": texts[files[index]]} if files[index] in texts else {},
        [str(file) for file in files],
        fingerprint_files(root, [*files, *sorted(set(beside.values()), key=lambda text: text.with_suffix(""))], None),
    )


def _check_headers(root: Path, files: Sequence[Path]) -> None:
    """Refuse what no score can be taken on before any pixel is decoded; warn of transparency, once."""
    first_size = ""
    transparent = []
    for file in files:
        try:
            with Image.open(file) as image:
                size, mode, marked = f"{image.width}x{image.height}", image.mode, is_transparent(image)
        except CORRUPT as error:
            raise InputError(f"{file}: is corrupt or no image ({error})") from None
        if mode == "F":
            raise InputError(f"{file}: {FLOATING_POINT}")
        first_size = first_size or size
        if size != first_size:
            raise InputError(f"{files[0]} is {first_size} and {file} is {size}; images of one set are of one size")
        if marked:
            transparent.append(file)
    if transparent:
        first = transparent[0].relative_to(root)
        _warn_of_alpha(f"{root}: {len(transparent)} of {len(files)} images are transparent, the first {first}")


def _warn_of_alpha(what: str) -> None:
    warnings.warn(f"{what}; their alpha channel is dropped", stacklevel=2)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


def _open_npz(path: Path) -> ImageSamples:
    with _readable(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if "arr_0" in names:
            images = _member(path, archive, "arr_0.npy")
            labels = _member(path, archive, "arr_1.npy") if "arr_1" in names else None
            return _from_array(path, images, labels, f"{path}:arr_0")
    if set(names) & set(STATISTICS):
        held = ", ".join(name for name in names if name in STATISTICS)
        raise InputError(f"{path} holds statistics ({held}) and no samples; samples are an array arr_0")
    raise InputError(f"{path} has no arr_0, where ADM keeps samples; it has: {', '.join(names) or 'nothing'}")


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of an ``.npz``: mapped where it is stored as it is, in memory where it is compressed."""
    info = archive.getinfo(name)
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if info.compress_type != zipfile.ZIP_STORED or version not in ((1, 0), (2, 0)):
            with archive.open(info) as whole:
                return np.asarray(np.lib.format.read_array(whole, allow_pickle=False))
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(member)
        header = member.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} is pickled")
    order: Literal["F", "C"] = "F" if fortran_order else "C"
    with path.open("rb") as stream:
        start = _data_offset(stream, info)
    if not np.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + header, shape=shape, order=order)


def _data_offset(stream: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header of 30 bytes, its name and its extra field."""
    stream.seek(info.header_offset)
    local = stream.read(30)
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is cut short, pickled or no {path.suffix} of arrays ({reason})") from None


def _from_array(path: Path, images: NDArray[Any], labels: NDArray[Any] | None, name: str) -> ImageSamples:
    _check_layout(name, images)
    if images.ndim == 4 and images.shape[3] == 4:
        _warn_of_alpha(f"{name}: all {len(images)} images have four channels")
    classes: list[str] = []
    if labels is not None and labels.dtype.kind in "iu":
        if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= MOST_CLASSES:
            raise InputError(
                f"{path}: arr_1 is {labels.dtype} {list(labels.shape)} for {len(images)} images; it should be a class "
                f"number, from 0, for each"
            )
        classes = [str(label) for label in range(int(labels.max()) + 1)]
    known = labels if classes else None

    def read(index: int) -> NDArray[np.uint8]:
        image = np.asarray(images[index])
        return image[..., None] if image.ndim == 2 else image[..., :3]

    return ImageSamples(
        read,
        lambda index: {} if known is None else {"label": int(known[index])},
        [f"{name}[{index}]" for index in range(len(images))],
        fingerprint_files(path.parent, [path], None),
        classes,
    )


def _check_layout(name: str, images: NDArray[Any]) -> None:
    """Refuse arrays that are no stack of uint8 images, channels last, saying what would be right."""
    shape = list(images.shape)
    if images.dtype != np.uint8:
        hint = f"; {FLOAT_HINT}" if images.dtype.kind == "f" else ""
        raise InputError(f"{name} is {images.dtype}; images are uint8 from 0 to 255{hint}")
    if images.ndim == 3 and shape[2] in (3, 4):
        raise InputError(f"{name} is {shape}, a single image; a set is (n, height, width, channels)")
    if images.ndim not in (3, 4):
        raise InputError(f"{name} is {shape}; images are (n, height, width) or (n, height, width, channels)")
    if images.ndim == 4 and shape[3] not in (1, 3, 4):
        first = shape[1] in (1, 3, 4)
        hint = "channels come last: array.transpose(0, 2, 3, 1)" if first else "an image has 1 or 3 channels"
        raise InputError(f"{name} is {shape}; {hint}")
    if not images.size:
        raise InputError(f"{name} is {shape}: there is no image in it")
