"""Short video clips as a modality of layersync. The core finds :class:`layersync_video.adapter.VideoAdapter`."""
