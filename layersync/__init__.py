"""The public API of layersync."""
