import math

import numpy as np
import pytest
from end2race.sim.appearance import PLAIN, random_appearance
from end2race.sim.kernels import WALL_HEIGHT_M
from end2race.sim.sensors import camera, lidar, see, sweep
from end2race.sim.track import procedural_track

RED, GREEN, BLUE = np.eye(3)
CLASSES = PLAIN._replace(
    wall=RED, wall_other=RED, ground=GREEN, stripe=GREEN, sky=BLUE, grain=0.0, noise=0.0
)


@pytest.fixture(scope="module")
def track():
    return procedural_track(np.random.default_rng(0))


def poses(track, count=20):
    rng = np.random.default_rng(1)
    for _ in range(count):
        index = rng.integers(len(track.centreline))
        x, y = track.centreline[index] + rng.uniform(-0.4, 0.4, 2)
        yield float(x), float(y), float(track.heading[index] + rng.uniform(-0.5, 0.5))


def test_lidar_points_fall_on_pixels_of_what_they_hit(track):
    eye, scanner = camera(), lidar(16)
    judged = {0: 0, 1: 0}  # wall, ground
    for pose in poses(track):
        image = see(track.field, CLASSES, eye, pose, None).argmax(axis=2)
        cloud = sweep(track.field, scanner, pose, None)
        ego = scanner.pose.to_ego(cloud[:, :3].astype(float))
        expected = np.where(cloud[:, 3] > 0.5, 0, 1)
        pixels, depth = eye.project(ego)
        column, row = np.floor(pixels).astype(int).T
        ahead = (depth > 0.1) & (column >= 1) & (row >= 1)
        ahead &= (column < eye.width - 1) & (row < eye.height - 1)
        for c, r, kind in zip(column[ahead], row[ahead], expected[ahead], strict=True):
            around = image[r - 1 : r + 2, c - 1 : c + 2]
            if np.all(around == around[0, 0]):  # not at an edge, where half a pixel decides
                assert around[0, 0] == kind
                judged[int(kind)] += 1
    assert min(judged.values()) > 1000


def test_the_points_lie_on_the_ground_and_on_the_walls(track):
    scanner = lidar(16)
    for pose in poses(track, 5):
        cloud = sweep(track.field, scanner, pose, None)
        x, y, z = scanner.pose.to_ego(cloud[:, :3].astype(float)).T
        ground = cloud[:, 3] < 0.5
        np.testing.assert_allclose(z[ground], 0, atol=1e-5)
        assert np.all((z[~ground] >= -1e-5) & (z[~ground] <= WALL_HEIGHT_M + 1e-5))
        cos, sin = math.cos(pose[2]), math.sin(pose[2])
        world = np.stack([pose[0] + cos * x - sin * y, pose[1] + sin * x + cos * y], axis=1)
        offset = np.linalg.norm(world[:, None] - track.centreline, axis=2).min(axis=1)
        np.testing.assert_allclose(offset[~ground], 1.1, atol=0.015)
        assert np.all(offset[ground] < 1.11)


def test_range_noise_moves_points_along_their_rays(track):
    pose = next(poses(track, 1))
    scanner = lidar(4, range_noise_m=0.02)
    quiet = sweep(track.field, scanner, pose, None)[:, :3].astype(float)
    noisy = sweep(track.field, scanner, pose, np.random.default_rng(0))[:, :3].astype(float)
    distance = np.linalg.norm(quiet, axis=1)
    cosine = (quiet * noisy).sum(axis=1) / distance / np.linalg.norm(noisy, axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    error = np.linalg.norm(noisy, axis=1) - distance
    assert np.std(error) == pytest.approx(0.02, rel=0.1)
    assert abs(error.mean()) < 0.003


def test_a_wall_straight_ahead_has_the_height_of_the_closed_form():
    from end2race.sim.kernels import Field

    y, x = np.mgrid[0:200, 0:200] * 0.05
    field = Field((8.0 - x).astype(np.float32), 0.0, -5.0, 0.05)  # a wall at x = 8
    eye = camera(160, 240, field_of_view_deg=60)
    image = see(field, CLASSES, eye, (5.0, 0.0, 0.0), None).argmax(axis=2)
    depth = 8 - 5 - eye.translation[0]
    focal, centre = eye.intrinsic[1, 1], eye.height / 2
    top = centre - focal * (WALL_HEIGHT_M - eye.translation[2]) / depth
    bottom = centre + focal * eye.translation[2] / depth
    rows = np.arange(eye.height) + 0.5
    expected = np.where(rows < top, 2, np.where(rows <= bottom, 0, 1))
    for column in (0, 80, 159):
        np.testing.assert_array_equal(image[:, column], expected)


def test_looks_change_the_image_and_not_the_cloud(track):
    pose = next(poses(track, 1))
    eye, scanner = camera(), lidar()
    looks = [random_appearance(np.random.default_rng(seed)) for seed in range(3)]
    images = [see(track.field, look, eye, pose, np.random.default_rng(0)) for look in looks]
    assert np.abs(images[0].astype(int) - images[1]).mean() > 20
    clouds = [sweep(track.field, scanner, pose, np.random.default_rng(0)) for _ in looks]
    np.testing.assert_array_equal(clouds[0], clouds[1])
    for look in looks:
        assert min(np.linalg.norm(look.wall - look.ground), 1) >= 0.25
