"""Fixtures of the core's tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugins import Installer
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layersync.core import session
from layersync.core.adapter import Backbone
from layersync.core.trainer import Trainer


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Installs packages for one test."""
    return Installer(tmp_path / "site", monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What trainings read as the time, its only entry: step number n, from 1, takes n seconds, a measurement 100."""
    now, step, measure = [0.0], Trainer.train_step, Trainer.measure

    def stepping(trainer: Trainer, number: int) -> Any:
        now[0] += number + 1
        return step(trainer, number)

    def measuring(trainer: Trainer) -> Any:
        now[0] += 100
        return measure(trainer)

    monkeypatch.setattr(Trainer, "train_step", stepping)
    monkeypatch.setattr(Trainer, "measure", measuring)
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now


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
