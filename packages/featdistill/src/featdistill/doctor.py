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
        Check("kernel: optimiser", lambda: _kernel("cell_adam")),
        Check("kernel: student on cuda", cuda_renderer),
    )


def cuda_renderer() -> Finding:
    """Say whether the CUDA kernel draws pictures here, after a test picture, and why not."""
    import torch

    from featdistill.models import kilo_cuda
    from featdistill.models.kilo_layout import NetworkShape

    if not torch.cuda.is_available():
        return Finding("ok", "not used: torch finds no CUDA device")
    found, device = kilo_cuda.kernel(), torch.device("cuda")
    if isinstance(found, Unavailable):
        why, fix = found.reason, "install the CUDA toolkit and a C++ compiler"
    else:
        why = kilo_cuda.examine(found, NetworkShape(32, 4, 2), device)
        fix = "report it with this line; `--device cpu` leaves the device out"
    if why:
        return Finding("warn", f"the torch twin draws on the device, which is slower: {why}", fix)
    return Finding(
        "ok", f"its test picture equals the torch twin's on {torch.cuda.get_device_name(device)}"
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
