"""bitsandbytes, imported on first use and without the lines that it logs at import and on every call.

It logs that optional kernels are missing, and for each BF16 input of LLM.int8 that it is cast to FP16 on the way:
both are known here, said in the documents, and would bury what matters.
"""

from __future__ import annotations

import functools
import logging
from types import ModuleType

from petalite.errors import PetaliteError


@functools.cache
def bitsandbytes() -> ModuleType:
    """The module. Raises PetaliteError when it is not installed."""
    quiet_bitsandbytes()
    try:
        import bitsandbytes as module
    except ImportError as error:
        raise PetaliteError(f"nf4 and int8 need bitsandbytes ({error}): pip install bitsandbytes") from error
    return module


def quiet_bitsandbytes() -> None:
    """Leave those lines out, also when another package (peft) is about to import bitsandbytes."""
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "kernels-community" not in message and "inputs will be cast" not in message
