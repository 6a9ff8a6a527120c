"""How many processors this process may use: those of its affinity, within the quota of its group.

`os.cpu_count` counts those of the machine. A container with `--cpus 2`, a pod with a limit and a
SLURM job without binding see all of them and may use a few: the kernel gives a control group
`quota` microseconds of processor time in each `period`, in version 2 as `cpu.max`, in version 1 as
`cpu.cfs_quota_us` and `cpu.cfs_period_us`. A limit on a group above binds as well.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MEMBERSHIP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """Return how many processors' worth of work this process can do at once, 1 at least."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, math.ceil(min([allowed, *_quotas()])))


def _quotas() -> Iterator[float]:
    """Yield the limit of each control group that this process is in, in processors."""
    for folder in _folders():
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
                period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
            processors = int(quota) / int(period)  # no limit is "max", or -1 in version 1
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if processors > 0:
            yield processors


def _folders() -> Iterator[Path]:
    """Yield the folders of this process's groups and of those above them.

    Inside a container the path of version 1 may be the host's; the root is then the container's.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        for each in [group, *group.parents]:
            yield GROUPS.joinpath("cpu" if controllers else "", each)
