"""The dispersive loss: samples of a batch push each other apart in the network's hidden space.

"Diffuse and Disperse" (Wang and He, arXiv 2506.09027), the InfoNCE variant with squared distances:

    L = L_flow + weight * log mean_{i,j} exp(-|z_i - z_j|^2 / (dim * temperature))

z_i are all activations of one block for sample i, flattened, dim is how many they are, and the mean goes over the whole
batch x batch matrix with its diagonal of zeros, as in the authors' PyTorch and JAX code.

Shape letters: B samples, T tokens, D channels.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from layersync.core.errors import InputError
from layersync.core.regularizer.base import Regularizer, RegularizerConfig, RegularizerOutput, StepContext
from layersync.core.regularizer.layersync import WeightSchedule


def dispersive_loss(z_BTD: Tensor, mask_BT: Tensor | None = None, temperature: float = 0.5) -> Tensor:
    """log mean_{i,j} exp(-|z_i - z_j|^2 / (dim * temperature)): a float32 scalar whatever the autocast.

    At most 0, where all samples are the same; -log(B), where they are far apart. Of samples with padding, the distance
    of two is over the tokens that are real in both, and ``dim`` counts those alone: how long a sample is does not count
    as a distance. ``mask_BT`` is True on real tokens.
    """
    with torch.autocast(z_BTD.device.type, enabled=False):
        z = z_BTD.float()
        # Distances stay what they are, and the products below lose no digits to what all samples have in common.
        z = z - z.detach().mean(0)
        if mask_BT is None:
            squared = _squared_distances(z.flatten(1))
            dim: Tensor | int = z[0].numel()
        else:
            real = mask_BT.float()
            squared, dim = _masked_distances(z, real), (real @ real.T).clamp_min(1) * z.shape[2]
        logits = -squared / (dim * temperature)
        return torch.logsumexp(logits.flatten(), 0) - math.log(logits.numel())


def _squared_distances(z: Tensor) -> Tensor:
    """(B, B) from (B, values); its diagonal is 0 exactly."""
    products = z @ z.T
    norms = products.diagonal()
    return (norms[:, None] + norms - 2 * products).clamp_min(0)


def _masked_distances(z_BTD: Tensor, real_BT: Tensor) -> Tensor:
    """(B, B), each over the tokens that are real in both."""
    masked = (z_BTD * real_BT[..., None]).flatten(1)
    products = masked @ masked.T
    norms = (z_BTD.square().sum(2) * real_BT) @ real_BT.T  # of sample i over the real tokens of sample j
    return (norms + norms.T - 2 * products).clamp_min(0)


def of_all_processes(local: Tensor) -> Tensor:
    """The rows of every process, by rank. Gradient flows into this process's own rows alone."""
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.detach().contiguous())
    parts[dist.get_rank()] = local
    return torch.cat(parts)


class DispersiveConfig(RegularizerConfig):
    """The ``regularizer`` section of a recipe; the keys are what a user may set."""

    name: Literal["dispersive"] = "dispersive"
    block: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Block whose output is dispersed, from 1. auto: a quarter of the depth."
    )
    weight: float = Field(0.5, ge=0)
    temperature: float = Field(0.5, gt=0)
    gather: Literal["global", "local"] = Field(
        "global", description="Samples of all processes push each other, or those of each process only."
    )
    schedule: WeightSchedule = WeightSchedule()

    def check(self, depth: int) -> None:
        """Refuse a block that the backbone does not have."""
        if self.block != "auto" and self.block > depth:
            raise InputError(f"regularizer.block: {self.block}, the backbone has only {depth} blocks")

    def check_batch(self, size: int) -> None:
        """Refuse a single sample: it has nothing to be pushed from."""
        if size < 2 and self.weight:
            raise InputError(f"regularizer.name: dispersive takes 2 samples or more, batch_size / accumulate is {size}")

    def warnings(self) -> list[str]:
        """A weight of 0 asks for nothing."""
        return ["regularizer.weight is 0: the run is a baseline run"] if self.weight == 0 else []

    def tap(self, depth: int) -> int:
        """The block among ``depth``."""
        return max(1, depth // 4) if self.block == "auto" else self.block


class DispersiveRegularizer(Regularizer):
    """The dispersive loss in the trainer's slot. Logs ``dispersion``, the loss before its weight."""

    Config = DispersiveConfig

    def __init__(self, config: DispersiveConfig, depth: int):
        super().__init__()
        self.config, self.block = config, config.tap(depth)

    @classmethod
    def from_config(cls, config: RegularizerConfig, depth: int, hidden_size: int) -> DispersiveRegularizer:
        """For a backbone of ``depth`` blocks; no parameters, so its width does not matter."""
        assert isinstance(config, DispersiveConfig)
        return cls(config, depth)

    def taps(self, step: int) -> tuple[int, ...]:
        """The block; nothing at weight 0, so that such a run is the baseline bit for bit."""
        return (self.block,) if self.config.weight else ()

    def forward(self, context: StepContext) -> RegularizerOutput:
        """The loss over the micro-batch, of all processes or of this one."""
        config = self.config
        if not config.weight:
            return RegularizerOutput(torch.zeros((), device=context.x_t.device), {})
        z, mask, processes = context.features[self.block].float(), context.token_mask, 1
        if config.gather == "global" and dist.is_available() and dist.is_initialized():
            processes = dist.get_world_size()
            z, mask = of_all_processes(z), None if mask is None else of_all_processes(mask.float()) > 0
        if len(z) < 2:  # with gather: local, what each process holds is known only here
            raise InputError("regularizer.gather: local, and each process holds a single sample; take global")
        factor = config.weight * config.schedule.factor(context.step)
        with torch.set_grad_enabled(torch.is_grad_enabled() and factor > 0):
            dispersion = dispersive_loss(z, mask, config.temperature)
        # Processes average their gradients, and each holds that of its own rows: their sum is meant.
        loss = dispersion.detach() + processes * (dispersion - dispersion.detach())
        return RegularizerOutput(factor * loss, {"dispersion": dispersion.detach()})
