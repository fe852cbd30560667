"""Pose sequences as the numbers that a network sees: 6-D rotations, and the root relative to where a window starts.

Shape suffixes: B windows, F frames, J joints, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RootForm = Literal["velocity", "translation"]
ROOT_CHANNELS: dict[RootForm, int] = {"velocity": 4, "translation": 3}


def matrix_to_sixd(matrices: Tensor) -> Tensor:
    """(..., 3, 3) rotations to (..., 6): the first two columns, one after the other (Zhou et al., CVPR 2019)."""
    return matrices[..., :2].transpose(-1, -2).flatten(-2)


def sixd_to_matrix(sixd: Tensor) -> Tensor:
    """(..., 6) to the nearest rotations by Gram-Schmidt. Six zeros (padding) give a zero matrix, never a NaN."""
    first = torch.nn.functional.normalize(sixd[..., :3], dim=-1)
    second = sixd[..., 3:] - (first * sixd[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def twist(matrices: Tensor) -> Tensor:
    """Angle about Y, in radians, of the twist of rotations (..., 3, 3) about the vertical; 0 for a zero matrix."""
    return torch.atan2(matrices[..., 0, 2] - matrices[..., 2, 0], matrices[..., 0, 0] + matrices[..., 2, 2])


def turn_about_y(angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about Y by ``angle`` (...) radians."""
    cos, sin = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [torch.stack(row, dim=-1) for row in ((cos, zero, sin), (zero, one, zero), (-sin, zero, cos))]
    return torch.stack(rows, dim=-2)


def root_features(translation_BF3: Tensor, root_BF33: Tensor, fps: float, form: RootForm) -> tuple[Tensor, Tensor]:
    """Root channels (B, F, 4 or 3), and root rotations (B, F, 3, 3), free of where and in which heading a window
    starts.

    ``translation``: position in the frame in which the first frame stands at x = z = 0 and faces +Z.
    ``velocity``: turning rate in rad/s, velocity to the left and forward in m/s, height in m; the root rotation is
    relative to the heading. The heading starts at the first frame's and then integrates the vertical part of each
    frame's turn. It has no singularity: a heading read off an axis flips in every cartwheel and backflip.
    A frame depends on itself and the frames before it, so that padding behind a clip reaches nothing.
    """
    heading_0 = twist(root_BF33[:, 0])
    if form == "translation":
        turn = turn_about_y(-heading_0)[:, None]
        origin = translation_BF3[:, :1] * translation_BF3.new_tensor([1.0, 0.0, 1.0])
        return (turn @ (translation_BF3 - origin)[..., None]).squeeze(-1), turn @ root_BF33
    step = twist(root_BF33[:, 1:] @ root_BF33[:, :-1].transpose(-1, -2))
    heading = torch.cat([heading_0[:, None], heading_0[:, None] + step.cumsum(1)], dim=1)
    turn = turn_about_y(-heading)
    moved = translation_BF3[:, 1:] - translation_BF3[:, :-1]
    velocity = (turn[:, 1:] @ moved[..., None]).squeeze(-1)[..., [0, 2]] * fps
    rates = torch.cat([step[..., None] * fps, velocity], dim=-1)
    # The first frame has no frame before it: it repeats the second one's rates, and decoding ignores them.
    rates = torch.cat([rates[:, :1], rates], dim=1) if rates.shape[1] else rates.new_zeros(*root_BF33.shape[:2], 3)
    return torch.cat([rates, translation_BF3[..., 1:2]], dim=-1), turn @ root_BF33


def integrate_root(channels_BFC: Tensor, root_BF33: Tensor, fps: float, form: RootForm) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`root_features`, in the window's own frame: translation (B, F, 3) and root rotations."""
    if form == "translation":
        return channels_BFC, root_BF33
    rates, height = channels_BFC[..., :3].clone() / fps, channels_BFC[..., 3]
    rates[:, 0] = 0
    turn = turn_about_y(rates[..., 0].cumsum(1))
    local = torch.stack([rates[..., 1], torch.zeros_like(height), rates[..., 2]], dim=-1)
    path = (turn @ local[..., None]).squeeze(-1).cumsum(1)
    return torch.stack([path[..., 0], height, path[..., 2]], dim=-1), turn @ root_BF33
