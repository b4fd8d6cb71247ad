"""`int8-channel`: 8-bit integers with one scale for each output, symmetric: what integer matrix units multiply."""

from petalite.formats.grid import UniformGrid
from petalite.formats.on_grid import format_on_grid

FORMAT = format_on_grid(
    "int8-channel",
    "8-bit integers, symmetric, one scale an output channel",
    bits=8.01,
    grid=UniformGrid(bits=8, group=None, symmetric=True),
    error=0.02,
)
