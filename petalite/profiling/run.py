"""One variant taken apart in a process of its own, and what is written of it.

found = dissect(Variant("int8", Path("runs/demo/checkpoints/int8")), batch_size=8, out=Path("runs/profile"))
found["anatomy"]["check"]["adds_up"]        # True
# runs/profile: profile.json, trace.json, layers.png, roofline.png, memory.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from petalite.errors import PetaliteError
from petalite.files import prepare_out, write_json
from petalite.measure.bench import Variant
from petalite.measure.process import Worker, program

#: Of passes, half of them under the profiler.
SECONDS = 5.0


FILES = ("profile.json", "trace.json", "layers.png", "roofline.png", "memory.png")


class Dissector(Worker):
    """A measuring process that can take a variant apart."""

    def __init__(self) -> None:
        super().__init__(program("petalite.profiling.child"))

    def __enter__(self) -> Dissector:
        return self

    def dissect(self, checkpoint: Path, **arguments: Any) -> dict[str, Any]:
        """See `child.Dissection.dissect`. Raises WorkerError."""
        return self._ask("dissect", checkpoint=str(checkpoint), **arguments)


def dissect(
    variant: Variant,
    batch_size: int = 1,
    device: str = "auto",
    threads: int | None = None,
    *,
    out: Path | None = None,
    force: bool = False,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Profile one variant: JSON values.

    The contract's `kernels` block, and `info` (what was loaded), `anatomy` (see `account`), `roofline` (ceilings measured
    in the same process, and rates as shares of them, or a `reason`), `energy` (or a `reason`), `memory` (a curve).
    out: a new folder for profile.json, trace.json and the pictures; force: replace what it holds.
    Raises PetaliteError where the variant cannot be loaded or run here.
    """
    if batch_size < 1:
        raise PetaliteError(f"the batch size must be at least 1, got {batch_size}")
    if out is not None:
        _prepare(out, force)
    with Dissector() as worker:
        found = worker.dissect(
            variant.checkpoint, batch=batch_size, seconds=seconds, attention=variant.attention, compute=variant.compute,
            engine=variant.engine, device=device, threads=threads,
            trace=None if out is None else str((out / "trace.json").resolve()),
        )  # fmt: skip
    if out is not None:
        from petalite.profiling.pictures import draw_pictures

        write_json(out / "profile.json", found)
        draw_pictures(found, out)
    return found


def _prepare(out: Path, force: bool) -> None:
    """Make the folder; of one that holds a profile, `force` removes its files and nothing else."""
    earlier = [out / name for name in FILES if (out / name).exists()] if force else []
    prepare_out(out, resume=True if earlier else None, force=force and not earlier)
    for path in earlier:
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)
