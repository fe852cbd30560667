"""Human motion: pose sequences on SMPL's 24 joints."""

from layersync.modalities.motion.sample import Motion

__all__ = ["Motion"]
