"""``regularizer-time``: a training step with LayerSync takes at most 1.02 times one without.

The real trainer with default settings, two of them in one process, fed with the same batches.
"""

from __future__ import annotations

from benchmarks.measure import Bar, Result, interleaved, main, paired_result
from benchmarks.workload import random_parts, sit_recipe

NAME = "regularizer-time"
BAR = Bar("at most", 1.02)


def measure(quick: bool) -> Result:
    from layersync.core.trainer import Trainer

    with random_parts() as parts:
        on = Trainer(sit_recipe(regularizer={"name": "layersync"}), parts)
        off = Trainer(sit_recipe(regularizer={"name": "none"}), parts)
        pairs = interleaved(on.train_step, off.train_step, pairs=3 if quick else 20, warmup=1, what=NAME)
    return {**paired_result(pairs, BAR, ("on", "off"), "seconds"), "precision": str(on.dtype).removeprefix("torch.")}


if __name__ == "__main__":
    main(NAME, BAR, measure)
