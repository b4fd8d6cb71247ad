"""`fp8`: 8-bit floating point (e4m3) with one scale for each output: what newer GPUs multiply."""

from petalite.formats.grid import Float8Grid
from petalite.formats.on_grid import format_on_grid

FORMAT = format_on_grid(
    "fp8",
    "8-bit floating point (e4m3), one scale an output channel",
    bits=8.01,
    grid=Float8Grid(),
    error=0.04,
)
