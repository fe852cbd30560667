"""Metrics: scores of generated samples by themselves, without real ones to compare with.

A metric gives one value for each sample; layersync reports their mean, with an interval. Which way it improves is for
the metric to say, and else for whoever compares it with that of real samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from layersync.core.adapter import Example


def roughness(examples: Sequence[Example]) -> NDArray[np.float64]:
    """Mean absolute second difference of each signal in millivolts: noise that was left in it makes it large.

    REPLACE: by what makes a sample of your modality impossible, or leave ``metrics`` of the adapter empty.
    """
    return np.array([np.abs(np.diff(example.sample, 2)).mean() for example in examples], dtype=np.float64)


# Neither way: noise makes signals rougher, a model that blurs makes them smoother than real ones are. Where 0 is best,
# as for a count of impossible values, say so by @improves("lower") of layersync.core.features.
