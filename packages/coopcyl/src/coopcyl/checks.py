"""The questions of the validator: each takes what was measured and gives one answer."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from coopcyl.data.tree import AgentFrame, Frame, Tree
from coopcyl.geometry.coverage import expected_coverage
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.rig import Rig, opv2v_rig
from coopcyl.measure import Measured, MeasuredPair

COVERAGE_LIMIT = 0.01
EXTRINSIC_LIMIT_M, EXTRINSIC_LIMIT_DEG = 0.05, 0.5
LIDAR_RATIO_LIMIT = 0.03
MOUNT_LIMIT_M = 1.0
OVERLAP_LIMIT = 0.02
CLOSE_M = 1.0
_SPARSE = 0.1
_PLACES = 8

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: The question.
        level: `ok`, `warn` (usable, with a loss) or `fail`.
        detail: What was found, with its number and limit.
        fix: What to do about it.
        values: The numbers by themselves.
        places: The first vehicle frames concerned.
    """

    name: str
    level: Level
    detail: str
    fix: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    places: tuple[str, ...] = ()


def tree(tree: Tree) -> Check:
    """List what the split holds and what had to be left out."""
    agents = sum(len(frame.agents) for frame in tree.frames)
    scenarios = len({frame.scenario for frame in tree.frames})
    values = {
        "scenarios": scenarios,
        "times": len(tree.frames),
        "vehicle_frames": agents,
        "left_out": len(tree.problems),
        "skipped_by_list": tree.skipped,
    }
    detail = f"{scenarios} scenarios, {len(tree.frames)} times, {agents} vehicle frames"
    if tree.problems:
        return Check(
            "tree",
            "fail",
            f"{detail}; {len(tree.problems)} more cannot be used: {tree.problems[0].message}",
            "complete the data, or put these into a skip file (dataset.skip)",
            values,
            tuple(problem.place for problem in tree.problems[:_PLACES]),
        )
    if tree.notes:
        return Check("tree", "warn", f"{detail}; {tree.notes[0]}", "", values, tree.notes[:_PLACES])
    return Check("tree", "ok", detail, values=values)


def vehicles(frames: Sequence[Frame]) -> Check:
    """Count the vehicles of each time."""
    counts = Counter(len(frame.agents) for frame in frames)
    values = {str(size): counts[size] for size in sorted(counts)}
    detail = ", ".join(f"{n} times with {size}" for size, n in sorted(counts.items()))
    if max(counts) < 2:
        return Check(
            "vehicles per time",
            "fail",
            f"{detail}: no relative pose can be learned",
            "take scenarios with two or more vehicles",
            values,
        )
    return Check("vehicles per time", "ok", detail, values=values)


def files(chosen: Sequence[Frame], unread: Sequence[tuple[AgentFrame, str]]) -> Check:
    """Count the vehicle frames that could not be read."""
    total = sum(len(frame.agents) for frame in chosen)
    values = {"read": total - len(unread), "unreadable": len(unread)}
    if unread:
        return Check(
            "files",
            "fail",
            f"{len(unread)} of {total} vehicle frames cannot be read: {unread[0][1]}",
            "mend or replace these files, or put the frames into a skip file (dataset.skip)",
            values,
            tuple(str(agent) for agent, _ in unread[:_PLACES]),
        )
    return Check("files", "ok", f"all {total} vehicle frames looked at can be read", values=values)


def resolution(measured: Sequence[Measured], panorama: Panorama) -> Check:
    """Name the image sizes and the panorama."""
    sizes = Counter(size for each in measured for size in each.sizes)
    shown = ", ".join(f"{w}x{h}" for w, h in sizes)
    detail = f"images of {shown}; {panorama.width}x{panorama.height} {panorama.projection}"
    values = {"sizes": [list(size) for size in sizes], "projection": panorama.projection}
    if len(sizes) > 1:
        return Check("resolution", "warn", f"{detail}: more than one size", "", values)
    return Check("resolution", "ok", detail, values=values)


def coverage(measured: Sequence[Measured], panorama: Panorama) -> Check:
    """Hold the covered share of the panorama against the one that follows from the rig."""
    found = np.array([each.coverage for each in measured])
    expected = np.array([each.expected_coverage for each in measured])
    off = np.abs(found - expected)
    values = {"measured": float(found.mean()), "expected": float(expected.mean())}
    detail = f"{found.mean():.3f} of the panorama, {expected.mean():.3f} follows from the rig"
    if off.max() > COVERAGE_LIMIT:
        return Check(
            "coverage",
            "fail",
            f"{detail}; off by up to {off.max():.3f}, limit {COVERAGE_LIMIT}",
            "the images do not belong to these intrinsics",
            values,
            _where(measured, off > COVERAGE_LIMIT),
        )
    cropped = _cropped_coverage(panorama)
    if abs(found.mean() - cropped) < COVERAGE_LIMIT:
        return Check(
            "coverage",
            "fail",
            f"{detail}; {cropped:.3f} is what remains of OPV2V's cameras when each image is "
            "cropped to the panorama's shape first",
            "stitch the whole images",
            values,
        )
    return Check("coverage", "ok", f"{detail}, limit +-{COVERAGE_LIMIT}", values=values)


@functools.cache
def _cropped_coverage(panorama: Panorama) -> float:
    cameras = opv2v_rig().cameras
    return expected_coverage(
        Rig(tuple(c.resized_and_cropped(panorama.width, panorama.height) for c in cameras)),
        panorama,
    )


def cameras(measured: Sequence[Measured]) -> Check:
    """Find vehicle frames without the images of some camera."""
    lost = np.array([each.whole_coverage - each.expected_coverage for each in measured])
    lacking = lost > COVERAGE_LIMIT
    values = {"vehicle_frames_lacking": int(lacking.sum())}
    if lacking.any():
        return Check(
            "cameras",
            "warn",
            f"{lacking.sum()} of {len(measured)} vehicle frames lack a camera's images, which "
            f"leaves up to {lost.max():.3f} of the panorama uncovered",
            "nothing: the coverage mask says so",
            values,
            _where(measured, lacking),
        )
    return Check("cameras", "ok", "every camera of the YAML files has its images", values=values)


def extrinsics(measured: Sequence[Measured]) -> Check:
    """Hold `extrinsic` against the poses."""
    errors = [each.extrinsic_error for each in measured]
    known = [error for error in errors if error is not None]
    if not known:
        return Check("extrinsic", "warn", "no camera has an `extrinsic`: nothing to compare with")
    metres, degrees = np.max(known, axis=0)
    values = {"worst_m": float(metres), "worst_deg": float(degrees)}
    detail = f"up to {metres:.3f} m and {degrees:.2f} deg from the cords"
    limits = f"limits {EXTRINSIC_LIMIT_M} m, {EXTRINSIC_LIMIT_DEG} deg"
    wrong = np.array(
        [e is not None and (e[0] > EXTRINSIC_LIMIT_M or e[1] > EXTRINSIC_LIMIT_DEG) for e in errors]
    )
    if wrong.any():
        inverted = any(each.extrinsic_inverted for each in measured)
        fix = (
            "it is the inverse, camera to LiDAR: OPV2V has LiDAR to camera; poses are taken "
            "from the cords, so correct or drop it"
            if inverted
            else "find out which of the two is right: poses are taken from `cords` and `lidar_pose`"
        )
        return Check(
            "extrinsic", "fail", f"{detail}; {limits}", fix, values, _where(measured, wrong)
        )
    return Check("extrinsic", "ok", f"{detail}; {limits}", values=values)


def mounts(measured: Sequence[Measured]) -> Check:
    """Hold the LiDAR's pose against the vehicle's."""
    known = [m for m in measured if m.lidar_mount is not None and m.frame.agent >= 0]
    if not known:
        return Check("true_ego_pos", "warn", "no vehicle has a `true_ego_pos`: not compared")
    mounts = np.array([each.lidar_mount for each in known])
    middle = np.median(mounts, axis=0)
    off = np.linalg.norm(mounts[:, :3] - middle[:3], axis=1)
    errors = [each.gps_error_m for each in known if each.gps_error_m is not None]
    values = {
        "lidar_in_vehicle_m": middle[:3].round(3).tolist(),
        "worst_m": float(off.max()),
        "gps_error_median_m": float(np.median(errors)) if errors else None,
    }
    x, y, z = middle[:3]
    detail = (
        f"LiDAR at ({x:.2f}, {y:.2f}, {z:.2f}) m in the vehicle, {off.max():.2f} m at worst off"
    )
    if off.max() > MOUNT_LIMIT_M:
        return Check(
            "true_ego_pos",
            "fail",
            f"{detail}, limit {MOUNT_LIMIT_M} m",
            "`lidar_pose` and `true_ego_pos` belong to different times or vehicles",
            values,
            _where(known, off > MOUNT_LIMIT_M),
        )
    gps = f"; GPS is {np.median(errors):.2f} m off (median)" if errors else ""
    return Check("true_ego_pos", "ok", detail + gps, values=values)


def masks(measured: Sequence[Measured]) -> Check:
    """Report the three masks; depth may be missing or sparse."""
    coverage = float(np.mean([each.coverage for each in measured]))
    valid = float(np.mean([each.depth_valid for each in measured]))
    surface = [each.non_ambiguous for each in measured if each.non_ambiguous is not None]
    values = {
        "coverage": coverage,
        "depth_valid": valid,
        "non_ambiguous": float(np.mean(surface)) if surface else None,
    }
    detail = f"coverage {coverage:.3f}, depth_valid {valid:.3f}, non_ambiguous " + (
        f"{np.mean(surface):.3f}" if surface else "unknown (sparse depth)"
    )
    if valid == 0:
        return Check(
            "masks",
            "fail",
            f"{detail}: no depth at all",
            "set dataset.depth_format, depth_root",
            values,
        )
    if valid < _SPARSE * coverage:
        return Check(
            "masks",
            "warn",
            f"{detail}: depth covers {valid / coverage:.1%} of what the cameras see",
            "sparse depth supervises few pixels: render dense depth by log replay",
            values,
        )
    return Check("masks", "ok", detail, values=values)


def depth_unit(measured: Sequence[Measured]) -> Check:
    """Test on the road that depth is z in metres."""
    known = [m for m in measured if m.ground is not None and m.frame.agent >= 0]
    if not known:
        return Check("depth unit", "warn", "no ground plane under any vehicle: not tested")
    grounds = [each.ground for each in known if each.ground is not None]
    as_z = float(np.median([ground.rms_as_z for ground in grounds]))
    as_range = float(np.median([ground.rms_as_range for ground in grounds]))
    scale = float(np.median([ground.scale for ground in grounds]))
    values = {"scale": scale, "off_plane_as_z": as_z, "off_plane_as_range": as_range}
    detail = (
        f"the cameras stand {scale:.3g} times as high above the road as OPV2V's; it is flat to "
        f"{as_z:.2%} read as z, {as_range:.2%} read as range"
    )
    if as_range < 0.5 * as_z:
        return Check(
            "depth unit",
            "fail",
            f"{detail}: the files hold range, not z-depth",
            "multiply by the cosine of each pixel's angle to the axis, or export z-depth",
            values,
        )
    if not 0.5 < scale < 2:
        return Check(
            "depth unit",
            "fail",
            f"{detail}: the depth is not in metres",
            f"multiply the depth by {1 / scale:.3g}, or set the right dataset.depth_format",
            values,
        )
    return Check("depth unit", "ok", detail, values=values)


def lidar(measured: Sequence[Measured]) -> Check:
    """Hold depth against the LiDAR's points."""
    fits = [each.lidar for each in measured if each.lidar is not None]
    if not fits:
        return Check("LiDAR", "warn", "no point cloud falls on dense depth: not compared")
    ratio = float(np.median([fit.ratio_as_z for fit in fits]))
    as_range = float(np.median([fit.ratio_as_range for fit in fits]))
    agreeing = float(np.median([fit.agreeing for fit in fits]))
    values = {
        "ratio_as_z": ratio,
        "ratio_as_range": as_range,
        "agreeing": agreeing,
        "points": sum(fit.points for fit in fits),
    }
    detail = f"depth is {ratio:.3f} times that of the LiDAR (median), {agreeing:.0%} within 5 %"
    if abs(ratio - 1) > LIDAR_RATIO_LIMIT:
        hint = "the files hold range, not z-depth" if abs(as_range - 1) < 0.01 else "another unit"
        return Check(
            "LiDAR",
            "fail",
            f"{detail}, limit 1 +- {LIDAR_RATIO_LIMIT}",
            f"{hint}, or depth and point clouds belong to different times",
            values,
        )
    if agreeing < 0.5:
        return Check(
            "LiDAR", "warn", f"{detail}: less than half", "look at `coopcyl project`", values
        )
    return Check("LiDAR", "ok", detail, values=values)


def relative_poses(pairs: Sequence[MeasuredPair]) -> Check:
    """Report distances between vehicles; two cannot be in one place."""
    distances = [pair.distance_m for pair in pairs]
    places = [pair.place for pair in pairs if pair.distance_m < CLOSE_M]
    if not distances:
        return Check("relative poses", "warn", "no time with two vehicles was looked at")
    values = {
        "pairs": len(distances),
        "median_m": float(np.median(distances)),
        "largest_m": max(distances),
    }
    detail = (
        f"{len(distances)} pairs, {np.median(distances):.1f} m apart (median), "
        f"{min(distances):.1f} to {max(distances):.1f} m"
    )
    if places:
        return Check(
            "relative poses",
            "fail",
            f"{detail}; {len(places)} closer than {CLOSE_M} m, less than a car's width",
            "one vehicle's files were copied into another's folder, or the poses are wrong",
            values,
            tuple(places[:_PLACES]),
        )
    return Check("relative poses", "ok", detail, values=values)


def overlap_share(pairs: Sequence[MeasuredPair]) -> Check:
    """Find vehicles that see nothing in common."""
    shares = [pair.overlap for pair in pairs if pair.overlap is not None]
    places = [p.place for p in pairs if p.overlap is not None and p.overlap < OVERLAP_LIMIT]
    if not shares:
        return Check("overlap", "warn", "no two vehicles with depth at one time were looked at")
    values = {"median": float(np.median(shares)), "without": len(places)}
    detail = f"{np.median(shares):.0%} of a vehicle's points are seen by the other (median)"
    if places:
        return Check(
            "overlap",
            "warn",
            f"{detail}; {len(places)} of {len(shares)} pairs share less than {OVERLAP_LIMIT:.0%}",
            "their relative pose cannot be seen: put such frames into a skip file",
            values,
            tuple(places[:_PLACES]),
        )
    return Check("overlap", "ok", detail, values=values)


def duplicates(measured: Sequence[Measured]) -> Check:
    """Find images that occur more than once."""
    by_digest: dict[str, list[str]] = {}
    for each in measured:
        by_digest.setdefault(each.digest, []).append(str(each.frame))
    same = [places for places in by_digest.values() if len(places) > 1]
    if same:
        return Check(
            "duplicates",
            "fail",
            f"{len(same)} sets of images occur more than once",
            "remove the copies: training and test data would share them",
            {"sets": len(same)},
            tuple(" = ".join(places) for places in same[:_PLACES]),
        )
    return Check("duplicates", "ok", f"{len(measured)} different sets of images")


def _where(measured: Sequence[Measured], chosen: np.ndarray) -> tuple[str, ...]:
    return tuple(str(measured[i].frame) for i in np.nonzero(chosen)[0][:_PLACES])
