"""Scores on plain feature arrays (samples, features), NumPy or torch. Nothing here knows what a sample is."""

from layersync.metrics.classification import inception_score
from layersync.metrics.diversity import diversity, multimodality
from layersync.metrics.estimate import Estimate
from layersync.metrics.frechet import (
    FrechetInfinity,
    FrechetInterval,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    jackknife_frechet,
    mean_frechet_interval,
)
from layersync.metrics.gaussian import GaussianStatistics
from layersync.metrics.kernel import KernelAudioDistance, kernel_audio_distance, kernel_distance
from layersync.metrics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    nearest_distances,
    precision_recall,
)
from layersync.metrics.replication import Bootstrapped, Replicated, bootstrap, replicate
from layersync.metrics.retrieval import batched_r_precision, cosine_similarity_score, matching_score, r_precision

__all__ = [
    "Bootstrapped",
    "DensityCoverage",
    "Estimate",
    "FrechetInfinity",
    "FrechetInterval",
    "GaussianStatistics",
    "KernelAudioDistance",
    "PrecisionRecall",
    "Replicated",
    "batched_r_precision",
    "bootstrap",
    "cosine_similarity_score",
    "density_coverage",
    "diversity",
    "frechet_distance",
    "frechet_infinity",
    "frechet_interval",
    "inception_score",
    "jackknife_frechet",
    "kernel_audio_distance",
    "kernel_distance",
    "matching_score",
    "mean_frechet_interval",
    "multimodality",
    "nearest_distances",
    "precision_recall",
    "r_precision",
    "replicate",
]
