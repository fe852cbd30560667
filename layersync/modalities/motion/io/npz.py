"""Numpy archives from anywhere: opened without pickle, and whatever is wrong with one is an :class:`InputError`."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from layersync.core.errors import InputError

_UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, SyntaxError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
"""What numpy and zipfile raise for damaged archives: it depends on which byte is wrong."""


@contextmanager
def opened_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive at ``path``; errors while it is open name the file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{path}: no readable npz file ({' '.join(str(error).split())})") from error
