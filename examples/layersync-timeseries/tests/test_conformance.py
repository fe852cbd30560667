"""What the core asks of every modality."""

from layersync.testing import AdapterConformance


class TestTimeSeries(AdapterConformance):
    """With the shipped recipe."""

    recipe = "timeseries/quick"
