"""The adapter's contract, on a stand-in that has MapAnything's inputs and outputs."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from coopcyl.batches import SetBatch
from coopcyl.data.depth import DepthSource
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.tree import read_tree
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.view import central_targets
from coopcyl.loss_options import OverallLossOptions
from coopcyl.models.mapanything import (
    MapAnythingAdapter,
    as_mapanything,
    found_geometry,
    load_mapanything,
    true_geometry,
)
from coopcyl.models.options import MapAnythingOptions
from coopcyl.models.predict import predict, range_along_rays
from coopcyl.overall_loss import overall_loss
from coopcyl.training_run import run_training
from loom.errors import UserError
from loom.record import read_records
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

PANORAMA = Panorama(56, 28, "equirect_band", -42, 42)
SENT = {"img", "ray_directions_cam", "data_norm_type", "is_metric_scale", "true_shape"}


class StandIn(nn.Module):
    """Takes and returns what MapAnything 1.1 does; a patch embedding and four numbers are all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(6, 8, 14, 14)
        self.dense = nn.Conv2d(8, 3 * 14 * 14, 1)
        self.pose = nn.Linear(8, 7)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.geometric_input_config = {
            "overall_prob": 0.9,
            "dropout_prob": 0.05,
            "ray_dirs_prob": 0.5,
            "depth_prob": 0.5,
            "cam_prob": 0.5,
            "sparse_depth_prob": 0.5,
        }

    @classmethod
    def from_pretrained(cls, name: str) -> "StandIn":
        if name == "missing":
            raise OSError("no such folder")
        return cls()

    def forward(self, views: list[dict]) -> list[dict[str, Tensor]]:
        outputs = []
        for view in views:
            assert view.keys() == SENT
            rays = view["ray_directions_cam"]
            chances = self.geometric_input_config
            used = chances["overall_prob"] * (1 - chances["dropout_prob"])
            given = (torch.rand(len(rays)) < used * chances["ray_dirs_prob"]).float()
            seen = given[:, None, None, None] * rays.permute(0, 3, 1, 2)
            tokens = self.embed(torch.cat([view["img"], seen], dim=1))
            dense = nn.functional.pixel_shuffle(self.dense(tokens), 14)
            numbers = self.pose(tokens.mean(dim=(2, 3)))
            factor = self.scale.exp().expand(len(rays), 1)
            depth = factor[:, :, None, None] * dense[:, 0, ..., None].exp()
            own = depth * rays
            quaternions = nn.functional.normalize(numbers[:, :4] + torch.tensor([0, 0, 0, 3.0]))
            turn = torch.from_numpy(
                Rotation.from_quat(quaternions.detach().numpy()).as_matrix()
            ).float()
            shift = factor * numbers[:, 4:]
            outputs.append(
                {
                    "pts3d": torch.einsum("bij,bhwj->bhwi", turn, own) + shift[:, None, None],
                    "pts3d_cam": own,
                    "ray_directions": rays,
                    "depth_along_ray": depth,
                    "cam_trans": shift,
                    "cam_quats": quaternions,
                    "metric_scaling_factor": factor,
                    "conf": 1 + dense[:, 1].exp(),
                    "non_ambiguous_mask": dense[:, 2] > 0,
                    "non_ambiguous_mask_logits": dense[:, 2],
                }
            )
        return outputs


@pytest.fixture
def installed(monkeypatch) -> None:
    module = ModuleType("mapanything.models")
    module.MapAnything = StandIn
    monkeypatch.setitem(sys.modules, "mapanything", ModuleType("mapanything"))
    monkeypatch.setitem(sys.modules, "mapanything.models", module)


@pytest.fixture
def model(installed) -> MapAnythingAdapter:
    torch.manual_seed(0)
    return load_mapanything(MapAnythingOptions()).eval()


@pytest.fixture(scope="module")
def batch(two_sets) -> SetBatch:
    return two_sets(PANORAMA)


def test_views_are_sent_by_their_place_in_the_set_without_any_truth(batch):
    sent = as_mapanything(batch.views, 2)
    assert [view.keys() for view in sent] == [SENT, SENT]
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for place, view in enumerate(sent):
        for index in range(2):
            image = batch.views.image[2 * index + place].permute(1, 2, 0).numpy()
            back = view["img"][index].permute(1, 2, 0).numpy() * deviation + mean
            np.testing.assert_allclose(back, image, atol=1e-6)
    torch.testing.assert_close(sent[0]["ray_directions_cam"].norm(dim=-1), torch.ones(2, 28, 56))


def test_true_geometry_is_the_central_targets_of_the_views(batch, small_root):
    truth = true_geometry(batch.views, batch.truth.range_m, batch.truth.poses)
    reader = PanoramaReader(PANORAMA, DepthSource("npy"), 90.0)
    view = reader.read(read_tree(small_root, "train").frames[0].agents[1])
    central = central_targets(view)
    valid = view.depth_valid
    np.testing.assert_allclose(
        truth.depth_along_ray[0, 1, ..., 0].numpy()[valid],
        central.depth_along_ray_m[valid],
        atol=1e-3,
    )
    np.testing.assert_allclose(truth.ray_directions[0, 1], central.directions, atol=1e-4)
    rotation = Rotation.from_quat(truth.quaternions[0, 1].numpy()).as_matrix()
    moved = truth.points_own[0, 1].numpy() @ rotation.T + truth.translations[0, 1].numpy()
    np.testing.assert_allclose(truth.points[0, 1], moved, atol=1e-3)


def test_predictions_are_the_models_poses_relative_to_the_first_view(model, batch):
    found = predict(model, type(batch.views)(*(t[:2] for t in batch.views)))
    np.testing.assert_allclose(found.poses[0], np.eye(4), atol=1e-6)
    outputs = found.views
    absolute = model.poses(outputs)
    np.testing.assert_allclose(found.poses, absolute)
    assert outputs[0]["pts3d"].shape == (1, 28, 56, 3)
    assert not found.pairs


def test_the_rays_are_used_every_time_and_never_a_pose_or_a_depth(model, batch):
    first = model(batch.views, 2)
    for _ in range(5):
        torch.testing.assert_close(model(batch.views, 2)[1]["pts3d"], first[1]["pts3d"])
    turned = batch.views._replace(rays=batch.views.rays.flip(-1))
    key = "depth_along_ray"
    assert not torch.allclose(model(turned, 2)[1][key], first[1][key])
    chances = model.inner.geometric_input_config
    assert chances["depth_prob"] == chances["cam_prob"] == 0


def test_a_version_that_cannot_be_told_to_use_rays_is_refused(installed, monkeypatch):
    monkeypatch.setattr(StandIn, "from_pretrained", lambda name: nn.Linear(1, 1))
    with pytest.raises(UserError, match="geometric_input_config"):
        load_mapanything(MapAnythingOptions())


def test_central_depths_are_judged_as_distances_from_the_camera_of_each_pixel(batch):
    truth = true_geometry(batch.views, batch.truth.range_m, batch.truth.poses)
    exact = {
        "depth_along_ray": truth.depth_along_ray[:1, 1],
        "pts3d_cam": truth.points_own[:1, 1],
    }
    origins = batch.views.origins[1].permute(1, 2, 0).numpy()
    wanted = batch.truth.range_m[1].numpy()
    valid = wanted > 0
    found = range_along_rays(exact, origins)
    np.testing.assert_allclose(found[valid], wanted[valid], atol=1e-3)
    central = exact["depth_along_ray"][0, ..., 0].numpy()
    assert np.abs(central - wanted)[valid].max() > 1


def test_lengths_of_a_prediction_are_free_of_its_metric_factor(model, batch):
    found = model(batch.views, 2)
    geometry = found_geometry(found)
    torch.testing.assert_close(geometry.metric_scale, torch.full((2,), float(np.exp(2.0))))
    metric = geometry.points * geometry.metric_scale.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(metric[:, 1], found[1]["pts3d"])


def test_the_notes_loss_falls_by_its_own_gradient(model, batch):
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rows = []
    for _ in range(25):
        losses = overall_loss(model, batch, OverallLossOptions())
        rows.append({name: term.value.item() for name, term in losses.terms.items()})
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    for name in ("points_own", "depth", "translations", "scale"):
        assert rows[-1][name] < 0.9 * rows[0][name], name
    assert rows[-1]["points"] < rows[0]["points"]
    assert {"points", "quaternions", "translations", "scale", "mask"} <= losses.terms.keys()
    assert losses.terms["mask"].weight == 0.3


def test_the_notes_loss_teaches_confidence_and_survives_a_set_without_depth(model, batch):
    ranges = batch.truth.range_m.clone()
    ranges[:2] = 0  # both views of the first set
    blind = batch._replace(truth=batch.truth._replace(range_m=ranges))
    alone = SetBatch(
        type(batch.views)(*(each[2:] for each in batch.views)),
        type(batch.truth)(*(each[2:] for each in batch.truth[:3]), batch.truth.poses[1:]),
        batch.keys[2:],
        2,
    )
    losses, without = (overall_loss(model, each, OverallLossOptions()) for each in (blind, alone))
    for name in ("points", "points_own", "depth", "translations", "scale"):
        torch.testing.assert_close(losses.terms[name].value, without.terms[name].value)
    losses.terms["points"].value.backward()
    channel = model.inner.dense.bias.grad[14 * 14 : 2 * 14 * 14]  # the one that confidence is from
    assert channel.abs().max() > 0


def test_other_sizes_are_refused_with_those_that_fit(batch):
    narrow = type(batch.views)(*(t[..., :50] for t in batch.views))
    with pytest.raises(UserError, match="50x28"):
        as_mapanything(narrow, 2)


def test_a_model_with_other_outputs_is_refused(batch):
    class Other(nn.Module):
        def forward(self, views: list[dict]) -> list[dict]:
            return [{"pts3d": view["img"]} for view in views]

    with pytest.raises(UserError, match="without pts3d_cam"):
        MapAnythingAdapter(Other())(batch.views, 2)


def test_without_mapanything_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "mapanything.models", None)
    with pytest.raises(UserError, match="needs MapAnything"):
        load_mapanything(MapAnythingOptions())


def test_weights_that_are_not_there_are_named(installed):
    with pytest.raises(UserError, match="missing cannot be read"):
        load_mapanything(MapAnythingOptions(weights="missing"))


def test_the_notes_words_train_mapanything(installed, small_root, tmp_path):
    words = (
        "machine=local3090",
        "dataset=opv2v_cyl_coop_ft",
        "model=mapanything",
        "loss=overall_loss",
        "train_params=opv2v_cyl_coop",
        "dataset.max_sets_per_epoch=4",
        "dataset.val.max_sets_per_epoch=1",
    )
    here = (
        f"dataset.root={small_root}",
        "dataset.depth_root=null",
        "dataset.val.split=train",
        f"dataset.cache={tmp_path / 'cache'}",
        "panorama.width=56",
        "panorama.height=28",
        "train_params.epochs=2",
        "train_params.warmup_epochs=1",
        "gates=[]",
        "log_interval=1",
    )
    run = run_training(None, (*words, *here), directory=tmp_path / "run")
    last = read_records(run)[-1]
    assert last["step"] == 2
    assert last["lr/network"] == pytest.approx(5e-5)
    assert last["metric/trans_err_m_median"] > 0
    assert last["loss/translations"] > 0
