"""Classifiers of data, as another machine would train them."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def another_classifier(file: Path, target: Path) -> None:
    """Write the classifier in ``file`` to ``target`` with its last features stretched, each by another factor."""
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    name = [name for name, tensor in tensors.items() if tensor.ndim == 4][-1]
    factors = 1 + (1 + tensors[name][:, :1, :1, :1].sign()) / 2
    save_file(tensors | {name: (tensors[name] * factors).contiguous()}, target, metadata=metadata)
