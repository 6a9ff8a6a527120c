import math

import pytest
import torch
from pinpad.models import distributions as d
from scipy import stats
from torch.autograd import gradcheck
from torch.distributions import Bernoulli, OneHotCategorical, kl_divergence
from torch.distributions import Normal as TorchNormal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def test_symlog_and_symexp_undo_each_other(generator):
    x = torch.cat([torch.linspace(-1e4, 1e4, 501), torch.linspace(-1e-3, 1e-3, 51)]).double()
    torch.testing.assert_close(d.symexp(d.symlog(x)), x, rtol=1e-9, atol=1e-12)
    assert d.symlog(torch.tensor(math.e - 1)) == pytest.approx(1)
    assert d.symlog(torch.tensor(1 - math.e)) == pytest.approx(-1)


def test_two_hot_weights_give_back_the_value(generator):
    two_hot = d.TwoHot(63, 300.0)
    value = torch.cat([torch.randn(2_000, generator=generator) * 50, two_hot.bins, torch.zeros(1)])
    weights = two_hot.encode(value)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(value)))
    decoded = (weights.double() * two_hot.bins.double()).sum(-1)
    torch.testing.assert_close(decoded, value.double().clamp(-300, 300), rtol=1e-5, atol=1e-5)
    used = weights > 0
    assert used.sum(-1).max() == 2
    first, last = used.int().argmax(-1), 62 - used.flip(-1).int().argmax(-1)
    assert ((last - first) <= 1).all()
    assert two_hot.bins[31] == 0
    torch.testing.assert_close(two_hot.bins[[0, -1]], torch.tensor([-300.0, 300.0]))


def test_equal_logits_mean_exactly_zero():
    assert (d.TwoHot(255, 1e6).mean(torch.zeros(4, 255)) == 0).all()


def test_the_two_hot_mean_is_the_expectation(generator):
    two_hot = d.TwoHot(21, 50.0)
    logits = torch.randn(7, 21, generator=generator)
    expected = (logits.double().softmax(-1) * two_hot.bins.double()).sum(-1)
    torch.testing.assert_close(two_hot.mean(logits).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_two_hot_loss_is_a_cross_entropy(generator):
    two_hot = d.TwoHot(21, 50.0)
    logits = torch.randn(9, 21, generator=generator)
    value = torch.randn(9, generator=generator) * 10
    expected = torch.nn.functional.cross_entropy(logits, two_hot.encode(value), reduction="none")
    torch.testing.assert_close(two_hot.loss(logits, value), expected)


def test_unimix_mixes_in_the_uniform(generator):
    logits = torch.randn(5, 8, generator=generator) * 100
    mixed = d.unimix(logits, 0.01).exp()
    torch.testing.assert_close(mixed, 0.99 * logits.softmax(-1) + 0.01 / 8)
    torch.testing.assert_close(d.unimix(logits, 0.0), logits.log_softmax(-1))


def test_one_hot_draws_follow_their_probabilities(generator):
    logits = d.unimix(torch.tensor([0.0, 1.0, -1.0, 2.0]), 0.01)
    draws = d.sample_one_hot(logits.expand(40_000, 4), generator)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws.sum(-1) == 1).all()
    found = stats.chisquare(draws.sum(0).numpy(), (logits.exp() * 40_000).numpy())
    assert found.pvalue > 1e-3


def test_the_classes_may_lie_in_any_dimension(generator):
    logits = torch.randn(4, 6, 3, generator=generator)
    mixed = d.unimix(logits, 0.1, dim=1)
    torch.testing.assert_close(mixed, d.unimix(logits.transpose(1, 2), 0.1).transpose(1, 2))
    draws = d.sample_one_hot(mixed.expand(20_000, 4, 6, 3), generator, dim=-2)
    assert (draws.sum(-2) == 1).all()
    torch.testing.assert_close(draws.mean(0), mixed.exp(), rtol=0, atol=0.02)


def test_a_one_hot_draw_passes_the_gradient_of_its_probabilities(generator):
    logits = torch.randn(3, 4, generator=generator, requires_grad=True)
    weights = torch.randn(3, 4, generator=generator)
    (d.sample_one_hot(logits.log_softmax(-1), generator) * weights).sum().backward()
    ours = logits.grad
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), logits)
    torch.testing.assert_close(ours, expected)


def test_categorical_kl_agrees_with_torch(generator):
    p, q = (torch.randn(6, 3, 5, generator=generator).log_softmax(-1) for _ in range(2))
    expected = kl_divergence(OneHotCategorical(logits=p), OneHotCategorical(logits=q)).sum(-1)
    torch.testing.assert_close(d.categorical_kl(p, q), expected)


def test_normal_kl_and_draws_agree_with_torch(generator):
    p, q = (d.normal_from(torch.randn(6, 10, generator=generator)) for _ in range(2))
    expected = kl_divergence(TorchNormal(*p), TorchNormal(*q)).sum(-1)
    torch.testing.assert_close(d.normal_kl(p, q), expected)
    one = d.Normal(torch.full((50_000,), 2.0), torch.full((50_000,), 0.5))
    assert stats.kstest(one.sample(generator).numpy(), stats.norm(2.0, 0.5).cdf).pvalue > 1e-3


def test_deviations_stay_in_their_range():
    parameters = torch.tensor([0.0, -1e4, 0.0, 1e4]).reshape(1, 4)[:, [0, 2, 1, 3]]
    normal = d.normal_from(parameters)
    torch.testing.assert_close(normal.std, torch.tensor([[0.1, 2.1]]))


def test_bernoulli_kl_agrees_with_torch_and_survives_any_logits(generator):
    p, q = (torch.randn(200, generator=generator).double() * 4 for _ in range(2))
    expected = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q))
    torch.testing.assert_close(d.bernoulli_kl(p, q).double(), expected, rtol=1e-4, atol=1e-5)
    extreme = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    grid = d.bernoulli_kl(extreme[:, None], extreme[None])
    assert grid.isfinite().all()
    assert (grid >= -1e-6).all()
    grid.sum().backward()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences(generator, monkeypatch):
    p, q = (torch.randn(2, 3, generator=generator).double().requires_grad_() for _ in range(2))
    # fp32 is too coarse for finite differences: the formulas are checked without that step.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    assert gradcheck(d.bernoulli_kl, (p, q))
    assert gradcheck(
        lambda a, b: d.categorical_kl(*(x.log_softmax(-1)[None] for x in (a, b))), (p, q)
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0])
def test_boundaries_are_bernoulli_at_every_temperature(temperature, generator):
    for logit in (-2.0, 0.0, 1.3):
        drawn = d.sample_boundary(torch.full((40_000,), logit), temperature, generator).hard
        count = int(drawn.sum())
        chance = 1 / (1 + math.exp(-logit))
        assert stats.binomtest(count, 40_000, chance).pvalue > 1e-3
        assert set(drawn.unique().tolist()) == {0.0, 1.0}


def test_a_boundary_passes_the_gradient_of_its_relaxation():
    logit = torch.linspace(-3, 3, 50, dtype=torch.float32, requires_grad=True)
    temperature, step = 0.7, 1e-3

    uniform = torch.empty(50).uniform_(generator=torch.Generator().manual_seed(0)).double()

    def relaxed(offset):
        noise = uniform.log() - (1 - uniform).log()
        return 1 / (1 + (-(logit.detach().double() + offset + noise) / temperature).exp())

    d.sample_boundary(logit, temperature, torch.Generator().manual_seed(0)).hard.sum().backward()
    difference = (relaxed(step) - relaxed(-step)) / (2 * step)
    assert logit.grad is not None
    torch.testing.assert_close(logit.grad.double(), difference, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "draws", [500_000, pytest.param(10_000_000, marks=pytest.mark.slow)], ids=["half", "ten"]
)
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_millions_of_boundaries_in_half_precision_hold_no_nan(precision, draws, generator):
    # Logits of all sizes up to 1e4, as a half-precision layer gives them.
    logits = torch.tensor([-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4], dtype=precision)
    count, broken, ones = 0, 0, 0.0
    with torch.autocast("cpu", dtype=precision):
        while count < draws:
            draw = d.sample_boundary(logits.repeat(min(150_000, draws // 7)), 1.0, generator)
            broken += int((~draw.hard.isfinite()).sum() + (~draw.relaxed_logit.isfinite()).sum())
            ones += float(draw.hard.reshape(-1, 7)[:, 3].sum())
            count += draw.hard.numel()
        assert draw.hard.dtype == torch.float32
    assert broken == 0
    assert stats.binomtest(int(ones), count // 7, 0.5).pvalue > 1e-3


def test_half_precision_layers_do_not_reach_the_divergences(generator):
    wide = torch.randn(3, 4, 8, generator=generator) * 200
    for precision in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=precision):
            p = d.unimix(wide.to(precision), 0.01)
            q = d.unimix(-wide.to(precision), 0.01)
            kl = d.categorical_kl(p, q)
            normal = d.normal_from(wide.to(precision))
            assert kl.dtype == normal.std.dtype == p.dtype == torch.float32
            assert kl.isfinite().all()
            assert d.normal_kl(normal, d.Normal(-normal.mean, normal.std)).isfinite().all()
            assert d.sample_one_hot(p, generator).isfinite().all()
