"""Shapes and sizes of teacher and student, and what their inputs can and cannot change."""

import pytest
import torch
from end2race.data.calibration import level_camera
from end2race.models.driving_model import wanted_fields
from end2race.models.presets import PRESETS, preset
from end2race.models.student import CameraBEVStudent
from end2race.models.teacher import LiDARBEVTeacher
from loom.errors import UserError

CAMERA = level_camera(128, 64, focal_px=64.0, position_m=(0.2, 0.0, 0.2))


def teacher(name="racing", seed=0):
    torch.manual_seed(seed)
    return LiDARBEVTeacher(preset(name)).eval()


def student(seed=0, **options):
    torch.manual_seed(seed)
    return CameraBEVStudent(preset("racing"), CAMERA, **options).eval()


def drives(batch=2, time=3, points=200, seed=0):
    """Random windows: points, frames, images, speed, steering."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-2.8, -6.4, -0.5, 0.0]), torch.tensor([10.0, 6.4, 2.0, 1.0])
    cloud = low + torch.rand(batch * time * points, 4, generator=generator) * (high - low)
    frame = torch.arange(batch * time).repeat_interleave(points)
    images = torch.randint(
        0, 256, (batch, time, 64, 128, 3), dtype=torch.uint8, generator=generator
    )
    speed = 6 * torch.rand(batch, time, 1, generator=generator)
    steering = 20 * torch.randn(batch, time, 1, generator=generator)
    return cloud, frame, images, speed, steering


@pytest.mark.parametrize("name", ["racing", "racing-fine"])
def test_the_racing_teacher_answers_in_the_shapes_of_the_contract(name):
    cloud, frame, _, speed, steering = drives()
    actions, hidden, aux = teacher(name)(cloud, frame, 2, 3, speed, steering, return_aux=True)
    assert actions.shape == (2, 3, 2)
    assert hidden.shape == (1, 2, 128)
    shapes = {key: tuple(value.shape) for key, value in aux.items()}
    assert shapes == {
        "bev_vec_seq": (2, 3, 128),
        "bev_feat_seq": (2, 3, 64, 8, 8),
        "gru_out": (2, 3, 128),
    }


@pytest.mark.parametrize("view_transform", ["lift_splat", "identity"])
def test_the_student_answers_in_the_shapes_of_its_teacher(view_transform):
    cloud, frame, images, speed, steering = drives()
    theirs = teacher()(cloud, frame, 2, 3, speed, steering, return_aux=True)
    ours = student(view_transform=view_transform)(images, speed, steering, return_aux=True)
    assert ours[0].shape == theirs[0].shape
    assert {k: v.shape for k, v in ours[2].items()} == {k: v.shape for k, v in theirs[2].items()}


def test_the_kitti_teacher_has_the_sizes_of_the_notes():
    model = teacher("kitti")
    grid = model.preset.grid
    assert (grid.rows, grid.columns) == (496, 432)
    view = torch.zeros(1, 64, 64, 56)  # convolutions do not know the grid's size
    feature_map, vector = model.backbone(view)
    assert feature_map.shape == (1, 384, 32, 28)  # half of the view: 248 x 216 of 496 x 432
    assert vector.shape == (1, 256)
    assert model.policy.gru.hidden_size == 640
    assert model.policy.gru.input_size == 256 + 32 + 32


def test_the_kitti_teacher_has_as_many_parameters_as_its_layers_need():
    def convolution(before, after, size):
        return before * after * size * size + 2 * after  # with its normalisation

    stages = [(64, 64, 4), (64, 128, 6), (128, 256, 6)]
    backbone = sum(
        convolution(before, width, 3) + (layers - 1) * convolution(width, width, 3)
        for before, width, layers in stages
    )
    neck = sum(convolution(width, 128, 2**k) for k, (_, width, _) in enumerate(stages))
    pillars = 9 * 64 + 2 * 64
    projection = 384 * 256 + 256
    embeddings = 2 * (32 + 32 + 32)
    gru = 3 * (640 * 320 + 640 * 640 + 2 * 640)
    head = 640 * 2 + 2
    expected = backbone + neck + pillars + projection + embeddings + gru + head
    assert round((backbone + neck) / 1e6, 1) == 4.8
    assert sum(p.numel() for p in teacher("kitti").parameters()) == expected


@pytest.mark.slow
def test_the_kitti_teacher_drives_a_whole_grid():
    cloud, frame, _, speed, steering = drives(batch=1, time=1)
    model = teacher("kitti")
    _, hidden, aux = model(cloud, frame, 1, 1, speed, steering, return_aux=True)
    assert aux["bev_feat_seq"].shape == (1, 1, 384, 248, 216)
    assert hidden.shape == (1, 1, 640)


def test_only_what_is_asked_for_is_returned():
    cloud, frame, _, speed, steering = drives()
    assert teacher()(cloud, frame, 2, 3, speed, steering)[2] == {}
    some = teacher()(cloud, frame, 2, 3, speed, steering, return_aux=("gru_out",))[2]
    assert list(some) == ["gru_out"]
    with pytest.raises(ValueError, match="gru_in"):
        wanted_fields(("gru_in",))


def test_a_window_is_its_frames_one_by_one_with_the_state_carried_on():
    cloud, frame, _, speed, steering = drives(batch=1, time=4)
    model = teacher()
    whole, last, _ = model(cloud, frame, 1, 4, speed, steering)
    hidden, steps = None, []
    for t in range(4):
        own = frame == t
        step, hidden, _ = model(
            cloud[own], frame[own] - t, 1, 1, speed[:, t : t + 1], steering[:, t : t + 1], hidden
        )
        steps.append(step)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden, last, rtol=1e-5, atol=1e-5)


def test_an_empty_cloud_in_the_last_frame_changes_only_that_frame():
    cloud, frame, _, speed, steering = drives(batch=2, time=3)
    model = teacher()
    whole = model(cloud, frame, 2, 3, speed, steering)[0]
    kept = frame != 5
    cut = model(cloud[kept], frame[kept], 2, 3, speed, steering)[0]
    torch.testing.assert_close(cut.flatten(0, 1)[:5], whole.flatten(0, 1)[:5])
    assert not torch.allclose(cut[1, 2], whole[1, 2])


def test_an_unknown_speed_or_steering_gives_finite_actions_and_gradients():
    cloud, frame, _, speed, steering = drives()
    model = teacher()
    speed[0], steering[1] = torch.nan, torch.nan
    actions = model(cloud, frame, 2, 3, speed, steering)[0]
    assert actions.isfinite().all()
    actions.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.policy.speed.unknown.grad.abs().max() > 0
    other = model(cloud, frame, 2, 3, speed.nan_to_num(3.0), steering.nan_to_num(0.0))[0]
    assert not torch.allclose(actions, other)


def test_the_mirror_image_of_a_wall_is_told_from_the_wall():
    """The vector keeps places: with an average over the map both sides would look alike."""
    wall = torch.zeros(60, 4)
    wall[:, 0] = torch.linspace(0, 6, 60)
    wall[:, 1] = 1.1
    mirrored = wall * torch.tensor([1.0, -1.0, 1.0, 1.0])
    frame = torch.zeros(60, dtype=torch.int64)
    model = teacher()
    left, right = (model.encode(cloud, frame, 1)[1] for cloud in (wall, mirrored))
    assert (left - right).abs().max() > 0.05 * left.abs().max()


def test_the_same_seed_builds_the_same_model():
    for key, value in teacher(seed=3).state_dict().items():
        assert torch.equal(value, teacher(seed=3).state_dict()[key])


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="64 x 32; the camera has 128 x 64"):
        student()(torch.zeros(1, 1, 32, 64, 3, dtype=torch.uint8), *[torch.zeros(1, 1, 1)] * 2)


def test_an_image_that_the_encoder_cannot_halve_is_refused():
    camera = level_camera(100, 64, focal_px=64.0, position_m=(0.2, 0.0, 0.2))
    with pytest.raises(UserError, match="multiple of 8"):
        CameraBEVStudent(preset("racing"), camera)


def test_unknown_presets_are_refused_by_name():
    with pytest.raises(UserError, match="racy") as caught:
        preset("racy")
    assert all(name in caught.value.hint for name in PRESETS)
