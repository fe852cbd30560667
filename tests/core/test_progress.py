"""What a person at a terminal sees of a training, and what a file gets of it."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import layersync

Make = Callable[..., Any]


def test_a_terminal_shows_a_bar_with_its_columns(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # as Linux says that the other end is closed
            while part := os.read(reader, 1024):
                shown.extend(part)

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        with os.fdopen(writer, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            run = layersync.train(tiny("train.steps=3"), tmp_path / "run")
    finally:
        thread.join()
        os.close(reader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    last = run.records()[-2]
    assert re.search(r"training\s+[━╸╺]+\s+0/3\s+loss -\s+similarity -\s+samples/s -", text), text
    columns = (f"loss {last['loss']:.4f}", f"similarity {last['similarity']['1-3']:.3f}", r"samples/s \d+")
    assert re.search(r"training\s+━+\s+3/3\s+" + r"\s+".join(columns), text), text


def test_a_file_gets_nothing(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        layersync.train(tiny("train.steps=1"), tmp_path / "run")
    assert (tmp_path / "log").read_text() == ""
