"""Motion and body model files: BVH, AMASS, DeepMimic, SMPL."""
