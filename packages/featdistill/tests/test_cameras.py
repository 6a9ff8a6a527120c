"""Cameras: rays and projection are inverse, and agree with matrices written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from featdistill.cameras import Cameras, focal_from_angle, look_at, orbit_poses


def make_cameras(n: int = 5, width: int = 48, height: int = 32) -> Cameras:
    generator = torch.Generator().manual_seed(7)
    poses = orbit_poses(n, 4.031, generator)
    return Cameras(poses, width, height, 55.5, tuple(f"r_{i}" for i in range(n)))


def test_projecting_a_point_of_a_ray_returns_its_pixel():
    cameras = make_cameras()
    generator = torch.Generator().manual_seed(0)
    view = torch.randint(len(cameras), (500,), generator=generator)
    pixels = torch.stack(
        [
            torch.randint(cameras.width, (500,), generator=generator),
            torch.randint(cameras.height, (500,), generator=generator),
        ],
        dim=-1,
    )
    rays = cameras.rays(view, pixels)
    distance = 1 + 5 * torch.rand(500, 1, generator=generator)
    found, depth = cameras.project(view, rays.origins + distance * rays.directions)
    torch.testing.assert_close(found, pixels.float(), atol=1e-3, rtol=0)
    assert (depth > 0).all()
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(500))


def test_a_hand_written_camera_sees_right_up_and_forward_where_it_should():
    # At (0, -4, 0), looking along +y with z up: world x is right in the image, world z is up.
    pose = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, -4], [0, 1, 0, 0], [0, 0, 0, 1]])
    cameras = Cameras(pose[None], 10, 10, 20.0, ("front",))
    torch.testing.assert_close(look_at(torch.tensor([[0.0, -4, 0]]), torch.zeros(3))[0], pose)
    points = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1]])
    pixels, depth = cameras.project(torch.zeros(3, dtype=torch.int64), points)
    expected = torch.tensor([[4.5, 4.5], [9.5, 4.5], [4.5, -0.5]])  # 20 px / 4 units = 5 px a unit
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(depth, torch.full((3,), 4.0))
    rays = cameras.rays(torch.tensor([0]), torch.tensor([[9, 0]]))  # the top right pixel
    direction = torch.tensor([[4.5 / 20, 1.0, 4.5 / 20]])
    torch.testing.assert_close(rays.directions, direction / direction.norm())


def test_view_from_world_is_the_inverse_of_the_pose_with_y_and_z_turned():
    cameras = make_cameras()
    inverse = torch.linalg.inv(cameras.poses_world_from_camera.double())
    expected = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)) @ inverse
    torch.testing.assert_close(cameras.view_from_world().double(), expected, atol=1e-5, rtol=0)


def test_image_rays_run_row_by_row():
    cameras = make_cameras(width=6, height=4)
    rays = cameras.image_rays(2)
    single = cameras.rays(torch.tensor([2]), torch.tensor([[5, 1]]))
    torch.testing.assert_close(rays.directions[1 * 6 + 5], single.directions[0])
    assert rays.origins.shape == (24, 3)


def test_resizing_keeps_the_field_of_view():
    cameras = make_cameras()
    half = cameras.resized(24, 16)
    view = torch.tensor([1])
    corner = cameras.rays(view, torch.tensor([[-0.5, -0.5]])).directions
    torch.testing.assert_close(half.rays(view, torch.tensor([[-0.5, -0.5]])).directions, corner)
    with pytest.raises(ValueError, match="proportions"):
        cameras.resized(24, 24)


def test_indexing_keeps_poses_and_names_together():
    cameras = make_cameras()
    assert cameras[-1].names == ("r_4",)
    assert cameras[1:4:2].names == ("r_1", "r_3")
    chosen = cameras[[3, 0]]
    assert chosen.names == ("r_3", "r_0")
    expected = cameras.poses_world_from_camera[[3, 0]]
    torch.testing.assert_close(chosen.poses_world_from_camera, expected)
    with pytest.raises(IndexError):
        cameras[5]


def test_orbit_poses_are_rigid_look_at_the_origin_and_fill_the_hemisphere_evenly():
    poses = orbit_poses(2000, 4.031, torch.Generator().manual_seed(1))
    rotation, centre = poses[:, :3, :3], poses[:, :3, 3]
    eye = torch.eye(3).expand(2000, 3, 3)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2000))
    torch.testing.assert_close(-rotation[:, :, 2] * 4.031, -centre, atol=1e-4, rtol=0)
    assert (rotation[:, 2, 1] >= 0).all()  # the image's up points up in the world
    share = centre[:, 2] / 4.031
    assert 0 <= share.min() <= share.max() <= 1
    # A uniform variable has mean 1/2 with standard error 1 / sqrt(12 n).
    assert abs(share.mean() - 0.5) < 4 / math.sqrt(12 * 2000)
    again = orbit_poses(2000, 4.031, torch.Generator().manual_seed(1))
    assert torch.equal(poses, again)


def test_a_camera_straight_above_still_has_a_rigid_pose():
    pose = look_at(torch.tensor([[0.0, 0, 3]]), torch.zeros(3))[0]
    assert torch.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_focal_length_of_the_lego_scene():
    assert focal_from_angle(800, 0.6911112070083618) == pytest.approx(1111.1110311937682)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="4, 4"):
        Cameras(torch.eye(4), 4, 4, 1.0, ("a",))
    with pytest.raises(ValueError, match="2 names for 1"):
        Cameras(torch.eye(4)[None], 4, 4, 1.0, ("a", "b"))
