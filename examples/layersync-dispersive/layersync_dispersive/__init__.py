"""Rival representation losses for layersync, each a regularizer that a recipe names."""
