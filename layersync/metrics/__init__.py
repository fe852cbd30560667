"""Scores on plain feature arrays (samples, features). Nothing here knows what a sample is."""

from layersync.metrics.frechet import frechet_distance
from layersync.metrics.neighbours import nearest_distances

__all__ = ["frechet_distance", "nearest_distances"]
