"""The ray caster against a slow one that intersects planes one by one, and what worlds are like."""

import dataclasses

import numpy as np
import pytest
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader, decode_range, encode_range
from coopcyl.data.synth.raycast import (
    GROUND,
    SKY,
    Boxes,
    camera_rays,
    cast_camera,
    cast_rays,
)
from coopcyl.data.synth.world import BUILDING, TownKind, _draw_kind, build_world
from coopcyl.data.synth.write import SynthOptions, depth_formats, town_kind, write_scenario
from coopcyl.data.tree import read_tree
from coopcyl.geometry.carla import CV_FROM_UE, inverse, pose_from_cords, transform
from coopcyl.geometry.panorama import Panorama
from loom.errors import UserError


def nearest_hit(boxes: Boxes, origin: np.ndarray, ray: np.ndarray, ignore: int = SKY):
    """Intersect a ray with every face's plane, keep points within the face: (depth, target)."""
    best, target = np.inf, SKY
    if ray[2] < 0:
        best, target = -origin[2] / ray[2], GROUND
    for index, (centre, rotation, half) in enumerate(zip(*boxes, strict=True)):
        if index == ignore:
            continue
        for axis in range(3):
            for sign in (-1, 1):
                normal = sign * rotation[:, axis]
                slope = normal @ ray
                if slope >= 0:
                    continue  # seen from behind
                depth = normal @ (centre + half[axis] * normal - origin) / slope
                local = rotation.T @ (origin + depth * ray - centre)
                others = [k for k in range(3) if k != axis]
                inside = (np.abs(local[others]) <= half[others]).all()
                if 0.05 < depth < best and inside:
                    best, target = depth, index
    return best, target


def test_cameras_see_what_the_slow_caster_sees():
    rng = np.random.default_rng(8)
    disagreements = 0
    for seed in range(3):
        world = build_world(np.random.default_rng(seed), 3)
        vehicle = world.vehicles[0]
        pose = vehicle.pose(0.0) @ pose_from_cords([2.5, 0, 1.0, 3, rng.uniform(-180, 180), 4])
        rays = camera_rays(pose, 30.0, 64, 48)
        hits = cast_camera(world.boxes, pose, 30.0, rays, vehicle.box)
        for row, column in rng.integers(0, [48, 64], (120, 2)):
            depth, target = nearest_hit(world.boxes, pose[:3, 3], rays[row, column], vehicle.box)
            same = hits.target[row, column] == target
            disagreements += not same  # a ray along an edge may round either way
            if same and target != SKY:
                assert hits.depth[row, column] == pytest.approx(depth, rel=1e-9)
    assert disagreements <= 1


def test_a_camera_between_boxes_sees_those_that_reach_behind_it():
    """Outlines are cut at the near plane; a long wall beside the camera must not vanish."""
    boxes = Boxes(
        np.array([[0.0, 3, 1], [0, -3, 1]]), np.stack([np.eye(3)] * 2), np.array([[50.0, 1, 1]] * 2)
    )
    pose = pose_from_cords([0, 0, 1, 0, 20, 0])
    rays = camera_rays(pose, 20.0, 40, 30)
    camera, brute = cast_camera(boxes, pose, 20.0, rays), cast_rays(boxes, pose[:3, 3], rays)
    np.testing.assert_array_equal(camera.depth, brute.depth)
    np.testing.assert_array_equal(camera.target, brute.target)
    assert {0, 1} <= set(camera.target.ravel().tolist())


def test_hits_know_their_face_and_place():
    boxes = Boxes(np.array([[10.0, 0, 2]]), np.eye(3)[None], np.array([[1.0, 4, 2]]))
    pose = pose_from_cords([0, 0, 2, 0, 0, 0])
    hits = cast_camera(boxes, pose, 10.0, camera_rays(pose, 10.0, 1, 1))
    assert hits.depth.item() == pytest.approx(9.0)
    assert hits.face.item() == 0  # the one that looks along -x
    np.testing.assert_allclose(hits.local[0, 0], [-1, 0, 0], atol=1e-12)


def test_hillsides_give_vehicles_different_pitch_and_roll():
    rolls = []
    for seed in range(20):
        world = build_world(np.random.default_rng(seed), 4, slope_deg=3.0)
        for vehicle in world.vehicles:
            rolls.append(np.degrees(np.arcsin((world.tilt @ vehicle.pose(0))[2, 1])))
            gaps = [
                np.hypot(*np.subtract(vehicle.cords[:2], other.cords[:2]))
                for other in world.vehicles
                if other is not vehicle
            ]
            assert min(gaps) > 5
    assert 2 < np.std(rolls) < 5


def test_vehicles_drive_along_their_heading():
    world = build_world(np.random.default_rng(1), 3)
    for vehicle in world.vehicles:
        moved = vehicle.pose(2.0)[:3, 3] - vehicle.pose(0.0)[:3, 3]
        assert np.linalg.norm(moved) == pytest.approx(2 * vehicle.speed_ms, rel=0.01)
        box = world.boxes_at(2.0).centres[vehicle.box] - world.boxes.centres[vehicle.box]
        np.testing.assert_allclose(box[:2], moved[:2], atol=0.05)


@pytest.mark.parametrize(
    "wrong", [{"vehicles": (3, 2)}, {"width": 401}, {"depth": ("lidar",)}, {"vehicles": (0, 2)}]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError):
        SynthOptions(**wrong)


def test_an_unknown_depth_format_is_named_alone():
    with pytest.raises(UserError, match="no depth format png to write") as caught:
        depth_formats("npy,png")
    assert "carla_rgb24" in caught.value.hint


# What a view makes of ranges ----------------------------------------------------------------------


def test_ranges_survive_their_codes_and_none_stays_none():
    ranges = np.array([0.0, 1e-6, 0.5, 33.3, 100.0, 100.1, 5000.0], np.float32)
    codes = encode_range(ranges, 100.0)
    back = decode_range(codes, 100.0)
    np.testing.assert_allclose(back[1:5], ranges[1:5], atol=100 / 65535)
    assert back[1] > 0
    assert codes[[0, 5, 6]].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(encode_range(back, 100.0), codes)


def test_the_own_vehicle_is_no_surface_to_learn(small_root):
    view = PanoramaReader().read(read_tree(small_root, "train").frames[0].agents[0])
    near = dataclasses.replace(view, range_m=np.full_like(view.range_m, 0.2))
    assert near.depth_valid.all()
    assert near.non_ambiguous is not None
    inside = near.own_vehicle.contains(near.points())
    assert inside[near.coverage].mean() > 0.3
    assert not near.non_ambiguous[inside].any()
    np.testing.assert_array_equal(near.non_ambiguous, near.coverage & ~inside)


def distance_to_the_world(boxes: Boxes, points: np.ndarray) -> np.ndarray:
    """Distance of points in local coordinates to the ground or the nearest box's surface."""
    nearest = np.abs(points[:, 2])
    for centre, rotation, half in zip(*boxes, strict=True):
        beyond = np.abs((points - centre) @ rotation) - half
        outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
        nearest = np.minimum(nearest, np.where(beyond.max(1) < 0, -beyond.max(1), outside))
    return nearest


def test_all_vehicles_put_their_points_on_the_surfaces_of_one_world(tmp_path):
    options = SynthOptions(vehicles=(2, 2), width=400, depth=("npy",), lidar=(4, 60))
    rng = np.random.default_rng(12)
    world = build_world(rng, 2, slope_deg=6.0)
    write_scenario(tmp_path / "train" / "one", world, options, rng)
    panorama = Panorama(256, 64, "equirect_band", -42, 42)
    reader = PanoramaReader(panorama, DepthSource("npy"), 60.0)
    (frame,) = read_tree(tmp_path, "train").frames
    for agent in frame.agents:
        view = reader.read(agent)
        chosen = view.depth_valid
        in_world = transform(view.pose_world_from_rig, view.points()[chosen].astype(float))
        in_unreal = in_world @ CV_FROM_UE[:3, :3]
        local = transform(inverse(world.tilt), in_unreal)
        away = distance_to_the_world(world.boxes_at(0.0), local)
        half_pixel = view.range_m[chosen] * np.tan(np.radians(50)) / 200
        assert (away < half_pixel + 0.02).mean() > 0.999
        assert np.median(away) < 0.02


def test_foreign_towns_are_larger_and_paler():
    def described(kind: TownKind) -> tuple[float, float]:
        worlds = [build_world(np.random.default_rng(s), 2, kind=kind) for s in range(6)]
        return (
            float(np.mean([w.boxes.halves[w.kinds == BUILDING].mean() for w in worlds])),
            float(np.mean([w.street_half_m for w in worlds])),
        )

    (size, street), (other_size, other_street) = described("usual"), described("foreign")
    assert 1.2 < other_size / size < 1.5
    assert other_street == pytest.approx(street + 1)
    assert build_world(np.random.default_rng(0), 2).tint is None
    gain, lift = build_world(np.random.default_rng(0), 2, kind="foreign").tint or (0, 0)
    assert (gain * 255 + lift < 285).all()
    assert (gain < 0.8).all()


def test_varied_towns_leave_out_the_sizes_and_tints_of_foreign_ones():
    sizes, widths, tints = [], [], []
    for seed in range(200):
        size, wider, tint = _draw_kind(np.random.default_rng(seed), "varied")
        assert tint is not None
        sizes.append(size)
        widths.append(wider)
        tints.append(tint)
    sizes = np.array(sizes)
    assert not ((sizes > 1.15) & (sizes < 1.55)).any()  # foreign: 1.2 to 1.5
    assert (sizes < 1).any()
    assert (sizes > 1.8).any()
    assert not any(0.8 < width < 1.2 for width in widths)  # foreign: 1
    for gain, lift in tints:
        assert not ((gain > 0.5) & (gain < 0.8)).any()
        assert not ((lift > 30) & (lift < 80)).any()


def test_an_unknown_kind_of_town_is_refused():
    with pytest.raises(UserError, match="no kind of towns martian"):
        town_kind("martian")
