"""OpenVINO, imported so that it tells nobody, and its one core, which lives as long as the process.

    from petalite.engine.openvino_runtime import core, op, ov

    compiled = core().compile_model(model, "CPU", settings)

`import openvino` as it comes starts a thread and forks a process that posts to Google Analytics, and writes an
identifier into `~/intel`, unless the user has opted out. Where its telemetry package cannot be imported, OpenVINO does
without: so it cannot, while OpenVINO is imported here. Nothing else in the process is changed, and an OpenVINO that was
imported before is left as it is: whoever imported it decided that.

Each `ov.Core` gives its thread a stack for signals, and when it goes puts back the one before it. Of two that go in the
order in which they came, the second puts back the first one's, which is freed by then: the next signal kills the
process (OpenVINO 2026.4, docs/log.md). So nothing here makes a core but `core()`, once, and it never goes.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

_TELEMETRY = "openvino_telemetry"


def _quiet_import(name: str) -> Any:
    """The module, with its telemetry out of reach. Raises ImportError where it is not installed."""
    blocked = _TELEMETRY not in sys.modules
    if blocked:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import system's word for "not there"
    try:
        return importlib.import_module(name)
    finally:
        if blocked:
            sys.modules.pop(_TELEMETRY, None)


ov: Any = _quiet_import("openvino")
op: Any = _quiet_import("openvino.opset13")


@functools.cache
def core() -> Any:
    """The process's `ov.Core`."""
    return ov.Core()
