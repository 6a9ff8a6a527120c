"""Pictures of what drivers see: camera, LiDAR, and the bird's-eye view that a model makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from end2race.film import Film, bird_view, map_view, side_by_side
from end2race.models.student import CameraBEVStudent
from end2race.models.teacher import LiDARBEVTeacher
from end2race.race_day import Heat
from end2race.restore import restore
from end2race.sim.closed_loop import Entry
from end2race.sim.sensors import camera, lidar, see, sweep

_HEIGHT_PX = 192
_RAMP = np.array(
    [(24, 26, 30), (60, 30, 90), (150, 45, 100), (230, 100, 70), (255, 190, 80), (255, 250, 220)]
)


def view_picture(view: Tensor, height_px: int = _HEIGHT_PX) -> np.ndarray:
    """Draw a view [channels, rows along y, columns along x] from above, forward upwards.

    The colour is the length of a cell's feature vector, dark for none.
    """
    strength = view.float().norm(dim=0).numpy().T[::-1, ::-1]
    scaled = np.clip(strength / max(float(np.quantile(strength, 0.995)), 1e-9), 0, 1)
    place = scaled * (len(_RAMP) - 1)
    low = np.minimum(place.astype(int), len(_RAMP) - 2)
    share = (place - low)[..., None]
    colours = (_RAMP[low] * (1 - share) + _RAMP[low + 1] * share).astype(np.uint8)
    return np.asarray(
        Image.fromarray(colours).resize((height_px, height_px), Image.Resampling.NEAREST)
    )


@torch.no_grad()
def glance(entry: Entry, teacher: Path, student: Path) -> list[tuple[str, np.ndarray]]:
    """Show one moment through all eyes.

    Args:
        entry: Where the car stands.
        teacher: Run of a teacher.
        student: Run of a student.

    Returns:
        Captions with pictures of one height: camera, LiDAR, and the views of both models.
    """
    race, rng = entry.race, np.random.default_rng(entry.seed)
    eye, scanner = camera(), lidar()
    image = see(race.track.field, race.look, eye, race.pose, rng)
    cloud = sweep(race.track.field, scanner, race.pose, rng)
    cloud[:, :3] = scanner.pose.to_ego(cloud[:, :3])
    models = restore(teacher, "teacher").model, restore(student, "student").model
    views = []
    for model in models:
        if isinstance(model, LiDARBEVTeacher):
            frame = torch.zeros(len(cloud), dtype=torch.int64)
            views.append(model.pillars(torch.from_numpy(cloud), frame, 1)[0])
        elif isinstance(model, CameraBEVStudent):
            views.append(model.bird_view(torch.from_numpy(image)[None])[0])
    zoom = _HEIGHT_PX // image.shape[0]
    return [
        ("camera", image.repeat(zoom, axis=0).repeat(zoom, axis=1)),
        ("LiDAR from above", bird_view(cloud, _HEIGHT_PX)),
        ("teacher: pillars", view_picture(views[0])),
        ("student: lifted image", view_picture(views[1])),
    ]


def in_a_row(pictures: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Put captioned pictures of one height beside each other, without their captions."""
    return side_by_side([picture for _, picture in pictures])


def paths(heats: Mapping[str, Heat], number: int) -> list[tuple[str, np.ndarray]]:
    """Draw where each driver went in one of its races."""
    races = {name: heat.entries[number].race for name, heat in heats.items()}
    return [
        (f"{name}: {race.progress:.0%} of the lap", map_view(race.track, race.path, _HEIGHT_PX))
        for name, race in races.items()
    ]


def lap_matrix(heats: Mapping[str, Heat]) -> list[tuple[str, ...]]:
    """Return one row for each driver: for each race its lap time, or how far it came."""
    return [
        (
            name,
            *(f"{r.lap_s:.1f} s" if r.lap_s else f"{r.progress:.0%}" for r in heat.results),
        )
        for name, heat in heats.items()
    ]


def strip(film: Film, count: int = 4) -> list[tuple[str, np.ndarray]]:
    """Return evenly spread frames of a film with their times."""
    places = np.linspace(0, len(film.frames) - 1, count).astype(int)
    return [(f"{place / 10:.1f} s", film.frames[place]) for place in places]
