"""Reading ahead: threads read the next samples of large data while those before are encoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from layersync.core.device import usable_cores

T = TypeVar("T")

THREADS = 8
"""At most, and no more than this process's share of the cores."""
AHEAD_BYTES = 256 * 2**20
"""Of samples that wait to be taken; more only of the first, whose sizes are not known, and of one larger than those."""


def reading_threads() -> int:
    """How many threads a process reads with; 0, for none beside its own, where it has but one core."""
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(THREADS, share) if share > 1 else 0


def read_ahead(
    read: Callable[[int], T], numbers: Iterable[int], threads: int, size: Callable[[T], int]
) -> Generator[T]:
    """``read`` of each of ``numbers``, in their order, by ``threads`` threads; by the caller's own for 0.

    At most two for each thread are read before they are taken, and fewer where ``size``, in bytes, says that they are
    large. What ``read`` raises is raised where its turn comes.
    """
    if not threads:
        yield from map(read, numbers)
        return
    remaining, largest = iter(numbers), 0
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                room = min(2 * threads, max(1, AHEAD_BYTES // largest)) if largest else threads
                while len(waiting) < room and (number := next(remaining, None)) is not None:
                    waiting.append(pool.submit(read, number))
                if not waiting:
                    return
                found = waiting.popleft().result()
                largest = max(largest, size(found))
                yield found
        finally:
            for future in waiting:
                future.cancel()
