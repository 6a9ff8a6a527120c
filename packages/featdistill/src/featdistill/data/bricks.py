"""A procedural brick model, ray-traced in closed form: the scene that every clone can make.

Its images are ground truth in the strict sense: each sub-sample solves ray-box and ray-cylinder
intersections exactly and shares nothing with the rasteriser or the student that are judged by them.
A brick is a box and its free studs are upright cylinders. Both are convex, so a ray enters at the
last of its entries into the shape's slabs and leaves at the first of its exits [1]; the infinite
cylinder counts as one more slab, whose ends are the roots of a quadratic.

The light is fixed in the world: sky from above, one sun (Lambert) and a Blinn-Phong highlight, the
term that depends on the view. Colours are display values, without gamma.

[1] Kay and Kajiya, "Ray tracing complex scenes", SIGGRAPH 1986.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loom.errors import UserError
from loom.files import explained, write_json

from featdistill.cameras import Cameras, focal_from_angle, look_at, orbit_poses
from featdistill.data.nerf_synthetic import Views, write_views
from featdistill.data.png import make_folder
from featdistill.data.rgba import straighten

ORBIT_RADIUS = 4.031
CAMERA_ANGLE_X = 0.6911112070083618

_PITCH, _BRICK_HEIGHT, _PLATE_HEIGHT = 0.15, 0.18, 0.06
_STUD_RADIUS, _STUD_HEIGHT = 0.045, 0.032
_GAP = 0.003  # between neighbouring bricks, so that seams are there to be seen close up
_CELLS = (12, 10)
_SIZES = ((2, 4), (4, 2), (2, 3), (3, 2), (2, 2), (1, 4), (4, 1), (1, 2), (2, 1), (1, 1))
_PALETTE = np.array(
    [
        [0.79, 0.10, 0.12],
        [0.95, 0.77, 0.10],
        [0.08, 0.35, 0.66],
        [0.89, 0.89, 0.86],
        [0.93, 0.45, 0.10],
        [0.26, 0.27, 0.29],
        [0.36, 0.62, 0.80],
    ]
)
_PLATE_COLOUR = np.array([0.20, 0.50, 0.26])

_SUN = np.array([0.48, -0.36, 0.80])
_AMBIENT, _DIFFUSE, _SPECULAR, _SHININESS = 0.58, 0.46, 0.25, 24.0


class Boxes(NamedTuple):
    """Boxes along the axes."""

    low: np.ndarray  # [b, 3]
    high: np.ndarray  # [b, 3]
    colour: np.ndarray  # [b, 3]


class Studs(NamedTuple):
    """Upright cylinders with a flat top."""

    centre: np.ndarray  # [s, 2]
    bottom: np.ndarray  # [s]
    top: np.ndarray  # [s]
    radius: np.ndarray  # [s]
    colour: np.ndarray  # [s, 3]


@dataclass(frozen=True)
class BrickModel:
    """The shapes of a scene, in world units."""

    boxes: Boxes
    studs: Studs


@dataclass(frozen=True)
class BrickScene:
    """What a generated scene depends on; the same values always give the same files."""

    seed: int = 0
    width: int = 100
    train: int = 60
    test: int = 20
    supersampling: int = 4


def build_model(seed: int) -> BrickModel:
    """Build a plate with towers of random bricks; every brick stands on bricks or on the plate."""
    rng = np.random.default_rng(seed)
    heights = _tower_heights(rng)
    low, high, colour = [], [], []
    size = np.array([*_CELLS, 0.0]) * _PITCH
    base = np.array([-size[0] / 2, -size[1] / 2, -0.62])
    low.append(base)
    high.append(base + size + [0, 0, _PLATE_HEIGHT])
    colour.append(_PLATE_COLOUR)
    stud_colour = np.broadcast_to(_PLATE_COLOUR, (*_CELLS, 3)).copy()
    for layer in range(heights.max()):
        bottom = base[2] + _PLATE_HEIGHT + layer * _BRICK_HEIGHT
        for x, y, wide, deep in _tile(heights > layer, rng):
            paint = _PALETTE[rng.integers(len(_PALETTE))]
            corner = np.array([base[0] + x * _PITCH, base[1] + y * _PITCH, bottom])
            extent = np.array([wide * _PITCH, deep * _PITCH, _BRICK_HEIGHT])
            low.append(corner + [_GAP / 2, _GAP / 2, 0])
            high.append(corner + extent - [_GAP / 2, _GAP / 2, _GAP])
            colour.append(paint)
            stud_colour[x : x + wide, y : y + deep] = paint
    cells = np.argwhere(np.ones(_CELLS, dtype=bool))
    bottom = base[2] + _PLATE_HEIGHT + heights.reshape(-1) * _BRICK_HEIGHT - _GAP
    studs = Studs(
        centre=base[:2] + (cells + 0.5) * _PITCH,
        bottom=bottom,
        top=bottom + _STUD_HEIGHT,
        radius=np.full(len(cells), _STUD_RADIUS),
        colour=stud_colour.reshape(-1, 3),
    )
    return BrickModel(Boxes(np.array(low), np.array(high), np.array(colour)), studs)


def _tower_heights(rng: np.random.Generator) -> np.ndarray:
    """Return the number of brick layers on each cell of the plate: overlapping random blocks."""
    heights = np.zeros(_CELLS, dtype=np.int64)
    for _ in range(9):
        wide, deep = rng.integers(2, 6), rng.integers(2, 5)
        x = rng.integers(1, _CELLS[0] - wide)
        y = rng.integers(1, _CELLS[1] - deep)
        heights[x : x + wide, y : y + deep] += rng.integers(1, 4)
    return np.minimum(heights, 7)


def _tile(free: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Cover the free cells with bricks (x, y, width, depth) drawn from the sizes that fit."""
    free = free.copy()
    bricks = []
    for x, y in np.argwhere(free):
        if not free[x, y]:
            continue
        fitting = [
            (wide, deep)
            for wide, deep in _SIZES
            if x + wide <= free.shape[0]
            and y + deep <= free.shape[1]
            and free[x : x + wide, y : y + deep].all()
        ]
        wide, deep = fitting[rng.integers(len(fitting))]
        free[x : x + wide, y : y + deep] = False
        bricks.append((int(x), int(y), wide, deep))
    return bricks


def trace(model: BrickModel, cameras: Cameras, supersampling: int = 4) -> np.ndarray:
    """Ray-trace all views.

    Args:
        model: The scene; every camera stands outside it and sees all of it before itself.
        cameras: The views.
        supersampling: Sub-samples per pixel and axis, at the centres of a regular grid.

    Returns:
        Premultiplied float32 [n, h, w, 4].
    """
    fine = cameras.resized(cameras.width * supersampling, cameras.height * supersampling)
    images = []
    for view in range(len(cameras)):
        samples = _trace_view(model, fine, view)
        shape = (cameras.height, supersampling, cameras.width, supersampling, 4)
        images.append(samples.reshape(shape).mean(axis=(1, 3)))
    return np.stack(images)


def _trace_view(model: BrickModel, cameras: Cameras, view: int) -> np.ndarray:
    """Trace one ray per pixel; premultiplied float32 [h, w, 4] with alpha 0 or 1."""
    rays = cameras.image_rays(view)
    shape = (cameras.height, cameras.width)
    origin = rays.origins[0].numpy()
    directions = rays.directions.numpy()
    planes = np.ascontiguousarray(directions.T).reshape(3, *shape)
    nearest = np.full(shape, np.inf, dtype=np.float32)
    shape_index = np.full(shape, -1, dtype=np.int32)
    windows = _windows(model, cameras, view)
    boxes, studs = model.boxes, model.studs
    for index, window in enumerate(windows):
        part = planes[:, window[0], window[1]]
        if index < len(boxes.low):
            enter, leave = _enter_box(origin, part, boxes.low[index], boxes.high[index])
        else:
            enter, leave = _enter_stud(origin, part, studs, index - len(boxes.low))
        hit = (enter < leave) & (enter < nearest[window]) & (enter > 0)
        np.copyto(nearest[window], enter, where=hit)
        np.copyto(shape_index[window], index, where=hit)
    image = np.zeros((shape[0] * shape[1], 4), dtype=np.float32)
    hit = np.flatnonzero(shape_index >= 0)
    distance = nearest.reshape(-1)[hit, None]
    points = origin + distance * directions[hit]
    image[hit, :3] = _shade(model, shape_index.reshape(-1)[hit], points, directions[hit])
    image[hit, 3] = 1.0
    return image.reshape(*shape, 4)


def _windows(model: BrickModel, cameras: Cameras, view: int) -> list[tuple[slice, slice]]:
    """Return for each box, then each stud, the rows and columns that its corners span."""
    boxes, studs = model.boxes, model.studs
    reach = studs.radius[:, None]
    low = np.concatenate([studs.centre - reach, studs.bottom[:, None]], axis=1)
    high = np.concatenate([studs.centre + reach, studs.top[:, None]], axis=1)
    bounds = np.stack([np.concatenate([boxes.low, low]), np.concatenate([boxes.high, high])])
    choice = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8).T
    corners = np.stack(
        [bounds[choice[:, axis], :, axis] for axis in range(3)], axis=-1
    )  # [8, k, 3]
    points = torch.from_numpy(corners.reshape(-1, 3)).float()
    pixels, depth = cameras.project(torch.full((len(points),), view), points)
    if (depth <= 0).any():
        raise ValueError(f"the model reaches behind camera {cameras.names[view]}")
    pixels = pixels.reshape(8, -1, 2).numpy()
    limit = np.array([cameras.width, cameras.height])
    first = np.clip(np.floor(pixels.min(axis=0)), 0, limit).astype(int)
    last = np.clip(np.ceil(pixels.max(axis=0)) + 1, 0, limit).astype(int)
    return [
        (slice(y0, y1), slice(x0, x1))
        for (x0, y0), (x1, y1) in zip(first.tolist(), last.tolist(), strict=True)
    ]


def _slab(
    origin: float, direction: np.ndarray, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distances at which rays enter and leave the space between two parallel planes."""
    with np.errstate(divide="ignore"):  # parallel rays: infinite distances compare as they should
        inverse = 1 / direction
    a, b = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _enter_box(
    origin: np.ndarray, directions: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances at which rays [3, h, w] enter and leave a box; they miss it if enter >= leave."""
    bounds = [_slab(origin[i], directions[i], float(low[i]), float(high[i])) for i in range(3)]
    enter = np.maximum(np.maximum(bounds[0][0], bounds[1][0]), bounds[2][0])
    leave = np.minimum(np.minimum(bounds[0][1], bounds[1][1]), bounds[2][1])
    return enter, leave


def _enter_stud(
    origin: np.ndarray, directions: np.ndarray, studs: Studs, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances at which rays [3, h, w] enter and leave an upright cylinder.

    |o + t d - c|^2 = r^2 in the plane: a t^2 + 2 b t + c = 0 with the roots (-b -+ sqrt(b^2-ac))/a.
    """
    dx, dy, dz = directions
    x, y = (float(v) for v in origin[:2] - studs.centre[index])
    radius = float(studs.radius[index])
    a = np.maximum(dx * dx + dy * dy, 1e-12)
    b = x * dx + y * dy
    # b^2 - a c without its cancellation: the rays' distance from the axis against the radius.
    discriminant = a * radius**2 - (x * dy - y * dx) ** 2
    root = np.sqrt(np.maximum(discriminant, 0))
    enter, leave = _slab(origin[2], dz, float(studs.bottom[index]), float(studs.top[index]))
    enter = np.maximum(enter, (-b - root) / a)
    leave = np.minimum(leave, (root - b) / a)
    return enter, np.where(discriminant > 0, leave, -np.inf)


def _shade(
    model: BrickModel, index: np.ndarray, points: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Return the colours [k, 3] of points on the shapes `index`, seen along `directions`."""
    boxes, studs = model.boxes, model.studs
    normals = np.empty_like(points)
    is_box = index < len(boxes.low)
    box = index[is_box]
    centre, half = (boxes.low + boxes.high) / 2, (boxes.high - boxes.low) / 2
    # The face is the one that the point is relatively furthest out to.
    relative = (points[is_box] - centre[box]) / half[box]
    axis = np.abs(relative).argmax(axis=1)
    rows = np.arange(len(axis))
    face = np.zeros_like(relative)
    face[rows, axis] = np.sign(relative[rows, axis])
    normals[is_box] = face

    stud = index[~is_box] - len(boxes.low)
    outward = (points[~is_box, :2] - studs.centre[stud]) / studs.radius[stud, None]
    on_top = points[~is_box, 2] > studs.top[stud] - 1e-5
    side = np.concatenate([outward, np.zeros((len(stud), 1))], axis=1)
    normals[~is_box] = np.where(on_top[:, None], [0.0, 0.0, 1.0], side)

    albedo = np.concatenate([boxes.colour, studs.colour])[index]
    return _light(albedo, normals, directions)


def _light(albedo: np.ndarray, normals: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return sky + Lambert + Blinn-Phong, cut off at 1; see the module's text."""
    sky = _AMBIENT * (0.65 + 0.35 * normals[:, 2])
    lambert = np.maximum(normals @ _SUN, 0)
    halfway = _SUN - directions
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    highlight = np.maximum((normals * halfway).sum(axis=1), 0) ** _SHININESS
    shade = (sky + _DIFFUSE * lambert)[:, None]
    return np.clip(albedo * shade + _SPECULAR * highlight[:, None], 0, 1)


def train_cameras(scene: BrickScene) -> Cameras:
    """Cameras drawn uniformly on the upper hemisphere."""
    generator = torch.Generator().manual_seed(scene.seed)
    return _cameras(orbit_poses(scene.train, ORBIT_RADIUS, generator), scene.width, "train")


def test_cameras(scene: BrickScene) -> Cameras:
    """Cameras on a closed path about the model that rises and sinks twice, as a video would."""
    turn = 2 * math.pi * torch.arange(scene.test, dtype=torch.float64) / scene.test
    z = 0.5 + 0.25 * torch.sin(2 * turn + 0.4)
    plane = (1 - z * z).sqrt()
    positions = ORBIT_RADIUS * torch.stack([plane * turn.cos(), plane * turn.sin(), z], dim=-1)
    poses = look_at(positions, torch.zeros(3, dtype=torch.float64)).float()
    return _cameras(poses, scene.width, "test")


def _cameras(poses: torch.Tensor, width: int, split: str) -> Cameras:
    names = tuple(f"{split}/r_{i}" for i in range(len(poses)))
    return Cameras(poses, width, width, focal_from_angle(width, CAMERA_ANGLE_X), names)


def render_views(model: BrickModel, cameras: Cameras, supersampling: int = 4) -> Views:
    """Trace the views and round them to straight 8-bit RGBA."""
    rgba = straighten(trace(model, cameras, supersampling))
    return Views(cameras, torch.from_numpy(rgba))


def write_scene(folder: Path, scene: BrickScene | None = None) -> bool:
    """Make the scene in NeRF-synthetic layout, unless the folder already holds it.

    The scene is made beside its place and moved there whole, with its settings in `bricks.json`.

    Returns:
        True if files were written, False if the scene was there.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    scene = scene or BrickScene()
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        _require_same_scene(folder, scene)
        return False
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        made = Path(name) / "scene"
        model = build_model(scene.seed)
        for split, cameras in (("train", train_cameras(scene)), ("test", test_cameras(scene))):
            write_views(made, split, render_views(model, cameras, scene.supersampling))
        write_json(made / "bricks.json", asdict(scene))
        with explained(folder):
            made.rename(folder)
    return True


def _require_same_scene(folder: Path, scene: BrickScene) -> None:
    marker = folder / "bricks.json"
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not empty, and its {marker.name} cannot be read: {error}",
            hint="choose another folder, or remove this one",
        ) from error
    if found != asdict(scene):
        raise UserError(
            f"{folder} holds the brick scene {found}, not {asdict(scene)}",
            hint="choose another folder, or remove this one",
        )
