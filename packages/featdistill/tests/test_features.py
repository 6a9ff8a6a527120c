"""The 52 features: their order and their scaling."""

import torch
from featdistill.features import FeatureScaling, gaussian_features
from featdistill.gaussians import Gaussians


def gaussians(n=40):
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    return Gaussians(normal(n, 3), normal(n, 3) - 5, normal(n, 4), normal(n) * 3, normal(n, 16, 3))


def test_features_stand_in_the_order_of_the_ply_file():
    model = gaussians()
    features = gaussian_features(model)
    assert features.shape == (40, 52)
    for channel in range(3):
        assert torch.equal(features[:, channel], model.sh[:, 0, channel])
        for k in range(15):  # f_rest is channel-major
            column = 3 + 15 * channel + k
            assert torch.equal(features[:, column], model.sh[:, 1 + k, channel])
    assert torch.equal(features[:, 48], torch.sigmoid(model.opacity_logits))
    assert torch.equal(features[:, 49:], model.log_scales)


def test_standardised_features_have_mean_0_and_deviation_1_weighted_by_opacity():
    model = gaussians()
    scaling = FeatureScaling.of(model)
    standardised = scaling.standardise(gaussian_features(model)).double()
    weights = torch.sigmoid(model.opacity_logits).double()
    weights = (weights / weights.sum())[:, None]
    mean = (weights * standardised).sum(0)
    variance = (weights * (standardised - mean) ** 2).sum(0)
    torch.testing.assert_close(mean, torch.zeros(52, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(variance, torch.ones(52, dtype=torch.float64), rtol=1e-4, atol=0)
    restored = scaling.restore(scaling.standardise(gaussian_features(model)))
    torch.testing.assert_close(restored, gaussian_features(model))


def test_an_invisible_gaussian_does_not_move_the_scaling():
    model = gaussians()
    outlier = model.map(lambda tensor: tensor[:1] * 100)
    outlier.opacity_logits.fill_(-60)
    both = Gaussians(
        *(torch.cat(pair) for pair in zip(model.tensors(), outlier.tensors(), strict=True))
    )
    torch.testing.assert_close(FeatureScaling.of(both).mean, FeatureScaling.of(model).mean)


def test_features_that_do_not_vary_are_only_centred():
    model = gaussians()
    model.sh[:, 1:] = 0
    standardised = FeatureScaling.of(model).standardise(gaussian_features(model))
    assert torch.all(standardised[:, 3:48] == 0)
