"""torchaudio, which pip installs whatever PyTorch is there, and which works with its own alone."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

from layersync.core.errors import InputError
from layersync.core.pretrained import first_line


def torchaudio_part(module: str, name: str) -> Any:
    """``torchaudio.MODULE.NAME``. Raises :class:`InputError` where it does not fit the PyTorch that is installed."""
    try:
        return getattr(importlib.import_module(f"torchaudio.{module}"), name)
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"torchaudio {version('torchaudio')} does not work with torch {version('torch')} ({first_line(error)}); "
            f"install that of the same release and build"
        ) from None
