"""The core: knows tensors, not modalities."""
