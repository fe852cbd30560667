"""Models of the transformers library from a local folder, every tensor of theirs accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layersync.core.errors import InputError


def load_published(extractor: str, class_name: str, model_type: str, folder: Path) -> Any:
    """The ``transformers`` model of that class, in float32, for inference, on this process's device.

    Raises:
        InputError: for a folder whose ``config.json`` describes another ``model_type``, or whose weights are damaged
            or lack a tensor: transformers would fill it at random.
    """
    import transformers
    from safetensors import SafetensorError

    from layersync.core.generation import default_device

    found = _model_type(extractor, folder)
    if found != model_type:
        raise InputError(f"extractor {extractor}: {folder}/config.json describes a {found!r} model, not {model_type!r}")
    model_class = getattr(transformers, class_name)
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"extractor {extractor}: no {class_name} can be loaded from {folder} ({first_line(error)})"
        ) from None
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise InputError(
            f"extractor {extractor}: {folder}/model.safetensors lacks {len(lacking)} tensors of a {class_name}, the "
            f"first {lacking[0]}"
        )
    return model.float().eval().requires_grad_(False).to(default_device())


def first_line(error: Exception) -> str:
    """What a library says is wrong, in the room that a one-line message has for it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]


def _model_type(extractor: str, folder: Path) -> str:
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"extractor {extractor}: {path} cannot be read as a model's configuration ({first_line(error)})"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tables and bars that transformers draws while it loads: what is wrong is said by our own error."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
