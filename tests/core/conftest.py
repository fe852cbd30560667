"""Fixtures of the core's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugins import Installer


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Installs packages for one test."""
    return Installer(tmp_path / "site", monkeypatch)
