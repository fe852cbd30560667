"""The adapter keeps what the core asks of every modality."""

from layersync.testing import AdapterConformance


class TestVideo(AdapterConformance):
    recipe = "video/quick"
