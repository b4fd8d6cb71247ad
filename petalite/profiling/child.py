"""The child process in which a variant is taken apart: `dissect` beside the commands of `petalite.measure.worker`.

python -c "from petalite.profiling.child import main; main()"
{"command": "dissect", "checkpoint": "runs/demo/checkpoints/int8", "batch": 8}
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

from petalite.measure.worker import Answer, Session
from petalite.measure.worker import main as serve_commands


class Dissection(Session):
    """A session that can also take its variant apart."""

    def dissect(self, checkpoint: str, batch: int, seconds: float, trace: str | None = None, **settings: Any) -> Answer:
        """Load a variant and find out all that `petalite profile` shows of it: see `petalite.profiling.run.dissect`.

        trace: where a Chrome trace of some passes goes. settings: as `load` takes them.
        """
        from petalite.checkpoint import read_checkpoint
        from petalite.device import resolve_device
        from petalite.errors import PetaliteError
        from petalite.measure.ceilings import wait_for
        from petalite.profiling.account import account
        from petalite.profiling.energy import measure_energy
        from petalite.profiling.memory_curve import Curve
        from petalite.profiling.roofline import measure_ceilings, roofline
        from petalite.profiling.work import work

        if "," in settings.get("device", "") or settings.get("device") == "cuda:all":
            raise PetaliteError("a profile is of one device; name one, e.g. --device cuda:0")
        device = resolve_device(settings.get("device", "auto"))
        with Curve(device) as curve:
            info = self.load(checkpoint, **settings)
            curve.mark("loaded")
            forward = self._forward(batch)
            forward()
            self._wait()
            curve.mark("first pass")
            for _ in range(5):
                forward()
                self._wait()
            curve.mark("five passes")
        self._progress()
        classifier, pixels = self._classifier, self._batch
        passes = self._record(classifier, pixels, seconds, Path(trace) if trace else None)
        found = account(passes)
        stored = read_checkpoint(Path(checkpoint))
        plain = {"fp32": 4, "bf16": 2}.get(str(classifier.report().get("plain")))
        known = work(stored, batch, info["compute"], info["engine"], plain)
        try:
            ceilings = measure_ceilings(stored, info["compute"], batch, device, self._progress)
            roof: Answer | None = {"ceilings": ceilings, **roofline(found, known, ceilings)}
        except RuntimeError as error:
            roof = {"reason": str(error).splitlines()[0]}
        energy = measure_energy(forward, wait_for(device), device, batch, self._progress)
        return {
            "batch_size": batch, **self.profile(batch), "info": info, "anatomy": found, "roofline": roof, "energy": energy,
            "memory": curve.as_dict(),
        }  # fmt: skip

    def _record(self, classifier: Any, pixels: Any, seconds: float, trace: Path | None) -> Any:
        if classifier.info.engine == "openvino":
            from petalite.profiling import openvino_passes
            from petalite.profiling.written import write_trace

            recorded = openvino_passes.record(classifier, pixels, seconds, self._progress)
            if trace is not None:
                write_trace(recorded.passes[0], trace)
            return recorded
        from petalite.profiling import torch_passes

        return torch_passes.record(classifier, pixels, seconds, self._progress, trace)


def main() -> NoReturn:
    """Serve commands with the engine's `load`."""
    # the profiler warns of GPU events each time that it is switched on and off, on a CPU too; not to hide what matters
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    serve_commands(session_type=Dissection)
