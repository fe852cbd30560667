"""Audio: clips of any rate and length, as log-mel spectrograms and back."""
