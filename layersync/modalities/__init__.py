"""The built-in modalities, found through the same door as anybody's plug-in."""
