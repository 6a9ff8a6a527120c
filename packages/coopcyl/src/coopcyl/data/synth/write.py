"""Write worlds as a tree of OPV2V files: YAML with six-digit times, PNG images, depth, PCD clouds.

A scenario is written into a folder of another name and takes its own by a rename when it is
complete. The same options give the same bytes.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from loom.errors import UserError
from loom.files import explained

from coopcyl.data.depth import DepthFormat, encode_carla_rgb24, encode_opv2v_h
from coopcyl.data.images import write_png
from coopcyl.data.pcd import write_pcd
from coopcyl.data.synth.raycast import SKY, Boxes, camera_rays, cast_camera, cast_rays
from coopcyl.data.synth.texture import paint
from coopcyl.data.synth.world import TOWN_KINDS, SynthVehicle, TownKind, World, build_world
from coopcyl.geometry.carla import cords_from_pose, inverse, pose_from_cords
from coopcyl.geometry.rig import OPV2V_CAMERAS, OPV2V_FOV_DEG, OPV2V_LIDAR, intrinsic_of_fov

FRAME_SECONDS = 0.1
ROADSIDE = -1
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_FIRST_TIME = 69
_LIDAR_RANGE_M = 120.0
_CAR_SPEED_KMH = 3.6
_WRITTEN: tuple[DepthFormat, ...] = ("npy", "carla_rgb24", "opv2v_h")


@dataclass(frozen=True)
class SynthOptions:
    """What is written.

    Attributes:
        split: Folder of the scenarios.
        scenarios: Worlds, each a folder.
        frames: Times per scenario, 0.1 s apart.
        vehicles: Smallest and largest number of vehicles with cameras.
        width: Of the images; the height is three quarters of it.
        depth: Formats of the depth files; `lidar` needs none.
        lidar: Rings and points per turn of the LiDAR.
        roadside: Add a roadside unit, -1, to each scenario.
        plain: Share of the scenarios whose facades have one colour each.
        kind: Sizes and colours of the towns; see `TOWN_KINDS`.
        slope_deg: Standard deviation of the hillside's pitch and roll.
        gps_m: Standard deviation of the localisation's position error.
        seed: Of everything.
    """

    split: str = "train"
    scenarios: int = 2
    frames: int = 1
    vehicles: tuple[int, int] = (2, 5)
    width: int = 800
    depth: tuple[DepthFormat, ...] = ("npy", "carla_rgb24")
    lidar: tuple[int, int] = (32, 720)
    roadside: bool = False
    plain: float = 0.0
    kind: TownKind = "usual"
    slope_deg: float = 2.0
    gps_m: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        least, most = self.vehicles
        if not 1 <= least <= most <= 7:
            raise UserError(
                f"{least} to {most} vehicles", hint="between 1 and 7, the smaller number first"
            )
        if self.width < 16 or self.width % 4:
            raise UserError(
                f"an image width of {self.width}", hint="a multiple of 4 from 16 on, such as 400"
            )
        depth_formats(",".join(self.depth))


def depth_formats(text: str) -> tuple[DepthFormat, ...]:
    """Return the formats named in a text such as `npy,carla_rgb24`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [name for name in _WRITTEN if name in names]
    if unknown := sorted(set(names) - set(known)):
        raise UserError(
            f"there is no depth format {', '.join(unknown)} to write",
            hint=f"any of {', '.join(_WRITTEN)}",
        )
    return tuple(known)


def town_kind(text: str) -> TownKind:
    """Return the kind of town with this name."""
    for known in TOWN_KINDS:
        if text == known:
            return known
    raise UserError(f"there is no kind of towns {text}", hint=f"any of {', '.join(TOWN_KINDS)}")


def write_tree(root: Path, options: SynthOptions) -> int:
    """Write the scenarios of a split and return the number of vehicle frames.

    Raises:
        UserError: A scenario of that name is there already, or the disk refuses.
    """
    written = 0
    for number in range(options.scenarios):
        rng = np.random.default_rng([options.seed, number])
        agents = int(rng.integers(options.vehicles[0], options.vehicles[1] + 1))
        plain = bool(rng.random() < options.plain)
        world = build_world(
            rng, agents, plain=plain, slope_deg=options.slope_deg, kind=options.kind
        )
        name = _scenario_name(options.seed, number)
        written += write_scenario(root / options.split / name, world, options, rng)
    return written


def write_scenario(
    folder: Path, world: World, options: SynthOptions, rng: np.random.Generator
) -> int:
    """Write one world as a scenario and return the number of vehicle frames."""
    if folder.exists():
        raise UserError(f"{folder}: it is there already", hint="remove it, or take another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    with explained(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        protocol = {"world": {"seed": options.seed, "fixed_delta_seconds": FRAME_SECONDS}}
        _write_yaml(partial / "data_protocol.yaml", protocol)
        written = 0
        for step in range(options.frames):
            seconds = step * FRAME_SECONDS
            time = f"{_FIRST_TIME + 2 * step:06d}"
            boxes = world.boxes_at(seconds)
            for vehicle in world.vehicles:
                shot = _Shot(world, boxes, seconds, vehicle.pose(seconds), vehicle)
                _write_agent(partial / str(vehicle.number), time, shot, options, rng)
                written += 1
            if options.roadside:
                corner = [world.street_half_m[1] + 1.0, world.street_half_m[0] + 1.0, 2.5]
                shot = _Shot(world, boxes, seconds, pose_from_cords([*corner, 0, -135, 0]), None)
                _write_agent(partial / str(ROADSIDE), time, shot, options, rng)
                written += 1
        partial.rename(folder)
    return written


@dataclass(frozen=True, eq=False)
class _Shot:
    """One agent at one time: the world around it and its own local pose."""

    world: World
    boxes: Boxes
    seconds: float
    pose: np.ndarray
    vehicle: SynthVehicle | None

    @property
    def own_box(self) -> int:
        return self.vehicle.box if self.vehicle else SKY

    def in_world(self, pose_local: np.ndarray) -> list[float]:
        return cords_from_pose(self.world.tilt @ pose_local).tolist()


def _write_agent(
    folder: Path, time: str, shot: _Shot, options: SynthOptions, rng: np.random.Generator
) -> None:
    folder.mkdir(exist_ok=True)
    lidar = shot.pose @ pose_from_cords(OPV2V_LIDAR)
    width, height = options.width, options.width * 3 // 4
    intrinsic = intrinsic_of_fov(width, height, OPV2V_FOV_DEG)
    content: dict[str, Any] = {}
    for name, cords in OPV2V_CAMERAS.items():
        camera = shot.pose @ pose_from_cords(cords)
        rays = camera_rays(camera, intrinsic[0, 0], width, height)
        hits = cast_camera(shot.boxes, camera, intrinsic[0, 0], rays, shot.own_box)
        write_png(folder / f"{time}_{name}.png", paint(shot.world, hits, rays, rng))
        _write_depth(folder, time, name, hits.depth, options.depth)
        content[name] = {
            "cords": shot.in_world(camera),
            "extrinsic": (inverse(camera) @ lidar).tolist(),
            "intrinsic": intrinsic.tolist(),
        }
    write_pcd(folder / f"{time}.pcd", _lidar_points(shot, lidar, options.lidar))
    true = np.array(shot.in_world(shot.pose))
    noise = rng.normal(0, 1, 6) * options.gps_m * [1, 1, 0.1, 0.1, 0.5, 0.1]
    speed = shot.vehicle.speed_ms * _CAR_SPEED_KMH if shot.vehicle else 0.0
    content |= {
        "ego_speed": float(speed),
        "lidar_pose": shot.in_world(lidar),
        "plan_trajectory": _plan(shot),
        "predicted_ego_pos": (true + noise).tolist(),
        "true_ego_pos": true.tolist(),
        "vehicles": {
            v.number: _annotation(shot, v) for v in shot.world.vehicles if v is not shot.vehicle
        },
    }
    _write_yaml(folder / f"{time}.yaml", content)


def _write_depth(
    folder: Path, time: str, camera: str, depth: np.ndarray, formats: tuple[DepthFormat, ...]
) -> None:
    """Write z-depth in each format; the sky has none in npy and is far in the others."""
    known = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    if "npy" in formats:
        np.save(folder / f"{time}_{camera}_depth.npy", known)
    if "carla_rgb24" in formats:
        write_png(folder / f"{time}_{camera}_depth.png", encode_carla_rgb24(known))
    if "opv2v_h" in formats:
        name = f"{time}_depth{camera.removeprefix('camera')}.png"
        write_png(folder / name, encode_opv2v_h(known))


def _lidar_points(shot: _Shot, pose: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the LiDAR's points in its own frame, Unreal axes."""
    rings, turn = size
    elevation = np.radians(np.linspace(-25, 5, rings))[:, None]
    azimuth = 2 * np.pi * np.arange(turn) / turn
    own = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ),
        axis=-1,
    ).reshape(-1, 3)
    hits = cast_rays(shot.boxes, pose[:3, 3], own @ pose[:3, :3].T, shot.own_box)
    seen = hits.depth < _LIDAR_RANGE_M
    return own[seen] * hits.depth[seen, None]


def _plan(shot: _Shot) -> list[list[float]]:
    """Return the next positions of the vehicle, each with a speed in km/h."""
    if shot.vehicle is None:
        return []
    ahead = [shot.vehicle.pose(shot.seconds + FRAME_SECONDS * k) for k in range(1, 4)]
    speed = shot.vehicle.speed_ms * _CAR_SPEED_KMH
    return [[*shot.in_world(pose)[:2], float(speed)] for pose in ahead]


def _annotation(shot: _Shot, vehicle: SynthVehicle) -> dict[str, Any]:
    cords = shot.in_world(vehicle.pose(shot.seconds))
    return {
        "angle": cords[3:],
        "center": [0.0, 0.0, float(vehicle.halves[2])],
        "extent": [float(half) for half in vehicle.halves],
        "location": cords[:3],
        "speed": float(vehicle.speed_ms * _CAR_SPEED_KMH),
    }


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.dump(content, Dumper=_Dumper), encoding="utf-8")


def _scenario_name(seed: int, number: int) -> str:
    """Return a name in OPV2V's form that differs for every seed and number."""
    year, month, day = 2100 + seed // 336, 1 + seed // 28 % 12, 1 + seed % 28
    hour, minute, second = number // 3600, number // 60 % 60, number % 60
    return f"{year:04d}_{month:02d}_{day:02d}_{hour:02d}_{minute:02d}_{second:02d}"
