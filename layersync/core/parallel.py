"""Several processes at one set of samples, by accelerate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=1)
"""That processes wait for each other: one of them trains a classifier, or draws its samples for hours, while the others
stand. PyTorch's own 10 minutes would end them; a launcher ends them all at once when one fails."""


@dataclass(frozen=True)
class Processes:
    """Who works beside this process: ``rank`` of ``count``, started by ``torchrun`` or ``accelerate launch``."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Those of this launch; connects them when there are several."""
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
        return cls(state.process_index, state.num_processes)

    @staticmethod
    def leads() -> bool:
        """Whether this process will be :attr:`main`, by what a launcher has set, before they are connected."""
        return os.environ.get("WORLD_SIZE", "1") in ("0", "1") or os.environ.get("RANK", "0") == "0"

    @property
    def main(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """This process's consecutive share of ``total`` numbers."""
        return range(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def gather(self, local: list[Any]) -> list[Any]:
        """The lists of all processes, one after the other, on each of them."""
        if self.count == 1:
            return local
        from accelerate.utils import gather_object

        return list(gather_object(local))

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
