"""How many threads a CPU engine may use: the cores of this process, less where a container's share of time is smaller.

    usable_threads()      # 2 in `docker run --cpus 2` on a machine of 64 cores

A container that may use two cores' time on a machine of 64 sees 64 cores; with a thread on each, all of them are
stopped together as soon as the share is used up.
"""

from __future__ import annotations

import math
from pathlib import Path

from petalite.data.workers import available_cores
from petalite.errors import PetaliteError

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_threads(asked: int | None = None, root: Path = _CGROUPS, own: Path = _OWN) -> int:
    """`asked`, or for None as many threads as this process has cores' time for. Raises PetaliteError below 1."""
    if asked is not None:
        if asked < 1:
            raise PetaliteError(f"threads must be at least 1, got {asked}")
        return asked
    quota = cores_allowed(root, own)
    cores = available_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cores_allowed(root: Path = _CGROUPS, own: Path = _OWN) -> float | None:
    """Cores' time that the control group of this process allows, of its parents the least; None without a limit."""
    limits = [limit for folder in _folders(root, own) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _folders(root: Path, own: Path) -> list[Path]:
    """Where limits may stand: the process's own group and all above it, in both versions of control groups."""
    folders = [root, root / "cpu"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        inside = Path(path.lstrip("/"))
        folders += [base / part for part in (inside, *inside.parents)]
    return folders


def _limit(folder: Path) -> float | None:
    """Quota over period: `cpu.max` (version 2), or `cpu.cfs_quota_us` and `cpu.cfs_period_us` (version 1)."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # 'max': no limit
        return None
    return share if share > 0 else None
