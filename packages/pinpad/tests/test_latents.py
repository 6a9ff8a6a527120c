import pytest
import torch
from pinpad.models.distributions import Normal
from pinpad.models.latents import Categories, Latent, divergence
from scipy import stats
from torch.distributions import Categorical, Independent, kl_divergence
from torch.distributions import Normal as TorchNormal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(4)


def by_torch(drawn):
    """The same distribution by torch's own classes."""
    if isinstance(drawn, Normal):
        return Independent(TorchNormal(*drawn), 1)
    return Independent(Categorical(logits=drawn.log_probability.transpose(-1, -2)), 1)


@pytest.mark.parametrize("classes", [0, 4])
def test_divergence_and_entropy_are_torch_s(classes, generator):
    latent = Latent(6, classes)
    p, q = (
        latent.distribution(torch.randn(5, latent.parameters, generator=generator))
        for _ in range(2)
    )
    torch.testing.assert_close(divergence(p, q), kl_divergence(by_torch(p), by_torch(q)))
    torch.testing.assert_close(p.entropy(), by_torch(p).entropy())


def test_a_draw_is_one_class_of_each_variable_by_its_probability(generator):
    latent = Latent(2, 3)
    drawn = latent.distribution(torch.tensor([0.0, 1.0, 2.0, 0.0, -1.0, 3.0]))
    assert isinstance(drawn, Categories)
    many = Categories(drawn.log_probability.expand(20_000, 3, 2))
    hard = many.sample(generator)
    assert hard.shape == (20_000, latent.width)
    hard = hard.unflatten(-1, (3, 2))
    assert (hard.sum(-2) == 1).all()
    # Classes first: the second variable has the logits 1, 0 and 3.
    expected = torch.tensor([1.0, 0.0, 3.0]).softmax(-1) * 0.99 + 0.01 / 3
    torch.testing.assert_close(drawn.log_probability[:, 1].exp(), expected)
    for variable in range(2):
        counts = hard[:, :, variable].sum(0).numpy()
        probabilities = drawn.log_probability[:, variable].exp().numpy()
        assert stats.chisquare(counts, probabilities / probabilities.sum() * 20_000).pvalue > 1e-3


def test_kinds_of_latents_do_not_mix(generator):
    normal = Latent(4).distribution(torch.randn(2, 8, generator=generator))
    classes = Latent(2, 4).distribution(torch.randn(2, 8, generator=generator))
    with pytest.raises(TypeError, match="Normal and Categories"):
        divergence(normal, classes)
