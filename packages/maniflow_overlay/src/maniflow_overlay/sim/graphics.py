"""Whether MuJoCo can draw on this machine, found out once, before it is imported for good.

MuJoCo chooses its way of drawing when it is imported. Without a display that is EGL, or OSMesa
where there is no EGL; both draw on the CPU if there is no GPU. A wheel brings neither: on Debian
and Ubuntu they are the packages `libegl1` with `libegl-mesa0`, or `libosmesa6`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from ctypes.util import find_library
from functools import cache
from importlib import import_module
from typing import Any

PACKAGES = "apt install libegl1 libegl-mesa0"
EXTRA = "uv pip install mujoco"
NOT_IMPORTED = "mujoco cannot be imported"


@cache
def missing() -> str | None:
    """Return why MuJoCo cannot draw here, or None if it can."""
    if "MUJOCO_GL" not in os.environ:
        found = next((name for name in ("EGL", "OSMesa") if find_library(name)), None)
        if found is None:
            return "neither EGL nor OSMesa is installed"
        os.environ["MUJOCO_GL"] = found.lower()
    # Mesa's threads cost twice the CPU time of drawing small pictures in the caller's.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        library = mujoco()
    except ImportError as error:
        return f"{NOT_IMPORTED}: {error}"
    try:
        model = library.MjModel.from_xml_string("<mujoco/>")
        with library.Renderer(model, 8, 8):
            pass
    except (ImportError, AttributeError, OSError, RuntimeError, library.FatalError) as error:
        # Which of them depends on the library that is missing or does not load.
        return f"{os.environ['MUJOCO_GL']} does not work: {error}"
    return None


def mujoco() -> Any:
    """Import MuJoCo, which is an extra and has no types.

    Mesa brings an LLVM of its own. If it is loaded first, torch's compiler, which any optimiser
    imports, takes its symbols and crashes the process; so the compiler comes first.
    """
    with suppress(ImportError):
        import_module("triton")
    return import_module("mujoco")


def chosen() -> str:
    """Return by what MuJoCo draws: egl, osmesa or glfw."""
    return os.environ.get("MUJOCO_GL", "glfw")


def remedy(reason: str) -> str:
    """Return the command that mends what `missing` has found."""
    return EXTRA if reason.startswith(NOT_IMPORTED) else PACKAGES
