"""What the core asks of a modality, as checks that say what was expected, what came, and where to look."""
