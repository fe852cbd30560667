"""Where a process computes, and how exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch


def default_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def take_own_device() -> None:
    """Of several processes that a launcher started on this machine (``LOCAL_RANK``), each takes its own accelerator.

    With more processes than accelerators they take them in turn.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(rank) % torch.accelerator.device_count())


def usable_cores() -> int:
    """Cores that this process may use, where the system says it; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """Whether CUDA multiplies, convolves and recurs in TF32, with 10 bits of mantissa, where it is given float32.

    By default it does not, so that scores and latents are the same on every device. What was set before comes back.
    """
    cudnn = torch.backends.cudnn
    try:
        products, convolutions = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # a program that has set torch's newer names must not read the older ones
        with _newer_names("tf32" if tf32 else "ieee"):
            yield
        return
    one_dnn = getattr(torch.backends.mkldnn, "matmul", None)  # which has a say of its own in newer torch
    before = None if one_dnn is None else one_dnn.fp32_precision
    torch.set_float32_matmul_precision("high" if tf32 else "highest")  # of CUDA and of oneDNN
    cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32 = convolutions
        if one_dnn is not None and one_dnn.fp32_precision != before:
            one_dnn.fp32_precision = before


@contextmanager
def _newer_names(wanted: str) -> Iterator[None]:
    names = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul")
    places: list[Any] = [attrgetter(name)(torch.backends) for name in names]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = wanted
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
