"""What this thread needs of a machine, beyond the core's checks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loom.doctor import Check, Finding

from maniflow_overlay.sim import graphics

if TYPE_CHECKING:
    import numpy as np

# Of the drawing below, made with the recorded cases of tests/overlay_cases.json all equal.
_DRAWN_SHA256 = "2b61329fb8050efc58a2cc0984d86a755bd8fe9ed0d9d5e98bb31be5f0dc4382"


def checks() -> Sequence[Check]:
    """The thread's own checks."""
    return Check("scene", check_scene), Check("drawing", check_drawing)


def check_scene() -> Finding:
    """Check that the MuJoCo scene can be drawn."""
    reason = graphics.missing()
    if reason is None:
        return Finding("ok", f"MuJoCo {graphics.mujoco().__version__} draws by {graphics.chosen()}")
    return Finding("warn", f"the planar scene is used: {reason}", graphics.remedy(reason))


def check_drawing() -> Finding:
    """Check that OpenCV draws a path to the byte as it was recorded."""
    import cv2  # which changes LD_LIBRARY_PATH, one of the things that `doctor` looks at

    digest = hashlib.sha256(_drawing().tobytes()).hexdigest()
    if digest == _DRAWN_SHA256:
        return Finding("ok", f"OpenCV {cv2.__version__} draws paths to the byte")
    return Finding(
        "warn",
        f"OpenCV {cv2.__version__} draws another picture: {digest[:12]}",
        "paths look alike, but stores of other machines were drawn differently: uv sync",
    )


def _drawing() -> np.ndarray:
    """Draw a path with a repeated point, a steep and a flat piece, and both changes of state."""
    import numpy as np

    from maniflow_overlay.gripper_path import GripperPath
    from maniflow_overlay.overlay.drawing import draw_path_rgb

    points = [[0.1, 0.9], [0.42, 0.13], [0.42, 0.13], [0.97, 0.31], [0.55, 0.58]]
    path = GripperPath(np.array(points), np.array([1, 1, 0, 0, 1], np.uint8))
    return draw_path_rgb(np.full((240, 320, 3), 127, np.uint8), path)
