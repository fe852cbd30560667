"""Where a process computes."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")
