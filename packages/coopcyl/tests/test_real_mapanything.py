"""The adapter's contract on the real MapAnything, small and with random weights, if installed."""

import importlib

import numpy as np
import pytest
import torch
from coopcyl.batches import SetBatch
from coopcyl.geometry.panorama import Panorama
from coopcyl.loss_options import OverallLossOptions
from coopcyl.models.mapanything import OUTPUT_KEYS, MapAnythingAdapter, load_mapanything
from coopcyl.models.options import MapAnythingOptions
from coopcyl.models.predict import predict
from coopcyl.overall_loss import overall_loss

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PANORAMA = Panorama(112, 28, "equirect_band", -42, 42)
SMALL = [
    "machine=default",
    "dataset=default",
    "model=mapanything",
    "model/task=aug_training",
    "model/encoder=dinov2_large",
    "model/info_sharing=aat_ifr_24_layers",
    "model.encoder.size=small",
    "+model.info_sharing.module_args.dim=384",
    "+model.info_sharing.module_args.num_heads=6",
    "model.info_sharing.module_args.depth=4",
    "model.info_sharing.module_args.indices=[1,2]",
]


@pytest.fixture(scope="module")
def model() -> MapAnythingAdapter:
    """113.6 M random weights; nothing is downloaded: the encoder is the one in its own folders."""
    models = pytest.importorskip("mapanything.models")

    def encoder(repository: str, name: str, **options: object) -> torch.nn.Module:
        vendored = importlib.import_module("mapanything.models.external.dinov2.hub.backbones")
        return getattr(vendored, name)(pretrained=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "load", encoder)
        torch.manual_seed(0)
        settings = models._init_hydra_config("configs/train.yaml", overrides=SMALL).model
        inner = models.init_model(settings.model_str, settings.model_config)
        patch.setattr(models.MapAnything, "from_pretrained", lambda name: inner)
        return load_mapanything(MapAnythingOptions()).eval()


@pytest.fixture(scope="module")
def batch(two_sets) -> SetBatch:
    return two_sets(PANORAMA)


def test_it_takes_our_views_and_returns_what_we_read(model, batch):
    with torch.no_grad():
        outputs = model(batch.views, 2)
    shapes = {"pts3d": (3,), "pts3d_cam": (3,), "ray_directions": (3,), "depth_along_ray": (1,)}
    small = {"cam_trans": (2, 3), "cam_quats": (2, 4), "metric_scaling_factor": (2, 1)}
    for view in outputs:
        assert set(OUTPUT_KEYS) <= view.keys()
        for key in OUTPUT_KEYS:
            assert view[key].shape == small.get(key, (2, 28, 112, *shapes.get(key, ()))), key
        own = view["depth_along_ray"] * view["ray_directions"]
        torch.testing.assert_close(view["pts3d_cam"], own, rtol=1e-4, atol=1e-5)
        assert view["conf"].min() >= 1
    found = predict(model, type(batch.views)(*(each[:2] for each in batch.views)))
    np.testing.assert_allclose(found.poses[0], np.eye(4), atol=1e-6)


def test_it_uses_the_rays_every_time(model, batch):
    turned = batch.views._replace(rays=batch.views.rays.flip(-1))
    with torch.no_grad():
        first, *again = (model(batch.views, 2)[1]["pts3d"] for _ in range(6))
        other = model(turned, 2)[1]["pts3d"]
    for each in again:
        torch.testing.assert_close(each, first)
    assert (other - first).abs().max() > 1e-3


def test_the_notes_loss_reaches_every_weight(model, batch):
    model.train()
    overall_loss(model, batch, OverallLossOptions()).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.eval()
