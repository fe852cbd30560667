"""Networks that image scores are taken on: the FID Inception, DINOv2 and CLIP."""
