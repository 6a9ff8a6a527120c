"""A scene as a recording for the Rerun viewer, where `rerun-sdk` is installed.

Each kind of pose is a tree of its own, `/pred/641` and `/gt/641`, so the viewer can show either
or both: points below the vehicle's pose, cameras as pinholes with their place in the rig.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.errors import UserError

if TYPE_CHECKING:
    from coopcyl.scene_page import SceneView


def write_recording(path: Path, title: str, views: "Sequence[SceneView]") -> None:
    """Write a scene's clouds, poses, cameras and pictures as one `.rrd` file.

    Raises:
        UserError: `rerun-sdk` is not installed.
    """
    rerun = _rerun()
    recording = rerun.RecordingStream("coopcyl", recording_id=title)
    recording.save(str(path))
    recording.log("/", rerun.ViewCoordinates.RDF, static=True)
    for view in views:
        for name, pose in view.poses.items():
            place = f"{name}/{view.agent}"
            recording.log(place, rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            recording.log(f"{place}/points", rerun.Points3D(view.points, colors=view.colours))
            for camera in view.cameras:
                mount = camera.pose_rig_from_camera
                recording.log(
                    f"{place}/{camera.name}",
                    rerun.Transform3D(translation=mount[:3, 3], mat3x3=mount[:3, :3]),
                    rerun.Pinhole(
                        image_from_camera=camera.intrinsic, width=camera.width, height=camera.height
                    ),
                )
        for caption, picture in view.pictures.items():
            recording.log(f"pictures/{view.agent}/{caption}", rerun.Image(picture))
    recording.flush()
    recording.disconnect()


def _rerun() -> Any:
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise UserError(
            "a recording for the Rerun viewer needs rerun-sdk, which is not installed",
            hint="uv pip install rerun-sdk, or leave out --rerun: the page needs nothing",
        ) from error
