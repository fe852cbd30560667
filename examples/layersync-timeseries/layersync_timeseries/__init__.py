"""Multivariate time series for layersync. A sample is an array (steps, channels) of float32, as it was measured."""
