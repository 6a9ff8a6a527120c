"""Which scene is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from loom.errors import UserError

from maniflow_overlay.sim import graphics
from maniflow_overlay.sim.camera import TableCamera
from maniflow_overlay.sim.planar import Planar
from maniflow_overlay.sim.scene import Scene

SceneName = Literal["tabletop", "planar"]


def chosen_scene(wanted: str, say: Callable[[str], None]) -> SceneName:
    """Return which scene to use.

    Args:
        wanted: `tabletop` (MuJoCo), `planar` (no GL needed) or `auto`: the first that can be drawn.
        say: Is told once why `auto` did not take MuJoCo.

    Raises:
        UserError: There is no scene of that name.
    """
    if wanted == "tabletop" or wanted == "planar":
        return wanted
    if wanted != "auto":
        raise UserError(f"no scene is called {wanted!r}", hint="auto, tabletop or planar")
    reason = graphics.missing()
    if reason is None:
        return "tabletop"
    say(f"[scene] planar, since MuJoCo cannot draw: {reason} ({graphics.remedy(reason)})")
    return "planar"


def make_scene(name: SceneName, camera: TableCamera | None = None) -> Scene:
    """Make a scene; close it when it is no longer used."""
    if name == "planar":
        return Planar(camera)
    from maniflow_overlay.sim.tabletop import Tabletop

    return Tabletop(camera)
