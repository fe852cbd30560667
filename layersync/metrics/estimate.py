"""What a score is that comes with a spread."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over parts of the samples, and the standard deviation (of the parts, divided by their number)."""

    value: float
    std: float | None
    """``None`` where the samples were not divided."""

    def __float__(self) -> float:
        return self.value
