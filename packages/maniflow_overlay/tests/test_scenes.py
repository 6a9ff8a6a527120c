"""The simulated table: geometry, physics as far as the task needs it, and the expert."""

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from loom.errors import UserError
from maniflow_overlay.sim import graphics, planar, scene, tabletop
from maniflow_overlay.sim.camera import TableCamera
from maniflow_overlay.sim.choice import chosen_scene, make_scene
from maniflow_overlay.sim.expert import NEAR_M, expert, stations
from maniflow_overlay.sim.scene import (
    APART_M,
    BLOCK_HALF_M,
    CURTAIN_STEPS,
    GRIPPER,
    HOVER_M,
    JITTER_M,
    REACH_M,
    SPOTS,
    STEP_M,
    STEPS,
    carried,
    draw_layout,
    hidden,
    project_relative,
    success,
    vector_of,
)

mujoco_draws = pytest.mark.skipif(graphics.missing() is not None, reason=str(graphics.missing()))
NAMES = [pytest.param("tabletop", marks=mujoco_draws), "planar"]


@pytest.fixture(params=NAMES)
def table(request):
    made = make_scene(request.param)
    yield made
    made.close()


def play(table, act, seed, **variant):
    table.reset(seed, **variant)
    while table.steps < STEPS and not success(table):
        table.step(act(table))
    return success(table)


def coloured(picture, colour):
    """Mask of the pixels whose hue is that of a colour, whatever the light."""
    sample = np.uint8([[np.round(np.array(colour) * 255)]])
    hue = int(cv2.cvtColor(sample, cv2.COLOR_RGB2HSV)[0, 0, 0])
    seen = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    return (np.abs(seen[..., 0].astype(int) - hue) < 8) & (seen[..., 1] > 120)


def test_a_camera_that_looks_down_sees_points_where_a_pinhole_puts_them():
    camera = TableCamera(200, 100, (0.1, 0.2, 2.0), (0.1, 0.2 + 1e-9, 0.0), fovy_deg=90.0)
    focal = 50  # 100 pixels high, 90 degrees: half the height over tan(45)
    x, y, z = 0.4, -0.1, 0.5
    pixel = project_relative([[x, y, z]], camera)[0] * [200, 100]
    expected = [100 + focal * (x - 0.1) / (2 - z), 50 - focal * (y - 0.2) / (2 - z)]
    np.testing.assert_allclose(pixel, expected, atol=1e-5)


def test_the_camera_aims_at_its_target_and_keeps_the_horizon_level():
    camera = TableCamera(96, 64)
    np.testing.assert_allclose(project_relative([camera.target_m], camera), [[0.5, 0.5]])
    left, right = project_relative([[-0.1, 0.0, 0.0], [0.1, 0.0, 0.0]], camera)
    assert left[1] == pytest.approx(right[1])
    assert left[0] < 0.5 < right[0]


@mujoco_draws
def test_mujoco_draws_a_block_where_the_camera_projects_its_corners():
    table = tabletop.Tabletop(TableCamera(240, 240))
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    for seed in range(4):
        table.reset(seed)
        table._data.joint("hand").qpos[:3] = (0.9, 0.9, 0.5)  # out of the way
        table.picture()
        table._renderer.enable_segmentation_rendering()
        table._renderer.update_scene(table._data, "table")
        ids = table._renderer.render()[..., 0]
        table._renderer.disable_segmentation_rendering()
        for number, middle in enumerate(table.blocks_m):
            mask = ids == table._model.geom(f"block{number}").id
            rows, columns = np.nonzero(mask)
            seen = project_relative(middle + signs * BLOCK_HALF_M, table.camera) * 240
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(found, [*seen.min(0), *seen.max(0)], atol=1.0)
    table.close()


def test_what_is_marked_is_painted_where_it_is_projected(table):
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    angles = np.linspace(0, 2 * np.pi, 40)
    rim = scene.GOAL_RADIUS_M * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for seed in range(8):
        seen = coloured(table.reset(seed, marked=True).rgb, tabletop.colours.MARKED_BLOCK)
        block = table.blocks_m[table.layout.target] + signs * BLOCK_HALF_M
        goal = np.column_stack([table.layout.goal + rim, np.zeros(len(rim))])
        allowed = np.zeros((128, 128), np.uint8)
        for outline in (block, goal):
            pixels = project_relative(outline, table.camera) * 128 - 0.5
            hull = cv2.convexHull(pixels.round().astype(np.int32))
            cv2.fillConvexPoly(allowed, hull, 1)
        exact = allowed.sum()
        allowed = cv2.dilate(allowed, np.ones((3, 3), np.uint8)).astype(bool)
        assert not (seen & ~allowed).any()
        assert seen.sum() > 0.4 * exact  # the hand hides a part


def test_a_layout_keeps_everything_apart_and_within_reach():
    targets = set()
    for seed in range(200):
        layout = draw_layout(seed)
        places = np.vstack([layout.blocks, layout.goal])
        assert np.abs(places).max() <= REACH_M
        for first in range(4):
            for second in range(first):
                assert np.linalg.norm(places[first] - places[second]) >= APART_M
        assert CURTAIN_STEPS[0] <= layout.curtain_step <= CURTAIN_STEPS[1]
        spots = [np.linalg.norm(SPOTS - place, axis=1) for place in places]
        assert all(gaps.min() < 1.5 * JITTER_M for gaps in spots)
        targets.add((int(spots[layout.target].argmin()), int(spots[3].argmin())))
    assert len(targets) > 60  # of 72 pairs of a block's spot and a goal's
    # An open hand around one block, fingers of 12 mm included, ends before the next block begins.
    assert tabletop.FINGER_OPEN_M + 0.012 + BLOCK_HALF_M < APART_M


def test_variants_of_a_seed_differ_only_in_what_is_seen(table):
    layouts = []
    for occluded in (False, True):
        for marked in (False, True):
            table.reset(7, occluded=occluded, marked=marked)
            layouts.append((table.blocks_m.tobytes(), table.tip_m.tobytes()))
    assert len(set(layouts)) == 1


def test_an_unmarked_picture_does_not_tell_block_or_goal(table, monkeypatch):
    before = table.reset(3).rgb
    layout = draw_layout(3)
    other = layout._replace(target=(layout.target + 1) % 3, goal=-layout.goal)
    for module in (tabletop, planar):
        monkeypatch.setattr(module, "draw_layout", lambda seed: other)
    np.testing.assert_array_equal(table.reset(3).rgb, before)
    assert (table.reset(3, marked=True).rgb != before).any()


def test_the_curtain_hides_every_block_from_its_step_on(table):
    for seed in range(12):
        picture = table.reset(seed, occluded=True).rgb
        for step in range(8):
            seen = coloured(picture, tabletop.colours.BLOCK).sum()
            assert hidden(table) == (step >= table.layout.curtain_step)
            assert (seen == 0) if hidden(table) else (seen > 50)
            picture = table.step(expert(table)).rgb
    table.reset(0)
    for _ in range(8):
        assert not hidden(table)
        table.step(expert(table))


@pytest.mark.parametrize("marked", [False, True])
def test_the_expert_succeeds(table, marked):
    done = [play(table, expert, seed, occluded=seed % 2 == 1, marked=marked) for seed in range(25)]
    assert sum(done) >= 24


def test_without_closing_the_gripper_nothing_is_moved(table):
    def open_handed(table):
        action = expert(table)
        action[GRIPPER] = 1.0
        return action

    assert sum(play(table, open_handed, seed) for seed in range(12)) <= 1


def test_random_actions_hardly_ever_solve_it(table):
    rng = np.random.default_rng(0)

    def random(table):
        return vector_of(rng.uniform([-0.2, -0.2, 0], [0.2, 0.2, 0.2]), rng.integers(2))

    # Now and then a hand that flies about pushes the right block to the goal.
    assert sum(play(table, random, seed) for seed in range(10)) <= 1


def test_an_episode_repeats_to_the_byte_whatever_was_played_before(table):
    def record():
        first = table.reset(11, occluded=True)
        frames = [first.rgb.tobytes(), first.state.tobytes()]
        for _ in range(14):
            seen = table.step(expert(table))
            frames += [seen.rgb.tobytes(), seen.state.tobytes()]
        return frames

    before = record()
    play(table, expert, 5, marked=True)
    assert record() == before
    other = make_scene("planar" if isinstance(table, planar.Planar) else "tabletop")
    table.close()
    table = other
    assert record() == before
    other.close()


def test_a_step_is_bounded_and_stays_on_the_table(table):
    table.reset(2)
    before = table.tip_m
    table.step(vector_of(before + [1.0, -1.0, 1.0], 1.0))
    assert np.linalg.norm(table.tip_m - before) < STEP_M + 0.002
    for _ in range(20):
        table.step(vector_of(np.array([9.0, 9.0, -9.0]), 1.0))
    assert np.abs(table.tip_m[:2]).max() < REACH_M + 0.035
    assert table.tip_m[2] > 0
    corner = table.tip_m
    table.step(vector_of(np.array([-9.0, -9.0, 9.0]), 1.0))
    assert 0.9 * STEP_M < np.linalg.norm(table.tip_m - corner) < STEP_M + 0.002


def test_actions_that_are_no_vector_are_refused(table):
    table.reset(0)
    for action in (np.zeros(7), np.full(14, np.nan)):
        with pytest.raises(ValueError, match="finite"):
            table.step(action)


def test_a_held_block_follows_the_gripper_and_falls_when_let_go(table):
    table.reset(4)
    while carried(table) is None or table.tip_m[2] < 0.09:
        table.step(expert(table))
    target = table.layout.target
    assert carried(table) == target
    assert table.blocks_m[target][2] > 0.07
    table.step(vector_of(table.tip_m, 1.0))
    table.step(vector_of(table.tip_m, 1.0))
    assert carried(table) is None
    assert table.blocks_m[target][2] < 0.04


def test_stations_end_at_the_goal_from_every_state_of_an_episode(table):
    table.reset(9)
    while not success(table):
        way = stations(table)
        closing = [station for station in way if station.opening == 0]
        np.testing.assert_allclose(way[-1].tip_m[:2], table.layout.goal)
        np.testing.assert_allclose(way[-2].tip_m, [*table.layout.goal, BLOCK_HALF_M])
        if carried(table) is None:
            block = table.blocks_m[table.layout.target]
            np.testing.assert_allclose(closing[0].tip_m[:2], block[:2])
        table.step(expert(table))
    assert stations(table)[-1].opening == 1


def test_the_expert_never_goes_sideways_below_the_height_that_it_hovers_at(table):
    for seed in range(3):
        table.reset(seed)
        while not success(table):
            way = [table.tip_m, *(station.tip_m for station in stations(table))]
            for before, after in pairwise(way):
                low = min(before[2], after[2]) < HOVER_M - NEAR_M
                assert not low or np.linalg.norm((after - before)[:2]) <= NEAR_M
            table.step(expert(table))


def test_planar_is_taken_where_mujoco_cannot_draw(monkeypatch):
    monkeypatch.setattr(graphics, "find_library", lambda name: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    graphics.missing.cache_clear()
    said = []
    try:
        assert chosen_scene("auto", said.append) == "planar"
        with pytest.raises(UserError, match="neither EGL nor OSMesa") as caught:
            tabletop.Tabletop()
        assert "libegl-mesa0" in caught.value.hint
    finally:
        graphics.missing.cache_clear()
    assert "libegl1" in said[0]
    with pytest.raises(UserError, match="'2d'"):
        chosen_scene("2d", said.append)


def test_success_needs_the_right_block_on_the_goal_and_an_open_gripper(table):
    assert play(table, expert, 1)
    layout = table.layout
    for changed in (
        layout._replace(target=(layout.target + 1) % 3),
        layout._replace(goal=layout.goal + [scene.GOAL_RADIUS_M * 2, 0]),
    ):
        table.layout = changed
        assert not success(table)
    table.layout = layout
    table._opening = 0.0
    assert not success(table)


@pytest.mark.parametrize(
    ("away_m", "height_m", "opening", "done"),
    [(0.04, 0.025, 1.0, True), (0.06, 0.025, 1.0, False), (0.0, 0.06, 1.0, False),
     (0.0, 0.025, 0.0, False)],
)  # fmt: skip
def test_success_is_a_place_a_height_and_an_open_gripper(away_m, height_m, opening, done):
    layout = draw_layout(0)
    blocks = np.column_stack([layout.blocks, np.full(3, 0.025)])
    blocks[layout.target] = [layout.goal[0] + away_m, layout.goal[1], height_m]
    assert success(SimpleNamespace(blocks_m=blocks, layout=layout, opening=opening)) is done


def test_a_gripper_that_closed_on_nothing_opens_where_it_is_before_it_goes_on(table):
    table.reset(4)
    assert np.linalg.norm(stations(table)[0].tip_m - table.tip_m) > 0.01
    table.step(vector_of(table.tip_m, 0.0))
    first = stations(table)[0]
    np.testing.assert_array_equal(first.tip_m, table.tip_m)
    assert first.opening == 1.0


def test_a_gripper_that_closes_beside_a_block_lifts_nothing(table):
    table.reset(4)
    block = table.blocks_m[0]
    beside = block + [0, 0.055, 0]  # between two spots, so that no other block is nearer
    for place, opening in ((beside + [0, 0, 0.1], 1.0), (beside, 1.0), (beside, 0.0)):
        table.step(vector_of(place, opening))
    table.step(vector_of(beside + [0, 0, 0.1], 0.0))
    assert carried(table) is None
    assert (table.blocks_m[:, 2] < 0.035).all()


@mujoco_draws
def test_an_optimiser_can_be_made_after_a_picture_was_drawn():
    """Mesa and torch's compiler both bring an LLVM; in the wrong order the process crashes."""
    code = (
        "from maniflow_overlay.sim import graphics\n"
        "assert graphics.missing() is None\n"
        "import torch\n"
        "torch.optim.AdamW([torch.zeros(1, requires_grad=True)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
