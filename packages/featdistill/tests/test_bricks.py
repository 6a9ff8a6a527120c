"""The brick scene: its ray tracer against closed forms and a slow ray-marcher, and its files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from featdistill.cameras import Cameras, focal_from_angle, look_at
from featdistill.data import bricks
from featdistill.data.bricks import Boxes, BrickModel, BrickScene, Studs
from featdistill.data.nerf_synthetic import read_views
from loom.errors import UserError

GREY = np.array([[0.5, 0.5, 0.5]])
NO_BOXES = Boxes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)))
NO_STUDS = Studs(np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 3)))


def camera_at(position: list[float], width: int = 48) -> Cameras:
    poses = look_at(torch.tensor([position]), torch.zeros(3))
    return Cameras(poses, width, width, focal_from_angle(width, bricks.CAMERA_ANGLE_X), ("view",))


def boxes(*bounds: tuple[list[float], list[float]]) -> Boxes:
    low, high = (np.array(side, dtype=np.float64) for side in zip(*bounds, strict=True))
    return Boxes(low, high, np.linspace(0.2, 0.8, 3 * len(low)).reshape(-1, 3))


def test_a_box_seen_face_on_covers_the_area_of_its_front_face():
    camera = camera_at([0.0, -4.0, 0.0])
    model = BrickModel(boxes(([-0.5, -0.3, -0.4], [0.5, 0.3, 0.4])), NO_STUDS)
    image = bricks.trace(model, camera, supersampling=8)[0]
    pixels_per_unit = camera.focal_px / (4.0 - 0.3)
    expected = (1.0 * pixels_per_unit) * (0.8 * pixels_per_unit)
    assert image[..., 3].sum() == pytest.approx(expected, rel=0.01)
    # Face on, each row covers the same width, in steps of 1/8 pixel.
    row = image[24, :, 3].sum()
    assert row == pytest.approx(pixels_per_unit, abs=2 / 8)


def test_a_stud_seen_from_above_covers_the_area_of_its_top():
    studs = Studs(np.zeros((1, 2)), np.array([-0.5]), np.array([0.2]), np.array([0.6]), GREY)
    camera = camera_at([0.0, 0.0, 4.0])
    image = bricks.trace(BrickModel(NO_BOXES, studs), camera, supersampling=8)[0]
    radius_px = 0.6 * camera.focal_px / (4.0 - 0.2)
    assert image[..., 3].sum() == pytest.approx(math.pi * radius_px**2, rel=0.01)


def test_a_stud_seen_from_the_side_covers_its_tangent_cone():
    # Tall enough to leave the image above and below: each row sees the circle's tangents, whose
    # half angle has the sine r / d.
    studs = Studs(np.zeros((1, 2)), np.array([-9.0]), np.array([9.0]), np.array([0.6]), GREY)
    camera = camera_at([4.0, 0.0, 0.0])
    image = bricks.trace(BrickModel(NO_BOXES, studs), camera, supersampling=8)[0]
    expected = 2 * camera.focal_px * math.tan(math.asin(0.6 / 4.0))
    np.testing.assert_allclose(image[..., 3].sum(axis=1), expected, atol=2 / 8)


def test_the_nearer_shape_hides_the_other_in_either_order():
    near = ([-0.3, -1.0, -0.3], [0.3, -0.8, 0.3])
    far = ([-0.6, 0.5, -0.6], [0.6, 0.8, 0.6])
    camera = camera_at([0.0, -4.0, 0.0])
    first, second = boxes(near, far), boxes(far, near)
    second = second._replace(colour=second.colour[::-1])
    images = [bricks.trace(BrickModel(b, NO_STUDS), camera)[0] for b in (first, second)]
    np.testing.assert_array_equal(images[0], images[1])
    direction = np.array([1.0, 48 * 4.0, 1.0]) / math.hypot(1, 1, 48 * 4.0)  # almost +y
    expected = light(np.array([0.2, 0.32, 0.44]), np.array([0.0, -1.0, 0.0]), direction)
    np.testing.assert_allclose(images[0][24, 24, :3], expected, atol=0.01)


def test_edges_are_averaged_over_sub_samples():
    camera = camera_at([0.0, -4.0, 0.0])
    model = BrickModel(boxes(([-0.52, -0.3, -9.0], [0.52, 0.3, 9.0])), NO_STUDS)
    alpha = bricks.trace(model, camera)[0][24, :, 3]
    edge = camera.width / 2 - 0.52 * camera.focal_px / 3.7  # where the left edge projects to
    pixel = math.floor(edge)
    centres = pixel + (np.arange(4) + 0.5) / 4
    assert alpha[pixel] == pytest.approx(np.mean(centres > edge))
    assert alpha[pixel - 1] == 0
    assert alpha[pixel + 1] == 1
    assert 0 < alpha[pixel] < 1


def march(model: BrickModel, origin: np.ndarray, direction: np.ndarray):
    """A ray-marcher in float64 that asks only "is this point inside?"; returns normal and colour.

    No shape is nearer than its most violated bound, so that is how far a step may go; bisection
    refines the hit. The normal is the gradient of that violation.
    """

    def depths(point: np.ndarray) -> np.ndarray:
        """Per shape, the largest violation of a bound: negative inside."""
        inside = [
            max(np.max(low - point), np.max(point - high))
            for low, high in zip(model.boxes.low, model.boxes.high, strict=True)
        ]
        studs = model.studs
        for centre, bottom, top, radius in zip(
            studs.centre, studs.bottom, studs.top, studs.radius, strict=True
        ):
            across = math.hypot(*(point[:2] - centre)) - radius
            inside.append(max(across, bottom - point[2], point[2] - top))
        return np.array(inside)

    previous = distance = 2.0
    while (gap := depths(origin + distance * direction).min()) >= 0:
        if distance > 6:
            return None
        previous, distance = distance, distance + max(gap, 0.002)
    outside, inside = previous, distance
    for _ in range(40):
        middle = (outside + inside) / 2
        if depths(origin + middle * direction).min() < 0:
            inside = middle
        else:
            outside = middle
    point = origin + outside * direction
    shape = int(np.argmin(np.abs(depths(point))))
    step = 1e-7
    normal = np.array(
        [
            (depths(point + d)[shape] - depths(point - d)[shape]) / (2 * step)
            for d in step * np.eye(3)
        ]
    )
    colour = np.concatenate([model.boxes.colour, model.studs.colour])[shape]
    return normal / np.linalg.norm(normal), colour


def light(albedo: np.ndarray, normal: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The lighting that the module's text describes, for one point."""
    sun = np.array([0.48, -0.36, 0.80])
    assert np.linalg.norm(sun) == pytest.approx(1)
    facing = max(0.0, float(normal @ sun))
    halfway = (sun - direction) / np.linalg.norm(sun - direction)
    highlight = max(0.0, float(normal @ halfway)) ** 24
    shade = 0.58 * (0.65 + 0.35 * normal[2]) + 0.46 * facing
    return np.clip(albedo * shade + 0.25 * highlight, 0, 1)


@pytest.mark.parametrize("position", [[2.4, -2.0, 2.5], [-3.2, 1.4, 1.9]])
def test_the_tracer_agrees_with_a_ray_marcher_that_only_asks_inside_or_outside(position):
    model = BrickModel(
        boxes(
            ([-0.9, -0.8, -0.6], [0.9, 0.8, -0.5]),
            ([-0.5, -0.5, -0.5], [0.1, 0.3, 0.2]),
            ([0.2, -0.1, -0.5], [0.7, 0.6, 0.0]),
        ),
        Studs(
            np.array([[-0.3, -0.2], [0.45, 0.25], [0.5, -0.5]]),
            np.array([0.2, 0.0, -0.5]),
            np.array([0.5, 0.2, 0.4]),
            np.array([0.15, 0.2, 0.12]),
            np.array([[0.9, 0.2, 0.1], [0.1, 0.8, 0.2], [0.2, 0.3, 0.9]]),
        ),
    )
    camera = camera_at(position, width=14)
    image = bricks.trace(model, camera, supersampling=1)[0].reshape(-1, 4)
    rays = camera.image_rays(0)
    differing = 0
    for pixel, origin, direction in zip(image, *(r.double().numpy() for r in rays), strict=True):
        hit = march(model, origin, direction)
        expected = np.zeros(4) if hit is None else np.append(light(hit[1], hit[0], direction), 1)
        differing += np.abs(pixel - expected).max() > 1e-3
    assert differing <= 1  # a ray may graze an edge
    assert 30 < (image[:, 3] > 0).sum() < 150


def test_every_brick_of_a_model_is_supported_and_none_overlap():
    for seed in range(5):
        model = bricks.build_model(seed)
        low, high, _ = model.boxes
        assert 40 < len(low) < 400
        assert len(model.studs.top) == 120
        lower = np.maximum(low[:, None], low[None])
        upper = np.minimum(high[:, None], high[None])
        overlap = (upper > lower + 1e-9).all(-1) & ~np.eye(len(low), dtype=bool)
        assert not overlap.any()
        touching = (upper[..., :2] > lower[..., :2]).all(-1)
        below = (np.abs(high[None, :, 2] - low[:, None, 2]) < 0.004) & touching
        assert below[1:].any(axis=1).all()


def test_models_and_images_depend_on_the_seed_and_on_nothing_else():
    first, again, other = (bricks.build_model(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.boxes.low, again.boxes.low)
    assert first.boxes.low.shape != other.boxes.low.shape


def test_the_scene_is_written_in_the_layout_that_the_reader_reads(tmp_path: Path):
    scene = BrickScene(width=32, train=4, test=3)
    assert bricks.write_scene(tmp_path / "bricks", scene)
    train, test = (read_views(tmp_path / "bricks", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 3)
    for views in (train, test):
        radius = views.cameras.centres.norm(dim=-1)
        np.testing.assert_allclose(radius, 4.031, rtol=1e-6)
        assert (views.cameras.centres[:, 2] >= 0).all()
        alpha = views.rgba[..., 3] / 255
        assert 0.2 < alpha.mean() < 0.45
        border = torch.cat([alpha[:, [0, -1]].flatten(), alpha[:, :, [0, -1]].flatten()])
        assert border.max() == 0  # the whole model is in the picture
    expected = bricks.render_views(bricks.build_model(0), bricks.train_cameras(scene))
    assert torch.equal(train.rgba, expected.rgba)
    assert not bricks.write_scene(tmp_path / "bricks", scene)  # and is not made again
    assert [p.name for p in tmp_path.iterdir()] == ["bricks"]


def test_another_scene_is_never_overwritten(tmp_path: Path):
    scene = BrickScene(width=16, train=1, test=1)
    bricks.write_scene(tmp_path / "bricks", scene)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="holds the brick scene"):
        bricks.write_scene(tmp_path / "bricks", BrickScene(seed=1, width=16, train=1, test=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        bricks.write_scene(tmp_path / "mine", scene)
    assert all(p.read_bytes() == data for p, data in before.items())


def test_an_interrupted_generation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bricks, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bricks.write_scene(tmp_path / "bricks", BrickScene(width=16, train=1, test=1))
    assert list(tmp_path.iterdir()) == []
