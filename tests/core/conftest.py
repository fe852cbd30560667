"""Fixtures of the core's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugins import Installer
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layersync.core.adapter import Backbone


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Installs packages for one test."""
    return Installer(tmp_path / "site", monkeypatch)


@pytest.fixture
def seen() -> Iterator[list[Any]]:
    """``x_t``, ``t`` and condition of every forward pass that a backbone makes during the test, whoever asks it."""
    found: list[Any] = []

    def note(module: nn.Module, arguments: Any) -> None:
        if isinstance(module, Backbone):
            found.append(arguments)

    handle = register_module_forward_pre_hook(note)
    yield found
    handle.remove()
