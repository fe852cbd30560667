"""``cache-read``: reading a batch from the latent cache takes at most 2 % of the training step of ``image/small``.

The read is :meth:`LatentCache.read` alone: a batch of 64 gathered from the memory map, with its labels. It is timed
on the batch that the step beside it trains on; the step, the trainer's own with everything in it, reads it again.
Making the step's random draws (noise, times) is no read; it is timed too and reported as ``draws``. The file is in
the page cache, as it is from the second epoch on.
"""

from __future__ import annotations

from functools import partial

from benchmarks.measure import Bar, Pairs, Result, SkippedError, main, paired_result, say, seconds, side
from layersync.core.draws import step_draws
from layersync.core.errors import InputError
from layersync.core.recipe_reading import load_recipe
from layersync.core.trainer import Trainer, build_parts

NAME = "cache-read"
BAR = Bar("at most", 0.02)


def measure(quick: bool) -> Result:
    recipe = load_recipe("image/small")
    try:
        recipe.data.prepare()
        parts = build_parts(recipe)
    except (InputError, OSError) as error:
        raise SkippedError(f"the data of image/small cannot be had: {error}") from error
    trainer = Trainer(recipe, parts)
    size, warmup = recipe.train.batch_size, 1 if quick else 5
    found, draws_seconds = Pairs(), []
    for step in range(warmup + (5 if quick else 40)):
        draw = partial(step_draws, recipe.seed, step, size, slice(0, size), len(parts.cache), parts.data.latent)
        drawing, drawn = seconds(draw), draw()
        reading = seconds(partial(parts.cache.read, drawn))
        training = seconds(partial(trainer.train_step, step))
        if step >= warmup:
            draws_seconds.append(drawing)
            found.first.append(reading)
            found.second.append(training)
    say(f"{NAME}: {len(found)} reads and steps of {recipe.train.batch_size} samples")
    return {**paired_result(found, BAR, ("read", "step"), "seconds"), "draws": side(draws_seconds, "seconds")}


if __name__ == "__main__":
    main(NAME, BAR, measure)
