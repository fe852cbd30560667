"""Features: what the Fréchet distance compares, one row of numbers for each sample.

An extractor named ``shape`` brings the metrics ``fd-shape``, ``precision-shape`` and so on. This one is a formula; a
network's weights come by ``layersync.core.features.HubWeights`` or ``UrlWeights``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams

NUM_FEATURES = 16


class Shape(FeatureExtractor):
    """The signal's means over 16 equal parts of its time, in millivolts.

    REPLACE: by what tells good samples of your modality from bad ones.
    """

    name = "shape"
    preprocessing = "means over 16 equal parts of the signal"

    def __init__(self, weights: str | None = None):
        if weights is not None:
            raise InputError(f"--extractor {self.name}={weights}: {self.name} is a formula, it takes no weights")

    def __call__(self, examples: Sequence[Example]) -> Streams:
        """One row (1, 16) float32 for each example."""
        parts = [np.array_split(example.sample, NUM_FEATURES) for example in examples]
        rows = [np.array([[part.mean() for part in parts_of_one]], dtype=np.float32) for parts_of_one in parts]
        return {"features": rows}
