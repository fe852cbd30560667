"""Human motion: pose sequences on SMPL's 24 joints."""

from layersync.modalities.motion.humanml3d import humanml3d_to_joints, joints_to_humanml3d
from layersync.modalities.motion.sample import Motion

__all__ = ["Motion", "humanml3d_to_joints", "joints_to_humanml3d"]
