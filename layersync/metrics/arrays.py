"""Feature arrays as they are given: NumPy or torch, of any float width, checked before any score is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Features = ArrayLike | Tensor
Floats = NDArray[np.floating[Any]]
BLOCK = 2048
"""Rows that are widened to float64 at a time."""


def checked(x: Features, name: str, *, least: int = 2, axes: int = 2) -> Floats:
    """``x`` as a NumPy array with ``axes`` axes, the first the samples; float32 stays float32, all else is float64.

    Raises ValueError for another shape, fewer than ``least`` samples, or values that are not finite.
    """
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.numpy() if x.dtype in (torch.float32, torch.float64) else x.double().numpy()
    array = np.asarray(x)
    if array.dtype != np.float32:
        array = array.astype(np.float64, copy=False)
    if array.ndim != axes or array.shape[-1] < 1:
        wanted = "(samples, features)" if axes == 2 else f"of {axes} axes"
        raise ValueError(f"{name} must be {wanted}, not {list(array.shape)}")
    if len(array) < least:
        raise ValueError(f"{name} has {len(array)} samples; at least {least} are needed")
    inner = tuple(range(1, axes))
    bad = sum(int((~np.isfinite(block)).any(axis=inner).sum()) for block in blocks(array))
    if bad:
        raise ValueError(f"{bad} of {len(array)} samples of {name} have features that are not finite")
    return array


def checked_pair(x: Features, y: Features, names: tuple[str, str], *, least: int = 2) -> tuple[Floats, Floats]:
    """Both as :func:`checked` gives them. Raises ValueError also where they differ in width."""
    first, second = checked(x, names[0], least=least), checked(y, names[1], least=least)
    same_width(first.shape[1], second.shape[1])
    return first, second


def same_width(first: int, second: int) -> None:
    """Raises ValueError where two sets differ in the number of features."""
    if first != second:
        raise ValueError(f"features differ in width: {first} and {second}")


def matched(x: Features, y: Features, names: tuple[str, str]) -> tuple[Floats, Floats]:
    """Both as float64, row ``i`` of one belonging to row ``i`` of the other. Raises ValueError for other counts."""
    first, second = checked_pair(x, y, names, least=1)
    if len(first) != len(second):
        raise ValueError(f"{names[0]} and {names[1]} are pairs, but there are {len(first)} and {len(second)}")
    return first.astype(np.float64, copy=False), second.astype(np.float64, copy=False)


def blocks(x: Floats, rows: int = BLOCK) -> Iterator[Floats]:
    """Consecutive views of at most ``rows`` rows."""
    return (x[start : start + rows] for start in range(0, len(x), rows))


def doubled(x: Floats) -> Tensor:
    """A float64 tensor with the values of ``x``, in memory of its own."""
    return torch.from_numpy(np.array(x, dtype=np.float64))
