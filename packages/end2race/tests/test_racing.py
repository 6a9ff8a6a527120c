import math

import numpy as np
import pytest
from end2race.sim.appearance import PLAIN
from end2race.sim.car import CarState, advance
from end2race.sim.closed_loop import (
    ConstantDriver,
    CopycatDriver,
    ExpertDriver,
    drive,
    entries,
    unseen_tracks,
)
from end2race.sim.collect import record_drive
from end2race.sim.expert import LATERAL_M_S2, LONGITUDINAL_M_S2, Expert, speed_profile
from end2race.sim.kernels import FASTEST_M_S, WHEELBASE_M, Field
from end2race.sim.race import Race

OPEN = Field(np.full((10, 10), 100.0, np.float32), -500.0, -500.0, 100.0)


@pytest.fixture(scope="module")
def tracks():
    return unseen_tracks(8)


def test_a_held_wheel_angle_gives_the_circle_of_a_bicycle():
    wheel = 0.2
    radius = WHEELBASE_M / math.tan(wheel)
    state = CarState(0.0, 0.0, 0.0, 2.0, wheel)
    for _ in range(20):
        state, hit = advance(OPEN, state, wheel, 2.0)
        assert not hit
    turned = 2.0 * 2.0 / radius
    assert state.yaw == pytest.approx(turned, rel=1e-6)
    expected = (radius * math.sin(turned), radius * (1 - math.cos(turned)))
    assert (state.x, state.y) == pytest.approx(expected, abs=0.03)


def test_speed_and_wheel_are_clamped_and_move_at_a_limited_rate():
    state = CarState(0.0, 0.0, 0.0, 0.0, 0.0)
    state, _ = advance(OPEN, state, 9.0, 99.0)
    assert state.speed == pytest.approx(0.6, abs=1e-6)  # 6 m/s^2 for 0.1 s
    assert state.wheel_angle == pytest.approx(0.32, abs=1e-6)  # 3.2 rad/s for 0.1 s
    for _ in range(60):
        state, _ = advance(OPEN, state, 9.0, 99.0)
    assert state.speed <= FASTEST_M_S
    assert state.wheel_angle == pytest.approx(0.4189)
    for _ in range(60):
        state, _ = advance(OPEN, state, 0.0, -5.0)
    assert state.speed == pytest.approx(0, abs=1e-3)


def test_a_car_is_stopped_by_a_wall_at_its_corners():
    x = np.arange(200)[None, :] * 0.05
    wall = Field(np.repeat(5.0 - x, 200, axis=0).astype(np.float32), 0.0, -5.0, 0.05)
    state, hit = CarState(3.0, 0.0, 0.0, 3.0, 0.0), False
    while not hit:
        state, hit = advance(wall, state, 0.0, 3.0)
    front = state.x + WHEELBASE_M + (0.58 - WHEELBASE_M) / 2
    assert 5.0 < front < 5.0 + 3.0 * 0.01 + 1e-6


def test_the_planned_speed_keeps_both_limits(tracks):
    for track in tracks[:3]:
        speed = speed_profile(track)
        assert np.all(speed**2 * np.abs(track.curvature) <= LATERAL_M_S2 + 1e-9)
        change = np.abs(np.roll(speed, -1) ** 2 - speed**2) / (2 * track.spacing_m)
        assert change.max() <= LONGITUDINAL_M_S2 + 1e-6


def test_the_expert_laps_every_unseen_track_and_trivial_drivers_lap_none(tracks):
    for driver, laps in ((ExpertDriver(), 8), (ConstantDriver(0.0, 2.0), 0), (CopycatDriver(), 0)):
        results = drive(driver, entries(tracks, [0]))
        assert sum(result.completed for result in results) == laps
    expert = drive(ExpertDriver(), entries(tracks[:2], [0, 1]))
    for result in expert:
        assert result.progress == 1
        assert abs(result.lap_s - result.expert_lap_s) <= 0.2  # it starts slower than it drives
        assert result.mean_abs_lateral_m < 0.1
    assert len({(result.track, result.seed) for result in expert}) == 4


def test_progress_counts_only_gates_in_their_order(tracks):
    track = tracks[0]
    count = len(track.centreline)

    backwards = Race(track, PLAIN, 0, yaw_rad=math.pi, speed=2.0)
    reverse = track.centreline[::-1]
    for _ in range(250):  # more than a lap the wrong way round
        index = int(np.argmin(((reverse - (backwards.state.x, backwards.state.y)) ** 2).sum(1)))
        x, y = reverse[(index + 10) % count]
        alpha = math.atan2(y - backwards.state.y, x - backwards.state.x) - backwards.state.yaw
        backwards.step(math.degrees(math.atan(2 * WHEELBASE_M * math.sin(alpha) / 1.0)), 4.0)
    assert not backwards.crashed
    assert backwards.progress == 0

    standing = Race(track, PLAIN, 0, speed=0.0)
    for _ in range(50):
        standing.step(0.0, 0.0)
    assert standing.progress == 0

    moved = Race(track, PLAIN, 0)
    far = track.centreline[count // 2]  # as if it had cut across the infield
    moved.state = CarState(float(far[0]), float(far[1]), float(track.heading[count // 2]), 2.0, 0.0)
    for _ in range(20):
        moved.step(0.0, 1.0)
    assert moved.progress == 0


def test_a_lap_ends_where_it_began(tracks):
    race = Race(tracks[1], PLAIN, 123)
    expert = Expert(tracks[1])
    while not race.over:
        wheel_angle, speed = expert.command(race.state, race.nearest)
        race.step(math.degrees(wheel_angle), speed)
    assert race.completed
    end = np.array([race.state.x, race.state.y]) - tracks[1].centreline[123]
    assert np.linalg.norm(end) < 0.7  # one control period at most
    assert race.progress == 1


def test_a_command_that_is_not_finite_is_a_crash(tracks):
    (result,) = drive(ConstantDriver(math.nan, 1.0), entries(tracks[:1], [0]))
    assert (result.collisions, result.completed, result.progress) == (1, False, 0)


class Swerving:
    """Commands these wheel angles, one after another."""

    sensors, eye, beams = frozenset(), None, None

    def __init__(self, angles_deg):
        self.angles_deg = angles_deg

    def reset(self, races):
        self.seen = []

    def act(self, seen):
        self.seen.append(seen.previous_steering.copy())
        return np.tile((self.angles_deg[len(self.seen) - 1], 0.5), (len(seen.speed), 1))


def test_the_angle_that_is_fed_back_is_one_that_the_car_can_turn(tracks):
    """So no driver sees a value that no recording holds: the expert's labels are clamped, too."""
    angles = [10.0, 90.0, -25.0, -24.0, 1e300, 0.0]
    driver = Swerving(angles)
    drive(driver, entries(tracks[:2], [0]), limit_s=0.6)
    largest = math.degrees(0.4189)
    expected = [0.0, 10.0, largest, -largest, -24.0, largest]
    np.testing.assert_allclose(driver.seen, np.tile(np.array(expected)[:, None], (1, 2)))
    rng = np.random.default_rng(0)
    recorded = [
        frame.wheel_angle_deg
        for track in tracks
        for frame in record_drive(track, Expert(track), 40, 0.04, rng)
    ]
    assert 15 < np.abs(recorded).max() <= largest + 1e-9


class Watcher:
    """Looks at both sensors and drives straight on."""

    sensors, eye, beams = frozenset({"camera", "lidar"}), None, None

    def reset(self, races):
        self.seen = []

    def act(self, seen):
        self.seen.append(seen)
        return np.tile((0.0, 1.0), (len(seen.speed), 1))


def test_blanked_sensors_show_nothing_and_real_ones_something(tracks):
    for blank in (False, True):
        driver = Watcher()
        drive(driver, entries(tracks[:2], [0]), limit_s=1, blank=blank)
        first = driver.seen[0]
        assert first.images.shape == (2, 64, 128, 3)
        assert len(driver.seen) == 10
        assert all((len(cloud) == 0) == blank for cloud in first.points)
        assert (first.images.max() == 0) == blank
