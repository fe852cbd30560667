"""Classifiers of data, as another machine would train them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def another_classifier(file: Path, target: Path) -> None:
    """Write the classifiers in ``file`` to ``target`` with the last features of each stretched by various factors."""
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    last = {name.partition(".")[0]: name for name, tensor in tensors.items() if tensor.ndim == 4}
    for name in last.values():
        tensors[name] = (tensors[name] * (1 + (1 + tensors[name][:, :1, :1, :1].sign()) / 2)).contiguous()
    save_file(tensors, target, metadata=metadata)


def with_metadata_turned(content: bytes) -> bytes:
    """A safetensors file's ``content`` with its metadata in another order, which the format leaves to chance."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(reversed(header["__metadata__"].items()))
    turned = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    assert len(turned) == size and turned != content[8 : 8 + size]
    return content[:8] + turned + content[8 + size :]
