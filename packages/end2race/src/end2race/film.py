"""Pictures of a race: what the camera sees, what the LiDAR sees, where the car is on the track."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from end2race.data.calibration import Calibration
from end2race.sim.closed_loop import Observation
from end2race.sim.race import Race
from end2race.sim.sensors import Lidar, camera, lidar, see, sweep
from end2race.sim.track import Track

_HEIGHT_PX = 192
_GAP_PX = 4
_PAPER, _ROAD, _TRACE, _CAR = (24, 26, 30), (92, 96, 104), (255, 190, 60), (255, 70, 60)
_GROUND_POINT, _WALL_POINT = (70, 90, 120), (120, 220, 255)
_AHEAD_M, _BEHIND_M = 9.0, 3.0


def bird_view(points: np.ndarray, size_px: int = _HEIGHT_PX) -> np.ndarray:
    """Draw a cloud from above, forward upwards.

    Args:
        points: [n, 4] in the ego frame (m), intensity last.
        size_px: Edge of the square picture.

    Returns:
        uint8 [size_px, size_px, 3].
    """
    picture = np.full((size_px, size_px, 3), _PAPER, np.uint8)
    scale = size_px / (_AHEAD_M + _BEHIND_M)
    row = np.floor((_AHEAD_M - points[:, 0]) * scale).astype(int)
    column = np.floor(size_px / 2 - points[:, 1] * scale).astype(int)
    inside = (row >= 0) & (row < size_px) & (column >= 0) & (column < size_px)
    wall = points[:, 3] > 0.5
    for kind, colour in ((~wall, _GROUND_POINT), (wall, _WALL_POINT)):
        for down, right in np.ndindex(2, 2):  # a point is four pixels, to be seen
            r, c = (
                np.minimum(place[inside & kind], size_px - 1 - shift) + shift
                for place, shift in ((row, down), (column, right))
            )
            picture[r, c] = colour
    middle, ego = size_px // 2, int(_AHEAD_M * scale)
    picture[ego - 3 : ego + 3, middle - 2 : middle + 2] = _CAR
    return picture


def map_view(
    track: Track, path: Sequence[tuple[float, float]], height_px: int = _HEIGHT_PX
) -> np.ndarray:
    """Draw a track from above with a car's path and its present place; uint8 [height, w, 3]."""
    field = track.field
    rows, columns = field.values.shape
    width_px = max(1, round(height_px * columns / rows))
    row = np.linspace(rows - 1, 0, height_px).astype(int)
    column = np.linspace(0, columns - 1, width_px).astype(int)
    road = field.values[np.ix_(row, column)] > 0
    picture = Image.fromarray(np.where(road[..., None], _ROAD, _PAPER).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    extent = np.array([(columns - 1) * field.cell_m, (rows - 1) * field.cell_m])
    place = (np.asarray(path, float) - (field.x0, field.y0)) / extent
    place[:, 1] = 1 - place[:, 1]
    pixels = [(float(x), float(y)) for x, y in place * (width_px - 1, height_px - 1)]
    if len(pixels) > 1:
        draw.line(pixels, fill=_TRACE, width=2)
    x, y = pixels[-1]
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_CAR)
    return np.asarray(picture)


def side_by_side(pictures: Sequence[np.ndarray], background: int = 255) -> np.ndarray:
    """Put pictures of one height into a row, with a gap between them."""
    gap = np.full((pictures[0].shape[0], _GAP_PX, 3), background, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return np.concatenate(parts[:-1], axis=1)


class Film:
    """Watches `drive` and keeps a frame of one car for each step."""

    def __init__(self, car: int = 0, eye: Calibration | None = None, scanner: Lidar | None = None):
        """Choose whom to film.

        Args:
            car: Its number.
            eye: The camera; the car's own if None.
            scanner: The LiDAR; the car's own if None.
        """
        self.frames: list[np.ndarray] = []
        self._car, self._eye, self._scanner = car, eye or camera(), scanner or lidar()
        self._rng = np.random.default_rng(0)

    def __call__(self, races: Sequence[Race], seen: Observation) -> None:
        """Draw one frame; a race that is over is not filmed any more."""
        race = races[self._car]
        if not race.over:
            self.frames.append(self.frame(race))

    def frame(self, race: Race) -> np.ndarray:
        """Draw camera, LiDAR and map of a race beside each other."""
        image = see(race.track.field, race.look, self._eye, race.pose, self._rng)
        zoom = max(1, _HEIGHT_PX // image.shape[0])
        large = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
        cloud = sweep(race.track.field, self._scanner, race.pose, self._rng)
        cloud[:, :3] = self._scanner.pose.to_ego(cloud[:, :3])
        size = large.shape[0]
        return side_by_side([large, bird_view(cloud, size), map_view(race.track, race.path, size)])
