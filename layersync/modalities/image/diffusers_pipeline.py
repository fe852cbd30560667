"""A run of ours as parts of diffusers' ``DiTPipeline``: the network, and the scheduler that it is sampled with.

diffusers loads classes of other packages only from modules that are imported already, so that no folder makes it run
code: import this module, then ``DiffusionPipeline.from_pretrained(folder)``. It finds out how to load a component by
looking for ``ModelMixin`` and ``SchedulerMixin`` in the component's module, which is why both are imported here.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from layersync.modalities.image.backbone import SiT

__all__ = ["FlowMatchEulerScheduler", "ModelMixin", "SchedulerMixin", "SiTTransformer2DModel"]

DIT_NONE = 1000
"""The label that ``DiTPipeline`` takes for none, whatever the number of classes."""
TIME_SCALE = 1000.0
"""diffusers' timestep is this times sigma, and sigma is 1 at the noise: t = 1 - timestep / TIME_SCALE."""


class SiTTransformer2DModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """:class:`layersync.modalities.image.backbone.SiT` under the call of diffusers' ``DiTTransformer2DModel``.

    ``sample`` of the output is dx/dsigma, minus our velocity. ``DiTPipeline`` doubles its batch, conditional half
    first, and guides all channels at all times. ``guidance_channels`` and ``guidance_interval`` hold nevertheless:
    where guidance is not to act, the unconditional half of such a batch is given the conditional prediction.

    Args:
        sample_size: height and width of the latent.
        in_channels: its channels.
        out_channels: the same: what ``learn_sigma`` adds is dropped in here.
        patch_size: as of :class:`SiT`, like all up to ``qk_norm``.
        guidance_channels: guide the first channels only; ``None`` guides all.
        guidance_interval: guided for t in [low, high], t = 0 being noise.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_classes: int,
        learn_sigma: bool,
        qk_norm: bool,
        guidance_channels: int | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        self.num_classes, self.guidance_channels = num_classes, guidance_channels
        self.guidance_interval = tuple(guidance_interval)
        self.network = SiT(
            input_size=sample_size,
            in_channels=in_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            learn_sigma=learn_sigma,
            qk_norm=qk_norm,
        )

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Latents (batch, channels, height, width), timesteps (batch,) and labels (batch,) to dx/dsigma, shaped alike.

        Label 1000 is none.
        """
        t = 1 - timestep.to(torch.float32) / TIME_SCALE
        label = torch.where(class_labels == DIT_NONE, self.num_classes, class_labels)
        dtype = self.network.pos_embed.dtype
        with torch.autocast(hidden_states.device.type, dtype=dtype, enabled=dtype != torch.float32):
            velocity = self.network(hidden_states, t, {"label": label} if self.num_classes else {}).prediction
        velocity = velocity.to(hidden_states.dtype)
        if self._is_guided_pair(hidden_states, label):
            velocity = self._with_guidance_where_wanted(velocity, t)
        return Transformer2DModelOutput(sample=-velocity) if return_dict else (-velocity,)

    def _is_guided_pair(self, x: Tensor, label: Tensor) -> bool:
        limited = self.guidance_channels is not None or self.guidance_interval != (0.0, 1.0)
        if not limited or len(x) % 2 or not self.num_classes:
            return False
        first, second = x.chunk(2)
        return torch.equal(first, second) and bool((label.chunk(2)[1] == self.num_classes).all())

    def _with_guidance_where_wanted(self, velocity: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = velocity.chunk(2)
        low, high = self.guidance_interval
        inside = bool((t[0] >= low - 1e-6) & (t[0] <= high + 1e-6))  # t has come through float32 timesteps
        kept = (self.guidance_channels or velocity.shape[1]) if inside else 0
        mixed = torch.cat([unconditional[:, :kept], conditional[:, kept:]], dim=1)
        return torch.cat([conditional, mixed])


class FlowMatchEulerScheduler(FlowMatchEulerDiscreteScheduler):
    """diffusers' flow-matching Euler scheduler with equal intervals of sigma, and what ``DiTPipeline`` calls besides.

    Its own default spends the last interval below sigma 1/1000, so that N steps are N - 1.
    """

    def set_timesteps(self, num_inference_steps: int | None = None, *arguments: Any, **keywords: Any) -> None:
        """As the base class, from sigma 1 in ``num_inference_steps`` equal intervals unless told otherwise."""
        if num_inference_steps is not None and not arguments and not {"sigmas", "timesteps"} & set(keywords):
            keywords["sigmas"] = [1 - index / num_inference_steps for index in range(num_inference_steps)]
        super().set_timesteps(num_inference_steps, *arguments, **keywords)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """``sample`` as it is: flow matching scales nothing."""
        return sample
