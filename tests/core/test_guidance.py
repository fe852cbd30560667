"""Classifier-free guidance: where it is computed, what it mixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from layersync.core.adapter import BackboneOutput, ConditionSpec, LatentSpec
from layersync.core.condition import drop_condition
from layersync.core.guidance import GuidedPrediction

SPEC = ConditionSpec(num_classes=10)


class Recorder:
    """A "network" whose prediction is the label, channel by channel scaled; it notes the batches it is given."""

    def __init__(self, sequence: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.masks: list[Tensor | None] = []
        self.sequence = sequence

    def __call__(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], *, taps: Any = (), mask: Any = None):
        self.batches.append(condition["label"].tolist() if condition else [-1] * len(x))
        self.masks.append(mask)
        axis = x.ndim - 1 if self.sequence else 1
        scale = torch.arange(1, x.shape[axis] + 1).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        label = condition["label"].reshape(-1, *(1 for _ in x.shape[1:])) if condition else 0
        return BackboneOutput(torch.ones_like(x) * label * scale, {}, None)


def guided(recorder: Recorder, labels: list[int], sequence: bool = False, **settings: Any) -> GuidedPrediction:
    latent = LatentSpec(4, (6,), sequence=True) if sequence else LatentSpec(4, (2, 2))
    return GuidedPrediction(recorder, {"label": torch.tensor(labels)}, None, spec=SPEC, latent=latent, **settings)


X, T = torch.zeros(2, 4, 2, 2), torch.full((2,), 0.5)


def test_guidance_1_is_the_conditional_alone() -> None:
    recorder = Recorder()
    out = guided(recorder, [3, 4])(X, T)
    assert recorder.batches == [[3, 4]]
    assert out[:, 0, 0, 0].tolist() == [3, 4]


def test_guidance_mixes_with_none() -> None:
    recorder = Recorder()
    out = guided(recorder, [3, 4], guidance=2.5)(X, T)
    assert recorder.batches == [[3, 4, 10, 10]]
    assert out[:, 0, 0, 0].tolist() == pytest.approx([10 + 2.5 * (3 - 10), 10 + 2.5 * (4 - 10)])


def test_guidance_0_is_none_alone() -> None:
    assert guided(Recorder(), [3, 4], guidance=0.0)(X, T)[:, 0, 0, 0].tolist() == [10, 10]


@pytest.mark.parametrize("t", [0.0, 0.2, 0.3, 0.5, 0.7, 0.71, 1.0])
def test_outside_of_the_interval_the_unconditional_half_is_not_computed(t: float) -> None:
    recorder = Recorder()
    out = guided(recorder, [3, 4], guidance=2.0, interval=(0.3, 0.7))(X, torch.full((2,), t, dtype=torch.float64))
    inside = 0.3 <= t <= 0.7
    assert len(recorder.batches[0]) == (4 if inside else 2)
    assert out[0, 0, 0, 0].item() == (10 + 2 * (3 - 10) if inside else 3)


@pytest.mark.parametrize("sequence", [False, True])
def test_guided_channels_are_the_first_ones(sequence: bool) -> None:
    recorder = Recorder(sequence)
    x = torch.zeros(2, 6, 4) if sequence else X
    out = guided(recorder, [3, 4], sequence, guidance=2.0, channels=3)(x, T)
    values = out[0, 0] if sequence else out[0, :, 0, 0]
    mixed = 10 + 2 * (3 - 10)
    assert values.tolist() == [mixed, 2 * mixed, 3 * mixed, 4 * 3]


def test_without_condition_nothing_is_guided() -> None:
    recorder = Recorder()
    GuidedPrediction(recorder, {}, None, spec=ConditionSpec(), latent=LatentSpec(4, (2, 2)), guidance=3.0)(X, T)
    assert recorder.batches == [[-1, -1]]


def test_masks_are_doubled_with_the_batch() -> None:
    recorder = Recorder()
    mask = torch.tensor([[True, False], [True, True]])
    predict = GuidedPrediction(
        recorder, {"label": torch.tensor([1, 2])}, mask, spec=SPEC, latent=LatentSpec(4, (2, 2)), guidance=2.0
    )
    predict(X, T)
    assert torch.equal(recorder.masks[0], torch.cat([mask, mask]))


def test_dropping_conditions() -> None:
    label, mask = torch.tensor([1, 2, -1]), torch.tensor([[True, True], [True, False], [True, True]])
    given = {"label": label, "text": torch.ones(3, 2, 5), "text_mask": mask}
    out = drop_condition(given, torch.tensor([True, False, False]), SPEC)
    assert out["label"].tolist() == [10, 2, 10]
    assert out["text_mask"].tolist() == [[False, False], [True, False], [True, True]]
    assert given["label"].tolist() == [1, 2, -1]
