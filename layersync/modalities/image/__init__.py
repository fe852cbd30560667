"""Images: pixels or VAE latents, the SiT backbone."""

from layersync.modalities.image.backbone import SiT

__all__ = ["SiT"]
