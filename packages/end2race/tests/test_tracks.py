import math

import numpy as np
import pytest
import shapely
from end2race.sim.appearance import PLAIN
from end2race.sim.kernels import WHEELBASE_M, cast
from end2race.sim.race import Race
from end2race.sim.track import SPACING_M, procedural_track, track_from_centreline
from end2race.sim.track_files import read_map, read_tracks
from loom.errors import UserError
from PIL import Image


def circle(radius=6.0, count=377):
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_rays_on_a_circular_track_agree_with_the_closed_form():
    track = track_from_centreline("circle", circle(), np.full(377, 1.1))
    rng = np.random.default_rng(0)
    for _ in range(300):
        where, at = rng.uniform(0, 2 * np.pi), rng.uniform(5.1, 6.9)
        start = at * np.array([math.cos(where), math.sin(where)])
        angle = rng.uniform(0, 2 * np.pi)
        ray = np.array([math.cos(angle), math.sin(angle)])
        along = start @ ray
        hits = []
        for radius in (4.9, 7.1):  # |start + t ray| = radius
            root = along**2 - start @ start + radius**2
            if root >= 0:
                hits += [-along - math.sqrt(root), -along + math.sqrt(root)]
        expected = min(t for t in hits if t > 0)
        grazing = min(abs(along**2 - start @ start + 4.9**2), 1) < 0.05  # past the inner wall
        if not grazing:
            assert cast(track.field, *start, *ray, 50.0) == pytest.approx(expected, abs=0.015)


def test_rays_on_a_drawn_track_agree_with_shapely():
    track = procedural_track(np.random.default_rng(3))
    road = shapely.LinearRing(track.centreline).buffer(1.1, quad_segs=64)
    walls = road.boundary
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        index = rng.integers(len(track.centreline))
        start = track.centreline[index] + rng.uniform(-0.7, 0.7, 2)
        angle = rng.uniform(0, 2 * np.pi)
        ray = np.array([math.cos(angle), math.sin(angle)])
        met = shapely.LineString([start, start + 40 * ray]).intersection(walls)
        expected = shapely.Point(start).distance(met)
        errors.append(abs(cast(track.field, *start, *ray, 40.0) - expected))
    # A ray that grazes a wall may be stopped by 1 mm of air: far along it, never far from a wall.
    assert np.quantile(errors, 0.95) < 0.025
    assert np.median(errors) < 0.005


def test_a_ray_never_ends_behind_a_wall_and_never_before_one():
    track = procedural_track(np.random.default_rng(4))
    walls = shapely.LinearRing(track.centreline).buffer(1.1, quad_segs=64).boundary
    rng = np.random.default_rng(2)
    for _ in range(200):
        start = track.centreline[rng.integers(len(track.centreline))]
        angle = rng.uniform(0, 2 * np.pi)
        ray = np.array([math.cos(angle), math.sin(angle)])
        end = start + cast(track.field, *start, *ray, 100.0) * ray
        assert shapely.Point(end).distance(walls) < 0.01


def write_map(folder, free, cell_m, corner, **changes):
    """Write a map whose picture has row 0 at the top, as the map server does."""
    picture = np.where(free[::-1], 254, 0).astype(np.uint8)
    Image.fromarray(picture).save(folder / "room_map.png")
    content = {
        "image": "room_map.png",
        "resolution": cell_m,
        "origin": [*corner, 0.0],
        "negate": 0,
        "occupied_thresh": 0.45,
        "free_thresh": 0.196,
    } | changes
    text = "".join(f"{key}: {value}\n" for key, value in content.items())
    (folder / "room_map.yaml").write_text(text)
    return folder / "room_map.yaml"


def test_rays_in_a_rectangular_map_agree_with_the_closed_form(tmp_path):
    free = np.zeros((100, 160), bool)
    free[10:70, 20:140] = True  # 6 m x 3 m at 0.05 m, from (-9, -4.5) on, not in the middle
    field = read_map(write_map(tmp_path, free, 0.05, (-10.0, -5.0)))
    low, high = np.array([-9.0, -4.5]), np.array([-3.0, -1.5])
    rng = np.random.default_rng(0)
    for _ in range(300):
        start = rng.uniform(low + 0.1, high - 0.1)
        angle = rng.uniform(0, 2 * np.pi)
        ray = np.array([math.cos(angle), math.sin(angle)])
        expected = min(
            (edge[axis] - start[axis]) / ray[axis]
            for edge in (low, high)
            for axis in range(2)
            if (edge[axis] - start[axis]) / ray[axis] > 0
        )
        assert cast(field, *start, *ray, 50.0) == pytest.approx(expected, abs=0.025)


def test_a_folder_with_a_centreline_and_a_map_gives_the_walls_of_the_map(tmp_path):
    points = circle()
    rows = "\n".join(f"{x}, {y}, 0.9, 1.3" for x, y in points)
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring/ring_centerline.csv").write_text(
        f"# x_m, y_m, w_tr_right_m, w_tr_left_m\n{rows}"
    )
    (from_widths,) = read_tracks(tmp_path)
    assert from_widths.name == "ring"
    assert cast(from_widths.field, 6, 0, 1, 0, 9) == pytest.approx(0.9, abs=0.005)
    y, x = (np.mgrid[0:400, 0:400] + 0.5) * 0.05 - 10
    free = np.abs(np.hypot(x, y) - 6) < 1.5
    write_map(tmp_path / "ring", free, 0.05, (-10.0, -10.0))
    (from_map,) = read_tracks(tmp_path / "ring")
    assert cast(from_map.field, 6, 0, 1, 0, 9) == pytest.approx(1.5, abs=0.05)
    write_map(tmp_path / "ring", free, 0.05, (0.0, 0.0))
    with pytest.raises(UserError, match="centreline is inside a wall"):
        read_tracks(tmp_path)


def write_centreline(path, points, right=0.9, left=1.3):
    widths = np.broadcast_to(np.stack([right, left], axis=-1), points.shape)
    np.savetxt(path, np.concatenate([points, widths], axis=1), delimiter=",")


def test_widths_stay_at_their_places_where_rows_stand_at_uneven_distances(tmp_path):
    dense, sparse = np.linspace(0, np.pi, 400, False), np.linspace(np.pi, 2 * np.pi, 40, False)
    angle = np.concatenate([dense, sparse])
    points = 6 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    wide = np.where(angle < np.pi, 0.7, 1.3)
    write_centreline(tmp_path / "ring_centerline.csv", points, wide, wide)
    (track,) = read_tracks(tmp_path)
    assert cast(track.field, 0, 6, 0, 1, 9) == pytest.approx(0.7, abs=0.02)
    assert cast(track.field, 0, -6, 0, -1, 9) == pytest.approx(1.3, abs=0.02)


def test_each_track_of_a_folder_has_the_map_of_its_name(tmp_path):
    y, x = (np.mgrid[0:400, 0:400] + 0.5) * 0.05 - 10
    for name, width in {"narrow": 1.0, "wide": 1.5}.items():
        write_centreline(tmp_path / f"{name}_centerline.csv", circle())
        map_file = write_map(tmp_path, np.abs(np.hypot(x, y) - 6) < width, 0.05, (-10.0, -10.0))
        content = map_file.read_text().replace("room_map", f"{name}_map")
        map_file.with_name(f"{name}_map.yaml").write_text(content)
        map_file.with_name("room_map.png").rename(tmp_path / f"{name}_map.png")
        map_file.unlink()
    narrow, wide = read_tracks(tmp_path)
    assert cast(narrow.field, 6, 0, 1, 0, 9) == pytest.approx(1.0, abs=0.05)
    assert cast(wide.field, 6, 0, 1, 0, 9) == pytest.approx(1.5, abs=0.05)
    (tmp_path / "wide_map.yaml").rename(tmp_path / "broad_map.yaml")
    with pytest.raises(UserError, match="none is wide_map.yaml"):
        read_tracks(tmp_path)


def test_a_car_beside_the_table_s_width_passes_the_gates_of_a_wider_map(tmp_path):
    write_centreline(tmp_path / "ring_centerline.csv", circle(), right=0.5, left=0.5)
    y, x = (np.mgrid[0:400, 0:400] + 0.5) * 0.05 - 10
    write_map(tmp_path, np.abs(np.hypot(x, y) - 6) < 1.8, 0.05, (-10.0, -10.0))
    (track,) = read_tracks(tmp_path)
    race = Race(track, PLAIN, lateral_m=-1.0, speed=3.0)
    while not race.over and race.seconds < 40:
        race.step(math.degrees(math.atan(WHEELBASE_M / 7.0)), 3.0)
    assert min(np.abs(race.lateral_m)) > 0.6
    assert race.completed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# x\n0, 0, 1, 1\n1, 1, 1\n", "line 3: expected x_m"),
        ("# x\n0, 0, 1, -1\n", "line 2: expected x_m"),
        ("# x\n0, 0, nan, 1\n", "line 2: expected x_m"),
        ("# x\n0, 0, 1, 1\n", "only 1 points"),
    ],
)
def test_a_damaged_centreline_is_named_with_its_line(tmp_path, text, expected):
    (tmp_path / "a_centerline.csv").write_text(text)
    with pytest.raises(UserError, match=expected):
        read_tracks(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resolution": 0}, "resolution is 0"),
        ({"origin": "here"}, "origin is 'here'"),
        ({"origin": "[left, 0, 0]"}, "origin is \\['left', 0, 0\\]"),
        ({"image": "../../room.png"}, "room.png: no picture"),
    ],
)
def test_a_damaged_map_is_named_with_its_key(tmp_path, changes, expected):
    path = write_map(tmp_path, np.ones((4, 4), bool), 0.05, (0, 0), **changes)
    with pytest.raises(UserError, match=expected):
        read_map(path)


def test_drawn_tracks_can_be_driven_and_differ():
    tracks = [procedural_track(np.random.default_rng(seed)) for seed in range(4)]
    for track in tracks:
        assert 60 <= track.length_m <= 90
        assert 0.3 <= np.abs(track.curvature).max() <= 0.6
        assert track.spacing_m == pytest.approx(SPACING_M, rel=0.02)
        road = shapely.LinearRing(track.centreline).buffer(1.1)
        assert len(road.interiors) == 1  # no part of the road meets another
        turned = np.sum(track.curvature) * track.spacing_m
        assert abs(turned) == pytest.approx(2 * np.pi, rel=0.02)
    assert len({round(track.length_m, 3) for track in tracks}) == 4
    signs = {
        np.sign(np.sum(procedural_track(np.random.default_rng(s)).curvature)) for s in range(6)
    }
    assert signs == {-1, 1}
