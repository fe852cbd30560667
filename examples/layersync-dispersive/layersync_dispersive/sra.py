"""Self-representation alignment: a shallow block predicts what the averaged network thinks nearer to the data.

SRA ("No Other Representation Component Is Needed", arXiv 2505.02831), as its public SiT code computes it:

    L = L_flow + weight * mean d(head(h_student(x_t, t)), EMA h_teacher(x_t', t')),   t' = min(t + U(0, max_shift), 1)

x_t and x_t' hold the same data, noise and condition. Time is layersync's, 1 at the data; SRA's own runs the other way.
The teacher is in training mode as the backbone is: for one with dropout, its dropout is on.

Shape letters: B samples, T tokens, D channels.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layersync.core.errors import InputError
from layersync.core.regularizer.base import Regularizer, RegularizerConfig, RegularizerOutput, StepContext
from layersync.core.regularizer.layersync import WeightSchedule

Distance = Literal["smooth-l1", "cosine", "cosine-tokens"]
Block = Literal["auto"] | Annotated[int, Field(ge=1)]
BETA = 0.05
"""Where the smooth L1 distance turns from square to straight (SRA's ``sml1``)."""


def distance(student_BTD: Tensor, teacher_BTD: Tensor, kind: Distance, mask_BT: Tensor | None = None) -> Tensor:
    """Mean over real tokens, then over samples: a float32 scalar whatever the autocast.

    ``cosine`` is 1 - cos over channels. ``cosine-tokens`` is what SRA's code takes: over the tokens of a sample,
    channel by channel, which is the default axis of PyTorch's function on (B, T, D).
    """
    with torch.autocast(student_BTD.device.type, enabled=False):
        student, teacher = student_BTD.float(), teacher_BTD.float()
        real = torch.ones_like(student[..., 0]) if mask_BT is None else mask_BT.float()
        if kind == "cosine-tokens":
            kept = real.unsqueeze(2)
            return 1 - F.cosine_similarity(student * kept, teacher * kept, dim=1).mean()
        if kind == "cosine":
            per_token = 1 - F.cosine_similarity(student, teacher, dim=2)
        else:
            per_token = F.smooth_l1_loss(student, teacher, reduction="none", beta=BETA).mean(2)
        return ((per_token * real).sum(1) / real.sum(1).clamp_min(1)).mean()


class SraConfig(RegularizerConfig):
    """The ``regularizer`` section of a recipe."""

    name: Literal["sra"] = "sra"
    student: Block = Field("auto", description="Block that learns. auto: 2/7 of the depth, SRA's 8 of 28.")
    teacher: Block = Field("auto", description="Block of the averaged network. auto: 5/7 of the depth, 20 of 28.")
    weight: float = Field(0.2, ge=0)
    distance: Distance = "smooth-l1"
    max_shift: float = Field(0.2, ge=0, le=1, description="The teacher sees a time nearer to the data by up to this.")
    schedule: WeightSchedule = WeightSchedule()

    def pair(self, depth: int) -> tuple[int, int]:
        """Student and teacher among ``depth`` blocks."""
        student = max(1, round(depth * 2 / 7)) if self.student == "auto" else self.student
        return student, round(depth * 5 / 7) if self.teacher == "auto" else self.teacher

    def check(self, depth: int) -> None:
        """Refuse blocks that the backbone does not have, and a teacher that is not the deeper one."""
        student, teacher = self.pair(depth)
        if not student < teacher <= depth:
            raise InputError(
                f"regularizer.student and teacher: {student} and {teacher}; it takes 1 <= student < teacher <= {depth}"
            )

    def warnings(self) -> list[str]:
        """A weight of 0 asks for nothing."""
        return ["regularizer.weight is 0: the run is a baseline run"] if self.weight == 0 else []


class SraRegularizer(Regularizer):
    """SRA in the trainer's slot, with a head of its own. Logs ``sra``, the distance before its weight."""

    Config = SraConfig

    def __init__(self, config: SraConfig, depth: int, hidden_size: int):
        super().__init__()
        self.config = config
        self.student, self.teacher = config.pair(depth)
        width = 2 * hidden_size
        layers = [nn.Linear(hidden_size, width), nn.SiLU(), nn.Linear(width, hidden_size)]
        self.head = nn.Sequential(*layers) if config.weight else None  # the baseline has no weights without gradient

    @classmethod
    def from_config(cls, config: RegularizerConfig, depth: int, hidden_size: int) -> SraRegularizer:
        """For a backbone of ``depth`` blocks of ``hidden_size`` channels."""
        assert isinstance(config, SraConfig)
        if hidden_size < 1:
            raise InputError("regularizer.name: sra needs to know the width of the blocks, a backbone.hidden_size")
        return cls(config, depth, hidden_size)

    def taps(self, step: int) -> tuple[int, ...]:
        """The student's block; the teacher's is asked for in the averaged network."""
        return (self.student,) if self.head is not None else ()

    def forward(self, context: StepContext) -> RegularizerOutput:
        """One more forward pass, of the averaged network, without gradient."""
        if self.head is None:
            return RegularizerOutput(torch.zeros((), device=context.x_t.device), {})
        latest = context.interpolant.training_range()[1]
        t = (context.t + self.config.max_shift * torch.rand_like(context.t)).clamp(max=latest)
        x_t, _ = context.interpolant.sample(context.x1, context.x0, t)
        seen = context.ema_forward(x_t, t, context.condition, taps=(self.teacher,), mask=context.mask)
        predicted = self.head(context.features[self.student])
        found = distance(predicted, seen.features[self.teacher], self.config.distance, context.token_mask)
        # Multiplied by 0 rather than left out: each of several processes expects a gradient for every weight.
        factor = self.config.weight * self.config.schedule.factor(context.step)
        return RegularizerOutput(factor * found, {"sra": found.detach()})
