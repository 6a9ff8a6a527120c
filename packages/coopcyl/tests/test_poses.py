"""CARLA poses against scipy, a closed form typed from CARLA's rule, and physical statements."""

import numpy as np
import pytest
from coopcyl.geometry import carla
from coopcyl.geometry.rig import OPV2V_CAMERAS, OPV2V_LIDAR, mount, opv2v_rig
from scipy.spatial.transform import Rotation


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def random_cords(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.normal(size=3) * 50, rng.uniform(-1, 1, 3) * [60, 180, 60]])


def test_the_rotation_is_scipys_intrinsic_yaw_minus_pitch_minus_roll(rng):
    for _ in range(50):
        cords = random_cords(rng)
        roll, yaw, pitch = cords[3:]
        expected = Rotation.from_euler("ZYX", [yaw, -pitch, -roll], degrees=True).as_matrix()
        np.testing.assert_allclose(
            carla.pose_from_cords(cords)[:3, :3], expected, rtol=0, atol=1e-14
        )


def test_pitch_lifts_the_nose_roll_lifts_the_left_side_and_yaw_turns_right():
    nose, right = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    pitched = carla.pose_from_cords([0, 0, 0, 0, 0, 10.0])[:3, :3] @ nose
    rolled = carla.pose_from_cords([0, 0, 0, 10.0, 0, 0])[:3, :3] @ right
    turned = carla.pose_from_cords([0, 0, 0, 0, 90.0, 0])[:3, :3] @ nose
    assert pitched[2] == pytest.approx(np.sin(np.radians(10)))
    assert rolled[2] == pytest.approx(-np.sin(np.radians(10)))
    np.testing.assert_allclose(turned, right, atol=1e-15)


def test_nose_direction_on_a_slope_follows_yaw_then_pitch(rng):
    for _ in range(20):
        roll, yaw, pitch = random_cords(rng)[3:]
        nose = carla.pose_from_cords([0, 0, 0, roll, yaw, pitch])[:3, 0]
        y, p = np.radians([yaw, pitch])
        np.testing.assert_allclose(
            nose, [np.cos(p) * np.cos(y), np.cos(p) * np.sin(y), np.sin(p)], atol=1e-14
        )


def test_cords_survive_the_way_to_a_pose_and_back(rng):
    for _ in range(50):
        cords = random_cords(rng)
        np.testing.assert_allclose(
            carla.cords_from_pose(carla.pose_from_cords(cords)), cords, atol=1e-9
        )


def test_opencv_axes_are_right_down_forward():
    forward_up = carla.pose_from_cords([2.0, 3.0, 5.0, 0, 0, 0])
    np.testing.assert_allclose(carla.to_opencv(forward_up)[:3, 3], [3, -5, 2])
    np.testing.assert_allclose(carla.to_unreal(carla.to_opencv(forward_up)), forward_up)


def test_change_of_axes_keeps_rotations_proper_and_composition(rng):
    a, b = (carla.pose_from_cords(random_cords(rng)) for _ in range(2))
    np.testing.assert_allclose(
        carla.to_opencv(a @ b), carla.to_opencv(a) @ carla.to_opencv(b), atol=1e-12
    )
    assert np.linalg.det(carla.to_opencv(a)[:3, :3]) == pytest.approx(1)


def test_inverse_undoes_a_pose(rng):
    pose = carla.pose_from_cords(random_cords(rng))
    points = rng.normal(size=(7, 3)) * 30
    np.testing.assert_allclose(
        carla.transform(carla.inverse(pose), carla.transform(pose, points)), points, atol=1e-12
    )


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, 90.0, 179.999999, 180.0])
def test_rotation_angle_is_exact_at_both_ends(angle):
    axis = np.array([0.36, -0.48, 0.8])
    rotation = Rotation.from_rotvec(np.radians(angle) * axis).as_matrix()
    assert carla.rotation_angle_deg(rotation) == pytest.approx(angle, abs=1e-8)


def test_documented_opv2v_frame_puts_the_front_camera_three_metres_ahead_of_the_lidar():
    """Frame 2021_08_24_21_29_28/4805/000069 as OpenCOOD's data tutorial prints it, rounded.

    Its `extrinsic`, which the tutorial calls camera to LiDAR, is LiDAR to camera: -2.99999, 0, 0.9.
    """
    camera = (141.35067749, -388.64257813, 1.04105055, 0.07589338, 174.18048096, 0.20690691)
    lidar = (144.33, -388.94, 1.93, 0.078, 174.18, 0.21)
    in_rig = mount(camera, lidar)
    np.testing.assert_allclose(carla.to_unreal(in_rig)[:3, 3], [2.991, 0.007, -0.9], atol=2e-3)
    extrinsic = np.eye(4)
    extrinsic[:3, 3] = [-2.999993, -3.934e-6, 0.9]
    np.testing.assert_allclose(carla.inverse(carla.to_unreal(in_rig)), extrinsic, atol=0.01)


def test_the_nominal_rig_has_the_distances_of_the_dump():
    distances = np.linalg.norm(opv2v_rig().origins, axis=1)
    np.testing.assert_allclose(distances, [3.1321, 0.5916, 0.5916, 1.5524], atol=1e-4)
    assert list(OPV2V_CAMERAS) == ["camera0", "camera1", "camera2", "camera3"]
    assert OPV2V_LIDAR[2] == 1.9


@pytest.mark.parametrize(
    "damage",
    [
        lambda pose: pose.__setitem__((0, 0), np.nan),
        lambda pose: pose.__setitem__((0, 3), np.inf),
        lambda pose: pose.__imul__(1.01),
        lambda pose: pose.__setitem__(slice(0, 1), -pose[:1]),
    ],
    ids=["nan", "infinite", "scaled", "mirrored"],
)
def test_only_finite_rigid_motions_count_as_poses(damage):
    pose = carla.pose_from_cords([1, 2, 3, 4, 5, 6])
    assert carla.is_rigid(pose)
    damage(pose)
    assert not carla.is_rigid(pose)
