"""How a matrix product is cut into tiles: what can be chosen, and a short list to choose from for each kind of shape.

    for config in configs(50_432, 4_096, 1_024, torch.float8_e4m3fn, (9, 0)):
        print(config)                                  # '128x128x128 warps4 stages3 resident2 pieces4', …

Three regimes. With many rows the tensor cores are the limit: large tiles, and programs that stay and take one tile after
the other, so that the next tile's operands arrive while one is finished. With few rows (one image) latency is: small
tiles, as many as the GPU has multiprocessors, the sum itself split where the output has too few. Between the two, tiles
as large as still fill the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

Capability = tuple[int, int]

#: Multiprocessors of the GPUs that the lists are made for (H100, H200; A100 has 108). A trial decides in the end.
_MULTIPROCESSORS = 132
_FEW_ROWS, _MANY_ROWS = 512, 4_096
_HOPPER = (9, 0)


@dataclass(frozen=True)
class Config:
    """One way to cut a product; its `str` is a stable name.

    rows, columns: of the output tile that a program computes at a time. depth: bytes of each row of the operands that
    it multiplies at a time, so that one list serves 8-bit and 16-bit operands.
    warps: of a program. stages: how many pieces of `depth` are on their way or in use at once.
    split: programs among which the sum of one tile is divided; the last to finish adds up their parts, in order.
    band: rows of tiles that are computed together, so that they find each other's operands in the L2 cache.
    resident: programs a multiprocessor keeps for the whole product; 0 starts a program for each tile.
    pieces: the finished tile is written in so many, one after the other: fewer take less shared memory.
    engine: the copy engine fetches the operands (Hopper and newer; elsewhere loads stand in for it), else the threads do.
    dependent: the program may start before the kernel ahead of it has ended (Hopper and newer, also in CUDA graphs),
    and fetches its part of `w` meanwhile; it pays where that kernel calls `gdc_launch_dependents`.
    """

    rows: int
    columns: int
    depth: int = 128
    warps: int = 4
    stages: int = 4
    split: int = 1
    band: int = 8
    resident: int = 0
    pieces: int = 1
    engine: bool = True
    dependent: bool = False

    def __str__(self) -> str:
        """`128x64x128 warps4 stages4 split4`: the tile, and what is not at rest."""
        words = [f"{self.rows}x{self.columns}x{self.depth}", f"warps{self.warps}", f"stages{self.stages}"]
        for name, rest in (("split", 1), ("band", 8), ("resident", 0), ("pieces", 1)):
            value = getattr(self, name)
            words += [f"{name}{value}"] if value != rest else []
        words += [] if self.engine else ["threads"]
        return " ".join(words + (["dependent"] if self.dependent else []))


#: Two programs of a multiprocessor take turns: one finishes its tile while the tensor cores work for the other.
_MANY_HOPPER = (
    Config(128, 128, warps=4, stages=3, resident=2, pieces=4),
    Config(128, 128, warps=4, stages=3, resident=2, pieces=2),
    Config(128, 128, warps=4, stages=3, resident=2, pieces=4, band=16),
    Config(128, 128, warps=4, stages=3),
    Config(128, 256, warps=8, stages=4, resident=1, pieces=4),
    Config(128, 256, warps=8, stages=3, resident=1, pieces=2),
)
_SOME_HOPPER = (
    Config(128, 128, warps=4, stages=3),
    Config(64, 128, warps=4, stages=4),
    Config(128, 64, warps=4, stages=4),
    Config(128, 128, warps=4, stages=3, resident=2, pieces=4),
    Config(64, 128, warps=4, stages=4, resident=2, pieces=2),
    Config(64, 256, warps=4, stages=2),
    Config(128, 128, warps=4, stages=3, split=2),
)
#: Tiles for few rows, as they are and with the sum split. Most of a short sum is on its way at once.
_FEW = (
    Config(64, 32, stages=6, engine=False),
    Config(64, 64, stages=6, engine=False),
    Config(64, 128, stages=5, engine=False),
    Config(128, 64, stages=5, engine=False),
    Config(128, 128, warps=8, stages=5, engine=False),
)
#: Before Hopper the operands pass through registers and shared memory is smaller (99 KiB on consumer GPUs).
_MANY_OLDER = (
    Config(128, 128, 64, warps=8, stages=3, engine=False),
    Config(128, 128, 64, warps=4, stages=4, engine=False),
    Config(64, 128, 64, warps=4, stages=4, engine=False),
    Config(128, 64, 128, warps=4, stages=3, engine=False),
    Config(64, 64, 128, warps=4, stages=3, engine=False),
)
_FEW_OLDER = (
    Config(64, 32, stages=4, engine=False),
    Config(64, 64, stages=4, engine=False),
    Config(64, 128, stages=3, engine=False),
    Config(32, 64, stages=5, engine=False),
)


def configs(rows: int, columns: int, depth: int, dtype: torch.dtype, capability: Capability) -> tuple[Config, ...]:
    """At most 8 configs worth a trial for a product (rows, depth) · (columns, depth)ᵀ of `dtype`, the likeliest first.

    capability: of the device, as `torch.cuda.get_device_capability` gives it.
    """
    hopper = capability >= _HOPPER
    if rows > _FEW_ROWS:
        return _MANY_OLDER if not hopper else _MANY_HOPPER if rows >= _MANY_ROWS else _SOME_HOPPER
    found = _few(rows, columns, depth * dtype.itemsize, _FEW if hopper else _FEW_OLDER)
    if not hopper:
        return found[:8]
    # most of the time goes into waiting for weights, which a dependent program fetches ahead
    by_engine = tuple(replace(config, engine=True, dependent=ahead) for ahead in (True, False) for config in found[:2])
    return (*by_engine, *(replace(config, dependent=True) for config in found[:4]))


def default(rows: int, columns: int, depth: int, dtype: torch.dtype, capability: Capability) -> Config:
    """A sensible config without a trial."""
    return next(config for config in configs(rows, columns, depth, dtype, capability) if not config.dependent)


def tiles(config: Config, rows: int, columns: int) -> int:
    """How many tiles the output has."""
    return -(-rows // config.rows) * -(-columns // config.columns)


def _few(rows: int, columns: int, depth_bytes: int, shapes: tuple[Config, ...]) -> tuple[Config, ...]:
    """Each of `shapes` as it is where its tiles fill at least a third of the GPU, and with its sum split until they do.

    Ordered by how many of the GPU's multiprocessors have work and how few bytes they fetch for it.
    """
    found: dict[Config, float] = {}
    for shape in shapes:
        count = tiles(shape, rows, columns)
        split = 1
        # shorter parts spend their time starting, and more than 4 take long to add up
        while split <= 4 and depth_bytes // split >= 2 * shape.depth:
            if count * split * 3 >= _MULTIPROCESSORS and (split == 1 or count * split <= 2 * _MULTIPROCESSORS):
                config = replace(shape, split=split)
                found[config] = _seconds(config, rows, columns, depth_bytes)
            split *= 2
    if not found:
        found = {shape: _seconds(shape, rows, columns, depth_bytes) for shape in shapes}
    return tuple(sorted(found, key=lambda config: found[config]))


def _seconds(config: Config, rows: int, columns: int, depth_bytes: int) -> float:
    """A rough model of the time of one wave: each program fetches its operands, all share the L2 cache's bandwidth."""
    programs = tiles(config, rows, columns) * config.split
    operands = min(rows, config.rows) + config.columns
    fetched = operands * depth_bytes / config.split
    partial = 4 * config.rows * config.columns * (config.split if config.split > 1 else 0)
    waves = -(-programs // (2 * _MULTIPROCESSORS))
    return max(waves * (fetched + partial) / 100e9, programs * (fetched + partial / config.split) / 6e12)
