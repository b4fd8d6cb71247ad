"""`python -m petalite` is `petalite`; torchrun needs it."""

from petalite.cli import main

main()
