"""A modality of its own for layersync: what a sample is, and everything that has to know it."""
