"""What each geometric fault of the notes' pipeline costs, in metres, with everything else perfect.

    uv run python benchmarks/coopcyl_faults.py [--pairs 30] [--data FOLDER]

Pairs of synthetic vehicles on hillsides are read from OPV2V files at 400x300. Matches are the true
ones, found with the right geometry; then each fault changes ranges, rays, coverage or poses, and
the solver has to live with it. So the last columns are a floor: no network can be better than that
under the fault. The first column is how far the points move that a network would be taught.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from coopcyl.data.depth import DepthSource
from coopcyl.data.frame_yaml import read_frame
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import AgentFrame, read_tree
from coopcyl.geometry.alignment import align
from coopcyl.geometry.carla import inverse, to_opencv
from coopcyl.geometry.covisibility import relative_pose
from coopcyl.geometry.matching import Tokens, matched_points, oracle_matches
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Rig
from coopcyl.geometry.stitch_table import build_table
from coopcyl.geometry.view import View
from coopcyl.metrics import rot_err_deg, trans_err_m
from scipy.spatial.transform import Rotation

STRIDE = 4
PANORAMA = Panorama(252, 64, "equirect_band", -45, 45)
MAX_RANGE_M = 60.0

Pixels = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Vehicle:
    """One vehicle as it is, and what faults need besides."""

    frame: AgentFrame
    view: View
    rig: Rig
    reader: PanoramaReader

    def pixels(self) -> Pixels:
        """Return rows and columns of the tokens' centre pixels that have a range."""
        middle = slice(STRIDE // 2, None, STRIDE)
        chosen = np.zeros_like(self.view.depth_valid)
        chosen[middle, middle] = self.view.depth_valid[middle, middle]
        rows, columns = np.nonzero(chosen)
        return rows, columns


def tokens_at(view: View, pixels: Pixels) -> Tokens:
    """Return the tokens of chosen pixels, with whatever range the view has there."""
    return Tokens(
        view.ray_origins()[pixels].astype(float),
        view.table.directions[pixels].astype(float),
        view.range_m[pixels].astype(float),
        2 * np.pi * STRIDE / PANORAMA.width,
    )


def as_it_is(vehicle: Vehicle) -> View:
    """Change nothing."""
    return vehicle.view


def z_as_range(vehicle: Vehicle) -> View:
    """R2."""
    view = vehicle.view
    z = view.range_m / np.maximum(view.table.range_of_z, 1e-6)
    return dataclasses.replace(view, range_m=z)


def central_rays(vehicle: Vehicle) -> View:
    """R4: the part of each point along the ray from the LiDAR, as the notes' code has it."""
    view = vehicle.view
    along = (view.points() * view.table.directions).sum(-1).clip(min=0)
    return dataclasses.replace(
        view, range_m=along.astype(np.float32), origins=np.zeros_like(view.origins)
    )


def made_up_depth(vehicle: Vehicle) -> View:
    """R3 with R4: only the LiDAR gives depth; elsewhere the part of the offset along the ray."""
    reader = PanoramaReader(PANORAMA, DepthSource("lidar"), MAX_RANGE_M)
    sparse = dataclasses.replace(vehicle, view=reader.read(vehicle.frame))
    return central_rays(sparse)


def bilinear_depth(vehicle: Vehicle) -> View:
    """R5: depth interpolated between pixels and half a pixel off."""
    table = vehicle.view.table
    z = np.zeros(table.camera.shape, np.float32)
    depths = vehicle.reader.depth.read(vehicle.frame, vehicle.rig.cameras)
    for index, depth in enumerate(depths):
        here = table.camera == index
        pixels = np.where(here[..., None], table.pixels, 0).astype(np.float32)
        sampled = cv2.remap(
            depth, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        z[here] = sampled[here]
    return dataclasses.replace(vehicle.view, range_m=z * table.range_of_z)


def cropped(vehicle: Vehicle) -> np.ndarray:
    """R1: the coverage that remains."""
    cameras = tuple(
        camera.resized_and_cropped(PANORAMA.width * 4, PANORAMA.height * 4)
        for camera in vehicle.rig.cameras
    )
    return build_table(Rig(cameras), PANORAMA).coverage


def wrong_relative_pose(first: Vehicle, second: Vehicle) -> np.ndarray:
    """R6: the pose between the vehicles by another order of the Euler angles."""
    poses = []
    for vehicle in (first, second):
        x, y, z, roll, yaw, pitch = read_frame(vehicle.frame.yaml).lidar_cords
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("zyx", [yaw, pitch, roll], degrees=True).as_matrix()
        pose[:3, 3] = x, y, z
        poses.append(to_opencv(pose))
    return inverse(poses[0]) @ poses[1]


def solve(first: Vehicle, second: Vehicle, fault: Callable[[Vehicle], View], crop: bool) -> dict:
    """Return the errors of one pair under a fault; None for a pose that cannot be solved."""
    vehicles = (first, second)
    pixels = [vehicle.pixels() for vehicle in vehicles]
    true = [tokens_at(v.view, p) for v, p in zip(vehicles, pixels, strict=True)]
    truth = relative_pose(first.view, second.view)
    moved = true[1].points() @ truth[:3, :3].T + truth[:3, 3]
    index0, index1 = oracle_matches(true[0].points(), moved, true[1].range_m)
    wrong = [tokens_at(fault(v), p) for v, p in zip(vehicles, pixels, strict=True)]
    if crop:
        kept = [cropped(v)[p] for v, p in zip(vehicles, pixels, strict=True)]
        both = kept[0][index0] & kept[1][index1]
        index0, index1 = index0[both], index1[both]
    shift = [
        np.linalg.norm(w.points() - t.points(), axis=-1) for w, t in zip(wrong, true, strict=True)
    ]
    result = align(
        matched_points(wrong[0], wrong[1], index0, index1, np.ones(len(index0))),
        np.random.default_rng(0),
    )
    return {
        "moved": np.concatenate(shift),
        "matches": len(index0),
        "metres": None if result is None else trans_err_m(result.pose, truth),
        "degrees": None if result is None else rot_err_deg(result.pose, truth),
    }


def print_row(name: str, moved: np.ndarray, matches: float, metres: list, degrees: list) -> None:
    """Print one fault's line; a pair that could not be solved counts as the worst of all."""
    unsolved = sum(value is None for value in metres)
    m = np.array([np.inf if value is None else value for value in metres])
    d = np.array([180.0 if value is None else value for value in degrees])
    shift = f"{np.median(moved):8.2f} {np.percentile(moved, 90):8.2f}" if len(moved) else " " * 17
    print(
        f"{name:<34} {shift} {matches:8.0f} {np.median(m):9.2f} {np.percentile(m, 90):9.2f} "
        f"{np.median(d):8.2f} {unsolved:9d}"
    )


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description="Measure what geometric faults cost.")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--data", type=Path, help="Folder to write the pairs to, or to find them.")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary)
        if not (folder / "train").is_dir():
            options = SynthOptions(
                scenarios=arguments.pairs, vehicles=(2, 2), width=400, depth=("npy",), seed=77
            )
            write_tree(folder, options)
        reader = PanoramaReader(PANORAMA, DepthSource("npy"), MAX_RANGE_M)
        pairs = []
        for frame in read_tree(folder, "train", reader.depth).frames:
            pair = []
            for agent in frame.agents:
                stitched = reader.stitch(agent)
                pair.append(Vehicle(agent, reader.view(agent, stitched), stitched.rig, reader))
            pairs.append(pair)
        print(
            f"{'':<34} {'points moved, m':^17} {'':>8} {'pose error, m':^19} {'deg':>8}\n"
            f"{'fault':<34} {'median':>8} {'p90':>8} {'matches':>8} {'median':>9} {'p90':>9} "
            f"{'median':>8} {'unsolved':>9}"
        )
        faults = [
            ("none", as_it_is, False),
            ("R1 crop before stitching", as_it_is, True),
            ("R2 z-depth as range", z_as_range, False),
            ("R3 made-up depth (LiDAR only), R4", made_up_depth, False),
            ("R4 rays from the LiDAR", central_rays, False),
            ("R5 bilinear depth, half a pixel", bilinear_depth, False),
        ]
        for name, fault, crop in faults:
            rows = [solve(a, b, fault, crop) for a, b in pairs]
            print_row(
                name,
                np.concatenate([row["moved"] for row in rows]),
                float(np.median([row["matches"] for row in rows])),
                [row["metres"] for row in rows],
                [row["degrees"] for row in rows],
            )
        poses = [(wrong_relative_pose(a, b), relative_pose(a.view, b.view)) for a, b in pairs]
        print_row(
            "R6 Euler order, in the truth itself",
            np.zeros(0),
            0,
            [trans_err_m(*pose) for pose in poses],
            [rot_err_deg(*pose) for pose in poses],
        )


if __name__ == "__main__":
    main()
