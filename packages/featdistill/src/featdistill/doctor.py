"""What this thread needs of a machine, beyond the core's checks."""

from __future__ import annotations

from collections.abc import Sequence

from loom.doctor import Check, Finding
from loom.native import Library, Unavailable


def checks() -> Sequence[Check]:
    """The thread's own checks."""
    return (
        Check("kernel: field", lambda: _kernel("field")),
        Check("kernel: raster", lambda: _kernel("raster")),
        Check("kernel: student", lambda: _kernel("kilo")),
    )


def _kernel(name: str) -> Finding:
    from importlib import import_module

    found: Library | Unavailable = import_module(f"featdistill.models.{name}").library()
    if isinstance(found, Library):
        return Finding("ok", f"{found.isa}, {found.path}", "")
    return Finding(
        "warn",
        f"the torch twin is used, which is slower: {found.reason}",
        "install a C++ compiler: apt install g++",
    )
