"""How attention is cut: blocks of queries and keys, programs, and the ways that are worth a trial."""

from __future__ import annotations

from dataclasses import dataclass, replace

from petalite.engine.kernels import HOPPER_BYTES, power_of_two

#: More keys at once do not fit the registers.
MOST_AT_ONCE = 256
#: Of an H100 or H200.
_MULTIPROCESSORS = 132
#: Shared memory of the smallest GPUs since; a T4 has 64 KiB, and Triton takes more of it there.
_AMPERE_BYTES = 99 * 1024


@dataclass(frozen=True)
class Config:
    """How attention is cut; its `str` is a stable name.

    rows: queries taken at a time. warps: of a program. block: keys taken at a time, 0 for all of them (up to 256 tokens).
    parts: programs that share the queries of one head. registers: the most that a thread may use, 0 for the compiler's
    choice: fewer let more programs run at once.
    stages: blocks of queries (or of keys, where those are streamed) on their way at once.
    dependent: the programs may start before the kernel ahead has ended, and wait for it themselves, and the kernel behind
    likewise (Hopper and newer, also in CUDA graphs).
    """

    rows: int = 64
    warps: int = 4
    block: int = 0
    parts: int = 1
    registers: int = 0
    stages: int = 2
    dependent: bool = False

    def __str__(self) -> str:
        """`64 rows, all keys, 4 warps, 1 part`."""
        keys = f"{self.block} keys" if self.block else "all keys"
        registers = f", {self.registers} registers" if self.registers else ""
        ahead = ", dependent" if self.dependent else ""
        return (
            f"{self.rows} rows, {keys}, {self.warps} warps, {self.parts} parts{registers}, {self.stages} stages{ahead}"
        )


def configs(batch: int, tokens: int, heads: int, size: int, shared_bytes: int = HOPPER_BYTES) -> tuple[Config, ...]:
    """At most 8 configs worth a trial, the likeliest first: `batch` images of `tokens`, heads of `size` channels.

    shared_bytes: shared memory that a program may have; programs start ahead only where it is what Hopper has or more.
    """
    if shared_bytes < _AMPERE_BYTES:
        return Config(64, 4, block=64), Config(64, 4, block=32)
    streamed = (Config(64, 4, block=64), Config(128, 8, block=64))
    if tokens > MOST_AT_ONCE:
        return (Config(128, 8, block=64), Config(64, 4, block=64), Config(128, 8, block=128), Config(64, 4, block=128))
    # all keys and values of a head, and two blocks of queries
    if 2 * power_of_two(size) * (2 * sum(pieces(tokens)) + 2 * 64) + 4_096 > shared_bytes:
        return streamed
    tiles = -(-tokens // 64)
    # programs enough for three on each multiprocessor, but no more than there are queries for
    parts = max(1, min(tiles, 3 * _MULTIPROCESSORS // (batch * heads)))
    tight = Config(64, 4, parts=parts, registers=168)  # three programs fit a multiprocessor
    found = [tight, Config(64, 4, parts=parts)]
    if batch * heads < 3 * _MULTIPROCESSORS:
        found.reverse()  # one program on each multiprocessor has all its registers
        if shared_bytes >= HOPPER_BYTES:
            found += [replace(config, dependent=True) for config in found]
    found += [replace(tight, stages=1), replace(tight, parts=1 if parts > 1 else 2), *streamed]
    return tuple(dict.fromkeys(found))


def pieces(tokens: int) -> tuple[int, int, int]:
    """Powers of two, from 16 on, that hold `tokens` keys with little to spare: 197 -> (128, 64, 16); 0 for none."""
    left = max(16, -(-tokens // 16) * 16)
    found: list[int] = []
    while left and len(found) < 2:
        found.append(power_of_two(left + 1) // 2)  # the largest that fits
        left -= found[-1]
    if left:
        found.append(power_of_two(left))
    while len(found) > 1 and found[-1] == found[-2]:
        found[-2:] = [2 * found[-1]]
    first, second, third = [*found, 0, 0][:3]
    return first, second, third
