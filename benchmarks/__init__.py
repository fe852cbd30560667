"""Claims about speed and memory, one file each; ``python -m benchmarks`` measures them."""
