"""Where a process computes."""

from __future__ import annotations

import os

import torch


def default_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def take_own_device() -> None:
    """Of several processes that a launcher started on this machine (``LOCAL_RANK``), each takes its own accelerator."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(rank))
