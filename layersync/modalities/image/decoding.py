"""From the content of image files, and of IDX files, to arrays of bytes."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from layersync.core.errors import InputError

CORRUPT = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
)
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
FLOATING_POINT = "holds floating-point pixels; images are 8 or 16 bits a channel"
LEFT_OUT = {
    "alpha": "transparent, the first that is; alpha channels are dropped, and colours that they hide are trained on",
    "orientation": "stored turned, the first that is, as its EXIF says; pixels are taken as they are stored, which is "
    "what published protocols do; data.orientation: exif turns such images upright",
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


def is_transparent(image: Image.Image) -> bool:
    """Whether it has an alpha channel, or a colour that stands for transparent; its header says so."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def decode_image(
    content: bytes, source: str, *, upright: bool = False, left_out: Callable[[str, str], None] | None = None
) -> np.ndarray:
    """Image file content to uint8 (height, width, 1 or 3).

    ``upright`` turns it as EXIF says, where that can be read. ``left_out`` is called with a key of :data:`LEFT_OUT` and
    ``source`` where transparency or, without ``upright``, an orientation is not heeded.

    Raises:
        InputError: naming ``source``, for what is corrupt or holds floating-point pixels.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.mode == "F":
                raise InputError(f"{source}: {FLOATING_POINT}")
            orientation = _orientation(opened) if upright or left_out is not None else None
            if left_out is not None and is_transparent(opened):
                left_out("alpha", source)
            if left_out is not None and orientation is not None and not upright:
                left_out("orientation", source)
            image = opened if orientation is None or not upright else opened.transpose(UPRIGHT[orientation])
            if image.mode.startswith("I"):  # 16 bits a pixel: the upper eight
                array = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            else:
                array = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{source}: is corrupt or no image that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{source}: is too large a picture to be opened unasked ({error})") from None
    except CORRUPT as error:
        raise InputError(f"{source}: is corrupt or no image ({error})") from None
    return array[..., None] if array.ndim == 2 else array


def _orientation(image: Image.Image) -> int | None:
    """What EXIF says of how ``image`` is turned; ``None`` where it is upright, or nothing can be read.

    ``ImageOps.exif_transpose`` also writes EXIF anew, and fails where other tags of it are damaged.
    """
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (*CORRUPT, TypeError):
        return None
    return orientation if orientation in UPRIGHT else None


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes. InputError when it is cut short or of another kind."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise InputError(f"{path}: is no IDX file of unsigned bytes")
    axes = content[3]
    if len(content) < 4 + 4 * axes:
        raise InputError(f"{path}: is cut short within its header")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
    if values.size != int(np.prod(shape)):
        raise InputError(f"{path}: is cut short, it holds {values.size} of {int(np.prod(shape))} bytes")
    return values.reshape(shape)
