"""What a sample is conditioned on: dropping it in training, leaving it out for guidance.

A condition is a mapping of tensors: ``label`` (batch,) int64, where ``num_classes`` stands for "none"; ``text``
(batch, tokens, channels) with ``text_mask`` (batch, tokens), where a row without any real token stands for "none".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from layersync.core.adapter import ConditionSpec
from layersync.core.latents import LatentBatch
from layersync.core.text import TextTable


def drop_condition(condition: Mapping[str, Tensor], dropped: Tensor, spec: ConditionSpec) -> dict[str, Tensor]:
    """The condition with "none" where ``dropped`` (batch,) is True. Unlabelled examples (-1) become "none" too."""
    out = dict(condition)
    if "label" in out:
        label = out["label"]
        none = torch.as_tensor(spec.num_classes, dtype=label.dtype, device=label.device)
        out["label"] = torch.where(dropped.to(label.device) | (label < 0), none, label)
    if "text_mask" in out:
        out["text_mask"] = out["text_mask"] & ~dropped.to(out["text_mask"].device)[:, None]
    return out


def batch_condition(batch: LatentBatch, spec: ConditionSpec, texts: TextTable | None) -> dict[str, Tensor]:
    """What the examples of a batch are conditioned on, as ``spec`` asks for it."""
    condition = {"label": batch.label} if spec.num_classes else {}
    return condition if texts is None else condition | texts.read(batch.captions)


def no_condition(condition: Mapping[str, Tensor], spec: ConditionSpec) -> dict[str, Tensor]:
    """The same batch with every condition "none": the unconditional half of guidance."""
    size = len(next(iter(condition.values()))) if condition else 0
    return drop_condition(condition, torch.ones(size, dtype=torch.bool), spec)
