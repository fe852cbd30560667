"""``step-vs-eager``: the trainer's step is at least 1.4 times as fast as a plain loop's.

The plain side has the habits of public reference code: float32 throughout, AdamW parameter by parameter, an EMA that
is a Python loop over named parameters, ``loss.item()`` at every step. The other side is the trainer with default
settings: precision by the processor, fused AdamW, one foreach call for the EMA, the finite check before every step.

Both train the same network without a regularizer on the same batches, and both pay for the same way of getting them
(draws, cache, conditions), so that only the step itself differs. That they do the same work is checked: their first
losses agree to bf16's rounding.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy

import torch
from torch import nn

from benchmarks.measure import Bar, Result, interleaved, main, paired_result
from benchmarks.workload import random_parts, sit_recipe
from layersync.core.adapter import to_device
from layersync.core.condition import drop_condition
from layersync.core.draws import step_draws
from layersync.core.recipe import Recipe
from layersync.core.trainer import Parts, Trainer

NAME = "step-vs-eager"
BAR = Bar("at least", 1.4)


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, decay: float) -> None:
    """Parameter by parameter, as DiT's train.py does and its descendants do."""
    ema_params = OrderedDict(ema_model.named_parameters())
    for name, param in OrderedDict(model.named_parameters()).items():
        ema_params[name].mul_(decay).add_(param.data, alpha=1 - decay)


class EagerLoop:
    """A training loop as published code has it."""

    def __init__(self, recipe: Recipe, parts: Parts, device: torch.device):
        self.recipe, self.parts, self.device = recipe, parts, device
        torch.manual_seed(recipe.seed)
        self.model = recipe.adapter.backbone(recipe.backbone, parts.data.latent, parts.data.condition).to(device)
        self.ema = deepcopy(self.model).requires_grad_(False)
        settings = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            foreach=False,
            fused=False,
        )

    def train_step(self, step: int) -> float:
        """One step; returns its loss."""
        size, data = self.recipe.train.batch_size, self.parts.data
        draws = step_draws(self.recipe.seed, step, size, slice(0, size), len(self.parts.cache), data.latent)
        batch = self.parts.cache.read(draws)
        x1, x0 = batch.stored.to(self.device), draws.noise.to(self.device)
        dropped = draws.drop < self.recipe.train.condition_dropout
        condition = to_device(drop_condition({"label": batch.label}, dropped, data.condition), self.device)
        t = draws.uniform_time.to(self.device)

        t_expanded = t.view(-1, 1, 1, 1)
        x_t = t_expanded * x1 + (1 - t_expanded) * x0
        target = x1 - x0
        prediction = self.model(x_t, t, condition).prediction
        loss = ((prediction - target) ** 2).mean(dim=(1, 2, 3)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        update_ema(self.ema, self.model, self.recipe.train.ema_decay)
        return loss.item()


def measure(quick: bool) -> Result:
    recipe = sit_recipe(regularizer={"name": "none"})
    with random_parts() as parts:
        default = Trainer(recipe, parts)
        eager = EagerLoop(recipe, parts, default.device)
        theirs, ours = eager.train_step(0), float(default.train_step(0)["flow_loss"])
        assert abs(theirs - ours) < 1e-2 * theirs, f"the sides do not train alike: losses {theirs} and {ours}"
        pairs = interleaved(eager.train_step, default.train_step, pairs=2 if quick else 9, warmup=1, what=NAME)
    precision = {"precision": str(default.dtype).removeprefix("torch."), "because": default.precision_reason}
    return {**paired_result(pairs, BAR, ("eager", "default"), "seconds"), **precision}


if __name__ == "__main__":
    main(NAME, BAR, measure)
