"""A time as one HTML file: what each vehicle saw, and the clouds of all in one place.

The page needs no network and no server. Clouds are drawn in software on a canvas, so it also works
where a browser has no graphics card. One button changes between predicted and true poses: if the
clouds fit with true poses and not with predicted ones, the poses are wrong; if with neither, the
ranges are.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from coopcyl.data.images import png_bytes
from coopcyl.geometry.rig import Camera

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_CENTIMETRES = 100
_FRUSTUM_M = 0.9


@dataclass(frozen=True, eq=False)
class SceneView:
    """One vehicle on the page.

    Attributes:
        agent: Its id.
        pictures: Caption -> `(h, w, 3)` or `(h, w)` uint8, such as image, depth and mask.
        points: `(n, 3)` in the rig frame, metres.
        colours: `(n, 3)` uint8.
        poses: `pred` and `gt`, as far as they are known: 4x4 from the rig frame to the first one.
        cameras: Of the rig.
        facts: Name -> number, shown in a table.
        pixel_rad: Angle of a pixel, which gives the points their size.
    """

    agent: int
    pictures: Mapping[str, np.ndarray]
    points: np.ndarray
    colours: np.ndarray
    poses: Mapping[str, np.ndarray]
    cameras: Sequence[Camera]
    facts: Mapping[str, float]
    pixel_rad: float


def scene_page(title: str, note: str, views: Sequence[SceneView]) -> str:
    """Return the page.

    Args:
        title: Heading, such as scenario and time.
        note: One sentence below it: where the poses come from.
        views: The vehicles; all have the same poses.
    """
    style, script = (
        files("coopcyl").joinpath(name).read_text(encoding="utf-8")
        for name in ("scene.css", "scene.js")
    )
    data = {"poses": list(views[0].poses), "views": [_embedded(view) for view in views]}
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body>"
        f'<h1>{escape(title)}</h1><p class="note">{escape(note)}</p>'
        '<div class="bar"><span id="pose"></span><span id="colour"></span>'
        '<span id="vehicles"></span></div>\n<canvas id="cloud"></canvas>'
        '<p class="note">Drag to turn, shift and drag to move, wheel to come closer. '
        "A click enlarges a picture below.</p>\n"
        f"{_facts(views)}\n{_pictures(views)}\n"
        f'<script id="scene" type="application/json">{content}</script>\n'
        f"<script>\n{script}</script></body></html>\n"
    )


def _embedded(view: SceneView) -> dict[str, Any]:
    """Return what the script needs of a view; lengths are whole centimetres in 16 bits."""
    limit = np.iinfo(np.int16).max
    codes = np.rint(view.points * _CENTIMETRES).clip(-limit, limit).astype("<i2")
    return {
        "agent": str(view.agent),
        "points": base64.b64encode(codes.tobytes()).decode(),
        "colours": base64.b64encode(np.ascontiguousarray(view.colours).tobytes()).decode(),
        "poses": {name: pose[:3].tolist() for name, pose in view.poses.items()},
        "cameras": [_frustum(camera) for camera in view.cameras],
        "pixel": view.pixel_rad,
    }


def _frustum(camera: Camera) -> dict[str, Any]:
    """Return a camera's centre and four points on its image's corners, rig frame."""
    half = np.array([camera.width, camera.height]) / np.diag(camera.intrinsic)[:2] / 2
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    own = np.concatenate([signs * half, np.ones((4, 1))], axis=1) * _FRUSTUM_M
    corners = own @ camera.pose_rig_from_camera[:3, :3].T + camera.origin
    return {"origin": camera.origin.tolist(), "corners": corners.tolist()}


def _facts(views: Sequence[SceneView]) -> str:
    names = list(dict.fromkeys(name for view in views for name in view.facts))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{view.agent}</td>"
        + "".join(
            f"<td>{view.facts[name]:.3g}</td>" if name in view.facts else "<td></td>"
            for name in names
        )
        + "</tr>"
        for view in views
    )
    return f'<div class="box"><table><tr><th>vehicle</th>{head}</tr>{body}</table></div>'


def _pictures(views: Sequence[SceneView]) -> str:
    parts = []
    for view in views:
        parts.append(f"<p>vehicle {view.agent}: {', '.join(map(escape, view.pictures))}</p>")
        for caption, picture in view.pictures.items():
            data = base64.b64encode(png_bytes(picture)).decode()
            parts.append(f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">')
    return f'<div class="rows">{"".join(parts)}</div>'
