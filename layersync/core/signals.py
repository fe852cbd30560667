"""Signals as exceptions, so that what is half done is cleared away or saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEATED_WITHIN_SECONDS = 1
"""In which several signals are one: a batch system sends it to all processes, and a launcher passes its own on."""


@contextmanager
def stops_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt inside, also where a shell started this in the background.

    One that follows at once is the same, and does not stop what clears away after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not came or now - came[-1] > REPEATED_WITHIN_SECONDS:
            came.append(now)
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
