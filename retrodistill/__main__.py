"""``python -m retrodistill``, and what torchrun starts."""

from retrodistill.cli import main

main()
