"""Energy an image on NVIDIA GPUs, by the counter that the driver keeps (NVML).

    measure_energy(forward, wait, torch.device("cuda", 0), batch=256)
    # {"joules_per_image": 0.071, "watts": 480.2, "images": 14080, "seconds": 2.1}      or {"reason": …}

The counter is the whole board's, so whatever else runs there is in it; it grows in steps of some tens of milliseconds,
which two seconds of passes make small. Nothing is estimated where there is no counter: then there is a reason.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from petalite.measure.latency import Call, count_forwards

_SECONDS = 2.5


def measure_energy(forward: Call, wait: Call, device: torch.device, batch: int, progress: Call) -> dict[str, Any]:
    """Passes for at least two seconds between two looks at the counter: JSON values, or `reason` why there are none."""
    if device.type != "cuda":
        return {"reason": "energy is measured on NVIDIA GPUs only"}
    try:
        import pynvml
    except ImportError:
        return {"reason": "energy needs NVML's bindings: pip install nvidia-ml-py"}
    try:
        pynvml.nvmlInit()
        try:
            handle = _handle(pynvml, device)
            wait()
            before_mj, start = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter()
            rate = count_forwards(forward, wait, seconds=_SECONDS, progress=progress)
            after_mj, took_s = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter() - start
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return {"reason": f"NVML does not say what this GPU takes: {error}"}
    joules = (after_mj - before_mj) / 1e3
    images = batch * rate * took_s
    return {
        "joules_per_image": joules / images,
        "watts": joules / took_s,
        "images": round(images),
        "seconds": took_s,
    }


def _handle(pynvml: Any, device: torch.device) -> Any:
    """NVML's handle of one of PyTorch's devices, whose numbers may differ; parts of a divided GPU have none by UUID."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    return pynvml.nvmlDeviceGetHandleByUUID(name)
