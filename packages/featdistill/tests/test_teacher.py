"""The teacher fit: its start, relocation, loss term, learning and resume."""

import math
import shutil

import numpy as np
import pytest
import torch
from featdistill.cameras import Cameras, orbit_poses
from featdistill.data.nerf_synthetic import Views, write_views
from featdistill.data.ply import read_ply, write_ply
from featdistill.gaussians import Gaussians
from featdistill.models.gaussian_model import GROUPS, GaussianModel
from featdistill.models.raster import render
from featdistill.models.relocation import relocate, shared_opacity_and_scale
from featdistill.models.visual_hull import visual_hull
from featdistill.structural_similarity import structural_similarity
from featdistill.teacher import (
    TargetSampler,
    TeacherLoss,
    fit_teacher,
    go_on_from,
    start_gaussians,
)
from featdistill.teacher_config import TeacherConfig
from loom.config import resolve
from loom.errors import UserError
from loom.run import Run
from loom.sampling import Shard

SIZE, FOCAL_PX, RADIUS = 32, 44.0, 4.0


def ball_views(n, *, seed=0, radius=0.8, center=(0.0, 0.0, 0.0)):
    """Views of an opaque ball whose colour is its position: drawn by intersecting rays."""
    center = torch.tensor(center)
    poses = orbit_poses(n, RADIUS, torch.Generator().manual_seed(seed))
    names = tuple(f"train/r_{i}" for i in range(n))
    cameras = Cameras(poses, SIZE, SIZE, FOCAL_PX, names)
    images = []
    for view in range(n):
        rays = cameras.image_rays(view)
        from_center = rays.origins - center
        along = -(from_center * rays.directions).sum(1)
        discriminant = along**2 - (from_center.square().sum(1) - radius**2)
        hit = discriminant > 0
        distance = along - discriminant.clamp_min(0).sqrt()
        points = from_center + distance[:, None] * rays.directions
        color = (0.5 + 0.5 * points / radius).clamp(0, 1) * hit[:, None]
        images.append(torch.cat([color, hit[:, None].float()], 1).reshape(SIZE, SIZE, 4))
    rgba = (torch.stack(images) * 255).round().to(torch.uint8)
    return Views(cameras, rgba)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are small here: a second thread would only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ball_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ball")
    write_views(folder, "train", ball_views(12))
    write_views(folder, "test", ball_views(3, seed=9))
    return folder


def config(folder, *overrides):
    base = ["gaussians=300", "start.resolution=16", "checkpoint_interval=20"]
    flags = {"data.scene": str(folder)}
    return resolve(TeacherConfig, overrides=[*base, *overrides], flags=flags)


def fitted(folder, directory, *overrides, resume=False):
    resolved = config(folder, *overrides)
    with Run.open(
        "featdistill", TeacherConfig, resolved, directory=directory, resume=resume, quiet=True
    ) as run:
        return fit_teacher(run.config, run)


def test_the_hull_of_a_ball_is_the_ball():
    center = (0.3, -0.2, 0.0)  # beside the optical axes, so that x and y of a pixel differ
    views = ball_views(60, center=center)
    hull = visual_hull(views.cameras, views.rgba[..., 3] > 0, 24)
    distance = (hull.centers - torch.tensor(center)).norm(dim=1)
    pixel = RADIUS / FOCAL_PX
    # From above only, so the hull hangs out below; nothing of the ball itself may be missing.
    volume = len(hull.centers) * hull.voxel**3
    assert 4 / 3 * math.pi * (0.8 - pixel) ** 3 < volume < 4 / 3 * math.pi * 0.8**3 * 1.35
    above = hull.centers[:, 2] > 0.2
    assert distance[above].max() < 0.8 + 1.5 * pixel
    assert distance[hull.surface & above].min() > 0.8 - 2.5 * hull.voxel - pixel


def test_silhouettes_without_a_common_volume_are_an_error(tmp_path):
    views = ball_views(4)
    empty = Views(views.cameras, torch.zeros_like(views.rgba))
    with pytest.raises(UserError, match="no volume in common"):
        start_gaussians(TeacherConfig(gaussians=100), empty, np.random.default_rng(0))


def test_pictures_without_a_transparent_pixel_are_an_error(tmp_path):
    views = ball_views(4)
    opaque = Views(views.cameras, torch.full_like(views.rgba, 255))
    with pytest.raises(UserError, match="no silhouettes") as caught:
        start_gaussians(TeacherConfig(gaussians=100), opaque, np.random.default_rng(0))
    assert "alpha 0" in caught.value.hint


def test_gaussians_start_in_the_colours_that_the_views_show():
    views = ball_views(20)
    start = start_gaussians(TeacherConfig(gaussians=400), views, np.random.default_rng(0))
    shown = 0.5 + 0.28209479 * start.sh[:, 0]
    above = start.means[:, 2] > 0.3
    expected = (0.5 + 0.5 * start.means / 0.8)[above]
    assert (shown[above] - expected).abs().mean() < 0.08


def test_gaussians_that_share_a_place_look_like_the_one_before():
    opacity = torch.tensor([0.3, 0.6, 0.95], dtype=torch.float64)
    for count in (1, 2, 5, 15):
        counts = torch.full((3,), count)
        shared, factor = shared_opacity_and_scale(opacity, counts)
        torch.testing.assert_close(1 - (1 - shared) ** count, opacity)  # at the centre
        # Integrated over a line, the blend of `count` equals the one gaussian (eq. 9).
        x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
        for o, s, f in zip(opacity, shared, factor, strict=True):
            one = (o * torch.exp(-0.5 * x**2)).sum()
            several = (1 - (1 - s * torch.exp(-0.5 * (x / f) ** 2)) ** count).sum()
            assert several / one == pytest.approx(1, abs=1e-6)


def test_relocation_moves_only_the_dead_and_their_places_and_forgets_moments():
    draw = torch.Generator().manual_seed(0)
    start = Gaussians(
        *(torch.randn(*s, generator=draw) for s in ((6, 3), (6, 3), (6, 4), (6,), (6, 16, 3)))
    )
    model = GaussianModel(start)
    optimizer = torch.optim.Adam(model.groups(), lr=0.1)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    before = {name: getattr(model, name).detach().clone() for name in GROUPS}
    relocate(model, optimizer, torch.tensor([1, 4]), torch.tensor([2, 2]))
    for name in GROUPS:
        value, state = getattr(model, name).detach(), optimizer.state[getattr(model, name)]
        assert torch.equal(value[[0, 3, 5]], before[name][[0, 3, 5]])
        assert torch.equal(value[1], value[2])
        assert torch.equal(value[4], value[2])
        assert torch.all(state["exp_avg"][[1, 2, 4]] == 0)
        assert torch.all(state["exp_avg"][[0, 3, 5]] != 0)
    assert torch.equal(model.means[2], before["means"][2])
    assert torch.sigmoid(model.opacity_logits[2]) < torch.sigmoid(before["opacity_logits"][2])


def test_the_ssim_term_is_that_of_scikit_image_over_its_valid_window():
    from skimage.metrics import structural_similarity as reference

    rng = np.random.default_rng(0)
    first = rng.random((40, 33, 3))
    second = np.clip(first + 0.1 * rng.standard_normal(first.shape), 0, 1)
    padded = [np.pad(image, ((5, 5), (5, 5), (0, 0))) for image in (first, second)]
    _, full = reference(
        *padded, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    expected = full[5:-5, 5:-5].mean()  # zero padding made explicit
    found = structural_similarity(torch.from_numpy(first), torch.from_numpy(second))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_square_error_is_its_mean_over_many_backgrounds():
    views = ball_views(2)
    settings = TeacherConfig(gaussians=50)
    model = GaussianModel(start_gaussians(settings, views, np.random.default_rng(0)))
    target = TargetSampler(views, seed=0)(0, Shard())
    with torch.no_grad():
        found = TeacherLoss(settings)(model, target, 0).terms["l2"].value.item()
        shown = render(model(), target.camera)
        levels = (torch.arange(2000) + 0.5) / 2000
        total = 0.0
        for level in levels.tolist():
            ours = shown.rgb + level * shown.transmittance[..., None]
            theirs = target.rgb + level * target.transmittance[..., None]
            total += (ours - theirs).square().mean().item()
    assert found == pytest.approx(total / len(levels), rel=1e-4)


def test_every_view_is_taken_once_per_epoch():
    sampler = TargetSampler(ball_views(7), seed=3)
    for epoch in range(2):
        names = {sampler(7 * epoch + i, Shard()).camera.names for i in range(7)}
        assert len(names) == 7


def test_a_fit_learns_and_writes_what_it_learnt(ball_folder, tmp_path):
    gaussians, result = fitted(ball_folder, tmp_path / "run", "train.max_steps=150")
    assert result.reason == "complete"
    assert result.metrics["metric/psnr_db"] > 24  # a blank image has 7
    read = read_ply(tmp_path / "run" / "point_cloud.ply")
    for found, expected in zip(read.tensors(), gaussians.tensors(), strict=True):
        assert torch.equal(found, expected)


GROWING = ["start.share=0.3", "train.coarse=[{divisor: 2, until: 0.3}]", "relocation.interval=10"]


def test_a_fit_from_small_images_with_gaussians_held_back_learns_and_uses_them_all(
    ball_folder, tmp_path, monkeypatch
):
    settings = config(ball_folder, "train.max_steps=300", *GROWING).config
    start = start_gaussians(settings, ball_views(12), np.random.default_rng(0))
    assert (start.opacities > 0.005).sum() == 90
    seen = {}
    loss = TeacherLoss.__call__

    def watched(self, model, target, step):
        seen[step] = target.rgb.shape[0], int((model().opacities > 0.005).sum())
        return loss(self, model, target, step)

    monkeypatch.setattr(TeacherLoss, "__call__", watched)
    gaussians, result = fitted(ball_folder, tmp_path / "run", "train.max_steps=300", *GROWING)
    assert result.metrics["metric/psnr_db"] > 24
    assert (gaussians.opacities > 0.005).sum() > 270
    for step, (size, shown) in seen.items():
        assert size == (16 if step < 90 else 32)
        placed = 300 - settings.waiting_at(step - step % 10)
        assert 0.8 * placed < shown <= placed, step
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "images of 16x16 from step 0" in log
    assert "images of 32x32 from step 90" in log


def test_gaussians_that_wait_are_placed_evenly_until_the_share_named_grown(ball_folder):
    settings = config(
        ball_folder, "train.max_steps=100", "start.share=0.2", "relocation.begin=0.1",
        "relocation.grown=0.6",
    ).config  # fmt: skip
    waiting = [settings.waiting_at(step) for step in range(101)]
    assert waiting[0] == waiting[10] == 240
    assert waiting[35] == 120
    assert waiting[60] == waiting[100] == 0
    assert waiting == sorted(waiting, reverse=True)
    assert config(ball_folder).config.waiting_at(0) == 0


def test_a_fit_that_goes_on_from_a_model_begins_with_its_pictures(tmp_path):
    views = ball_views(2)
    model = start_gaussians(TeacherConfig(gaussians=100), views, np.random.default_rng(0))
    write_ply(tmp_path / "point_cloud.ply", model)
    more = go_on_from(tmp_path, 250)
    assert len(more) == 250
    for name, kept in zip(GROUPS[:4], model.tensors(), strict=False):
        torch.testing.assert_close(getattr(more, name)[:100], kept, rtol=0, atol=0)
    before, now = (render(each, views.cameras[0]).rgb for each in (model, more))
    torch.testing.assert_close(now, before, rtol=0, atol=0)


def test_a_fit_goes_on_from_a_run_and_places_the_gaussians_beyond_its_own(ball_folder, tmp_path):
    _, first = fitted(ball_folder, tmp_path / "first", "train.max_steps=60")
    gentle = (f"start.model={tmp_path / 'first'}", "train.lr.scale=0.1", "train.max_steps=40")
    placing = ("gaussians=400", "relocation.interval=10")
    gaussians, result = fitted(ball_folder, tmp_path / "second", *gentle, *placing)
    assert (gaussians.opacities > 0.005).sum() > 390
    assert result.metrics["metric/psnr_db"] > first.metrics["metric/psnr_db"]


def test_a_model_of_more_gaussians_than_asked_for_is_refused(tmp_path):
    views = ball_views(2)
    model = start_gaussians(TeacherConfig(gaussians=100), views, np.random.default_rng(0))
    write_ply(tmp_path / "point_cloud.ply", model)
    with pytest.raises(UserError, match="100 gaussians, more than gaussians=99"):
        go_on_from(tmp_path, 99)


def test_the_scale_of_the_learning_rates_holds_for_every_group_and_step():
    whole, tenth = (TeacherConfig(train={"lr": {"scale": s}}).train for s in (1.0, 0.1))
    for step in (0, 1_000, 4_999):
        expected = {name: rate / 10 for name, rate in whole.lr_at(step).items()}
        assert tenth.lr_at(step) == pytest.approx(expected)


def test_stages_that_make_no_sense_are_refused(ball_folder, tmp_path):
    with pytest.raises(UserError, match="does not rise"):
        config(ball_folder, "train.coarse=[{divisor: 4, until: 0.5}, {divisor: 2, until: 0.4}]")
    with pytest.raises(UserError, match="no whole width at divisor 5"):
        fitted(ball_folder, tmp_path / "run", "train.coarse=[{divisor: 5, until: 0.5}]")


def interrupt(resolved, directory):
    """Begin a fit and end it in its 34th step."""
    sample = TargetSampler.__call__

    def interrupted(self, step, shard):
        if step == 33:
            raise KeyboardInterrupt
        return sample(self, step, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TargetSampler, "__call__", interrupted)
        with (
            pytest.raises(KeyboardInterrupt),
            Run.open(
                "featdistill", TeacherConfig, resolved, directory=directory, quiet=True
            ) as run,
        ):
            fit_teacher(run.config, run)


@pytest.mark.parametrize("growing", [[], GROWING])
def test_a_resumed_fit_is_bit_equal_across_relocations(ball_folder, tmp_path, growing):
    settings = [*growing, "train.max_steps=60", "relocation.interval=10", "relocation.opacity=0.3"]
    whole, _ = fitted(ball_folder, tmp_path / "whole", *settings)
    interrupt(config(ball_folder, *settings), tmp_path / "part")
    resumed, _ = fitted(ball_folder, tmp_path / "part", *settings, resume=True)
    for found, expected in zip(resumed.tensors(), whole.tensors(), strict=True):
        assert torch.equal(found, expected)


def test_a_fit_that_goes_on_is_resumed_without_the_model_that_it_began_with(ball_folder, tmp_path):
    fitted(ball_folder, tmp_path / "first", "train.max_steps=20")
    settings = (f"start.model={tmp_path / 'first'}", "gaussians=350", "train.max_steps=40")
    settings += ("relocation.interval=10",)
    whole, _ = fitted(ball_folder, tmp_path / "whole", *settings)
    interrupt(config(ball_folder, *settings), tmp_path / "part")
    shutil.rmtree(tmp_path / "first")
    resumed, _ = fitted(ball_folder, tmp_path / "part", *settings, resume=True)
    for found, expected in zip(resumed.tensors(), whole.tensors(), strict=True):
        assert torch.equal(found, expected)


def test_a_model_that_archiving_would_move_aside_is_refused_before_it_moves(
    ball_folder, tmp_path, command, files_in
):
    fitted(ball_folder, tmp_path / "first", "train.max_steps=2")
    before = files_in(tmp_path)
    words = ("teacher", "fit", f"start.model={tmp_path / 'first'}", "--scene", ball_folder)
    done = command(*words, "--run-dir", tmp_path / "first", "--archive")
    done.holds("start.model", "--archive moves aside", "another --run-dir")
    assert files_in(tmp_path) == before


def test_a_fit_without_a_scene_says_what_to_give(tmp_path):
    with (
        pytest.raises(UserError, match="data.scene is not set"),
        Run.open("featdistill", TeacherConfig, directory=tmp_path / "run", quiet=True) as run,
    ):
        fit_teacher(run.config, run)
