"""The slot for representation losses, and LayerSync in it."""
