"""``python -m layersync``: the command line."""

from layersync.cli import main

main()
