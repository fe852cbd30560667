"""``attach-vs-taps``: a training step with ``layersync.attach`` takes at most 1.03 times one with our own taps.

SiT-S/2 with both: one side attached from outside through hooks, the other asked for ``taps=``. Same weights, batches,
loss and optimizer; a step is forward, both losses, backward and fused AdamW, in float32. That they do the same work is
checked: the losses of the first step are equal.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

import layersync
from benchmarks.measure import Bar, Result, interleaved, main, paired_result
from benchmarks.workload import BACKBONE, LATENT
from layersync import LayerSync
from layersync.modalities.image import SiT

NAME = "attach-vs-taps"
BAR = Bar("at most", 1.03)
PAIRS, WEIGHT = [(4, 7)], 0.3
BATCH_SIZE = 2


class Step:
    """Training steps of one network; the regularizer's loss comes from ``taps`` or from a handle."""

    def __init__(self, model: nn.Module, device: torch.device, attached: bool):
        self.model, self.device = model.to(device), device
        self.sync = LayerSync(PAIRS, WEIGHT)
        self.handle = layersync.attach(self.model.blocks, PAIRS, WEIGHT) if attached else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.regularizer: list[Tensor] = []

    def __call__(self, step: int) -> None:
        random = torch.Generator().manual_seed(step)
        x1, x0 = torch.randn(2, BATCH_SIZE, *LATENT.shape, generator=random).to(self.device)
        t = torch.rand(BATCH_SIZE, generator=random).to(self.device)
        label = torch.randint(10, (BATCH_SIZE,), generator=random).to(self.device)
        x_t = t.view(-1, 1, 1, 1) * x1 + (1 - t.view(-1, 1, 1, 1)) * x0
        taps = () if self.handle else self.sync.taps()
        out = self.model(x_t, t, {"label": label}, taps=taps)
        regularizer = self.handle.loss() if self.handle else self.sync(out.features).loss
        self.optimizer.zero_grad()
        ((out.prediction - (x1 - x0)).pow(2).mean() + regularizer).backward()
        self.optimizer.step()
        self.regularizer.append(regularizer.detach())


def measure(quick: bool) -> Result:
    device = torch.device(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    torch.manual_seed(0)
    settings = {key: value for key, value in BACKBONE.items() if key != "name"}
    model = SiT(input_size=LATENT.grid[0], in_channels=LATENT.channels, num_classes=10, **settings)
    for block in model.blocks:  # adaLN-Zero's blocks are the identity at first, and the loss would be a constant
        nn.init.normal_(block.adaLN_modulation[1].weight, std=0.1)
    attached, tapped = Step(deepcopy(model), device, attached=True), Step(model, device, attached=False)
    pairs = interleaved(attached, tapped, pairs=3 if quick else 16, warmup=2, what=NAME)
    if not torch.equal(attached.regularizer[0], tapped.regularizer[0]):
        raise RuntimeError(f"not the same loss: {attached.regularizer[0]} and {tapped.regularizer[0]}")
    return {**paired_result(pairs, BAR, ("attach", "taps"), "seconds"), "batch_size": BATCH_SIZE, "device": str(device)}


if __name__ == "__main__":
    main(NAME, BAR, measure)
