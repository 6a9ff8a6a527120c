import dataclasses

import pytest
import torch
from pinpad.models.distributions import normal_from
from pinpad.models.dynamics import Rollout
from pinpad.models.layers import NormedGru, mlp, where_first, zero_last
from pinpad.models.rssm import Rssm, RssmSettings, RssmState
from pinpad.models.vta import BoundaryDetector, Vta, VtaSettings
from torch.distributions import Bernoulli, Normal, OneHotCategorical, kl_divergence

STEPS, BATCH, EMBEDDING, ACTIONS = 12, 3, 10, 5
SMALL_RSSM = RssmSettings(deter=16, variables=3, classes=4, hidden=16)
SMALL_VTA = VtaSettings(abs_belief=12, abs_stoch=4, obs_belief=16, obs_stoch=6, hidden=16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def inputs(generator, steps=STEPS, batch=BATCH):
    embedding = torch.randn(steps, batch, EMBEDDING, generator=generator)
    number = torch.randint(ACTIONS, (steps, batch), generator=generator)
    action = torch.nn.functional.one_hot(number, ACTIONS).float()
    return embedding, action, torch.zeros(steps, batch, dtype=torch.bool)


def rssm(**changed):
    torch.manual_seed(1)
    return Rssm(EMBEDDING, ACTIONS, dataclasses.replace(SMALL_RSSM, **changed))


def vta(**changed):
    torch.manual_seed(1)
    return Vta(EMBEDDING, ACTIONS, dataclasses.replace(SMALL_VTA, **changed))


def vta_of_today(**changed):
    return vta(classes=3, at_read="carry", abs_input="observation", **changed)


def boundaries(rollout: Rollout):
    assert rollout.boundaries is not None
    return rollout.boundaries


def test_the_cell_is_the_written_formula(generator):
    torch.manual_seed(0)
    cell = NormedGru(4, 6)
    x, h = torch.randn(5, 4, generator=generator), torch.randn(5, 6, generator=generator)
    raw = torch.cat([x, h], -1) @ cell.gates.weight.T
    centred = raw - raw.mean(-1, keepdim=True)
    normed = centred / (raw.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    reset, candidate, update = normed.split(6, -1)
    u = 1 / (1 + (1 - update).exp())
    expected = u * (torch.sigmoid(reset) * candidate).tanh() + (1 - u) * h
    torch.testing.assert_close(cell(x, h), expected, rtol=1e-4, atol=1e-5)


def test_a_network_can_begin_without_an_opinion(generator):
    head = zero_last(mlp(4, [8], 3))
    assert (head(torch.randn(6, 4, generator=generator)) == 0).all()
    with pytest.raises(TypeError, match="SiLU"):
        zero_last(mlp(4, [8]))


def test_a_beginning_heals_a_state_that_is_not_a_number():
    state = torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])
    found = where_first(torch.tensor([True, False]), state)
    assert found.tolist() == [[0, 0], [2, 3]]


@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_shapes_are_those_of_the_windows(make, generator):
    model = make()
    rollout = model.observe(*inputs(generator), generator)
    assert rollout.feature.shape == (STEPS, BATCH, model.feature_dim)
    assert rollout.surprise.shape == (STEPS, BATCH)
    torch.testing.assert_close(model.feature(rollout.state), rollout.feature)
    last = type(rollout.state)(*(part[-1] for part in rollout.state))
    action = torch.eye(ACTIONS)[torch.tensor([0, 2, 4])]
    later = model.imagine(last, action, generator)
    assert [part.shape for part in later] == [part.shape for part in last]


@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_every_parameter_learns_from_the_losses(make, generator):
    model = make(free_nats=0.0)
    rollout = model.observe(*inputs(generator), generator)
    total = sum(part.value * part.weight for part in rollout.losses.values())
    (total + rollout.feature.square().mean()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_one_window_says_nothing_about_another(make, generator):
    model = make().eval()
    embedding, action, first = inputs(generator)
    other = embedding.clone()
    other[:, 1] += 1
    one = model.observe(embedding, action, first, torch.Generator().manual_seed(5))
    two = model.observe(other, action, first, torch.Generator().manual_seed(5))
    torch.testing.assert_close(one.feature[:, [0, 2]], two.feature[:, [0, 2]])
    assert not torch.equal(one.feature[:, 1], two.feature[:, 1])


@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_a_broken_episode_does_not_reach_the_next_one(make, generator):
    model = make()
    embedding, action, first = inputs(generator)
    first[6] = True
    embedding[2, 0] = float("nan")
    if make is not rssm:  # its detector sees two frames ahead, so the break lies further back
        embedding[2, 0] = 0
        embedding[1, 0] = float("nan")
    rollout = model.observe(embedding, action, first, generator)
    assert rollout.feature[3, 0].isnan().any()
    assert rollout.feature[6:].isfinite().all()
    assert rollout.feature[:, 1:].isfinite().all()


@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_the_past_of_an_episode_does_not_reach_the_next_one(make, generator):
    model = make().eval()
    embedding, action, first = inputs(generator)
    first[6] = True
    other = embedding.clone()
    other[:4] += 1  # two frames before the reset, which a detector may see
    one = model.observe(embedding, action, first, torch.Generator().manual_seed(5))
    two = model.observe(other, action, first, torch.Generator().manual_seed(5))
    torch.testing.assert_close(one.feature[6:], two.feature[6:])


@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_an_action_changes_what_is_imagined(make, generator):
    model = make().eval()
    rollout = model.observe(*inputs(generator), generator)
    state = type(rollout.state)(*(part[-1] for part in rollout.state))
    if make is not rssm:  # a READ begins from the abstract level alone
        with torch.no_grad():
            model.next_boundary.bias.fill_(-100.0)
    one, two = (
        model.imagine(state, torch.eye(ACTIONS)[[a] * BATCH], torch.Generator().manual_seed(1))
        for a in (0, 3)
    )
    deterministic = 0 if make is rssm else 2
    assert not torch.equal(one[deterministic], two[deterministic])


def test_rssm_divergences_are_torch_s_in_both_directions(generator):
    model = rssm(free_nats=0.0)
    embedding, action, first = inputs(generator)
    rollout = model.observe(embedding, action, first, generator)
    deter = rollout.state.deter

    def latent(logits):
        probabilities = logits.unflatten(-1, (4, 3)).softmax(-2) * 0.99 + 0.01 / 4
        return OneHotCategorical(probs=probabilities.transpose(-1, -2))

    posterior = latent(model.posterior(torch.cat([deter, embedding], -1)))
    prior = latent(model.prior(deter))
    kl = kl_divergence(posterior, prior).sum(-1)
    torch.testing.assert_close(rollout.surprise, kl.detach(), rtol=1e-4, atol=1e-5)
    for name in ("dyn", "rep"):
        torch.testing.assert_close(rollout.losses[name].value, kl.mean(), rtol=1e-4, atol=1e-5)
    head = list(model.prior.parameters())
    gradients = torch.autograd.grad(rollout.losses["rep"].value, head, allow_unused=True)
    # The prior does not learn from `rep` by its own weights, the posterior not from `dyn`.
    assert all(gradient is None for gradient in gradients)
    own = torch.autograd.grad(
        rollout.losses["dyn"].value, model.posterior[-1].bias, allow_unused=True, retain_graph=True
    )
    assert own[0] is None or not torch.equal(own[0], torch.zeros_like(own[0]))


@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_divergences_below_the_free_nats_have_no_gradient(make, generator):
    model = make(free_nats=1e6)
    rollout = model.observe(*inputs(generator), generator)
    assert rollout.losses["dyn"].value == 1e6
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = rollout.losses["dyn"].value + rollout.losses["rep"].value
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


def test_copy_keeps_the_abstract_level_to_the_bit_and_read_begins_anew(generator):
    model = vta()
    rollout = model.observe(*inputs(generator, steps=40), generator)
    read, state = boundaries(rollout).read, rollout.state
    assert (read[0] == 1).all()
    assert 0.1 < read[1:].mean() < 0.9
    for t in range(1, 40):
        copied = read[t] == 0
        for part in (state.abs_belief, state.abs_stoch):
            assert torch.equal(part[t][copied], part[t - 1][copied])
            assert (part[t][~copied] != part[t - 1][~copied]).any(-1).all()
        # At READ the observation belief is a function of the abstract level alone.
        above = torch.cat([state.abs_belief[t], state.abs_stoch[t]], -1)
        assert model.obs_begin is not None
        begun = model.obs_begin(above).tanh()
        torch.testing.assert_close(state.obs_belief[t][~copied], begun[~copied])
        lengths = torch.where(copied, state.length[t - 1, :, 0] + 1, 1.0)
        assert torch.equal(state.length[t, :, 0], lengths)
    assert torch.equal(state.number[-1, :, 0], read.sum(0))


@pytest.mark.parametrize(("abs_input", "hears"), [("abstract", False), ("observation", True)])
def test_the_abstract_level_expects_by_what_is_done_only_if_it_hears_it(
    abs_input, hears, generator
):
    model = vta(abs_input=abs_input)
    rollout = model.observe(*inputs(generator), generator)
    last = type(rollout.state)(*(part[-1] for part in rollout.state))
    with torch.no_grad():
        model.next_boundary.bias.fill_(100.0)  # each window reads
        beliefs = [
            model.imagine(state, torch.eye(ACTIONS)[[a] * BATCH], generator).abs_belief
            for a, state in ((0, last), (3, last), (0, last._replace(obs_belief=-last.obs_belief)))
        ]
    assert not torch.equal(beliefs[0], last.abs_belief)
    for other in beliefs[1:]:
        assert torch.equal(beliefs[0], other) is not hears


def test_in_imagination_as_in_a_rollout_read_is_the_cell_and_copy_the_last_state(generator):
    model = vta_of_today()
    rollout = model.observe(*inputs(generator, batch=40), generator)
    last = type(rollout.state)(*(part[-1] for part in rollout.state))
    action = torch.eye(ACTIONS)[torch.arange(40) % ACTIONS]
    with torch.no_grad():
        later = model.imagine(last, action, generator)
        heard = torch.cat([last.abs_stoch, last.obs_stoch, last.obs_belief, action], -1)
        cell = model.abs_cell(heard, last.abs_belief)
    read = later.length[:, 0] == 1
    assert 0 < read.sum() < 40
    torch.testing.assert_close(later.abs_belief[read], cell[read])
    assert torch.equal(later.abs_belief[~read], last.abs_belief[~read])
    assert torch.equal(later.abs_stoch[~read], last.abs_stoch[~read])
    assert (later.abs_stoch[read].unflatten(-1, (3, 4)).sum(-2) == 1).all()


def test_a_belief_that_is_carried_goes_on_through_every_boundary(generator):
    model = vta(at_read="carry")
    embedding, action, first = inputs(generator, steps=30)
    state = model.observe(embedding, action, first, generator).state
    for t in range(1, 30):
        parts = (state.obs_stoch[t - 1], action[t], state.abs_belief[t], state.abs_stoch[t])
        entered = model.obs_enter(torch.cat(parts, -1))
        expected = model.obs_cell(entered, state.obs_belief[t - 1])
        torch.testing.assert_close(state.obs_belief[t], expected)


def test_vta_divergences_are_torch_s(generator):
    model = vta(free_nats=0.0, boundary_rate=0.1, boundary_scale=0.5)
    embedding, action, first = inputs(generator)
    rollout = model.observe(embedding, action, first, generator)
    state, found = rollout.state, boundaries(rollout)

    def normal(network, *parts):
        return Normal(*normal_from(network(torch.cat(parts, -1))))

    abstract = kl_divergence(
        normal(model.abs_posterior, state.abs_belief, embedding),
        normal(model.abs_prior, state.abs_belief),
    ).sum(-1)
    observation = kl_divergence(
        normal(model.obs_posterior, state.obs_belief, embedding),
        normal(model.obs_prior, state.obs_belief),
    ).sum(-1)
    expected = found.read * abstract + observation
    torch.testing.assert_close(rollout.surprise, expected.detach(), rtol=1e-4, atol=1e-4)
    above = (found.read * abstract).detach()
    torch.testing.assert_close(found.abs_surprise, above, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rollout.losses["dyn"].value, expected.mean(), rtol=1e-4, atol=1e-4)

    detector, online = Bernoulli(logits=found.logit), Bernoulli(logits=found.prior_logit)
    boundary = kl_divergence(detector, online)[1:].mean()
    for name in ("boundary_dyn", "boundary_rep"):
        torch.testing.assert_close(rollout.losses[name].value, boundary, rtol=1e-4, atol=1e-5)
    pull = kl_divergence(detector, Bernoulli(torch.tensor(0.1)))[1:].mean()
    torch.testing.assert_close(rollout.losses["boundary_rate"].value, pull, rtol=1e-4, atol=1e-5)
    assert rollout.losses["boundary_rate"].weight == 0.5
    before = torch.cat([state.obs_belief[:-1], state.obs_stoch[:-1], action[1:]], -1)
    torch.testing.assert_close(found.prior_logit[1:], model.next_boundary(before)[..., 0])


def test_surprise_is_in_nats_whatever_a_boundary_costs(generator):
    whole, tenth = vta(free_nats=0.0), vta(free_nats=0.0, abs_scale=0.1)
    tenth.load_state_dict(whole.state_dict())
    windows = inputs(generator)
    seed = torch.Generator().manual_seed(5)
    one = whole.eval().observe(*windows, seed)
    two = tenth.eval().observe(*windows, seed.manual_seed(5))
    assert boundaries(one).abs_surprise.sum() > 0
    torch.testing.assert_close(two.surprise, one.surprise)
    torch.testing.assert_close(boundaries(two).abs_surprise, boundaries(one).abs_surprise)
    cost = one.losses["dyn"].value - two.losses["dyn"].value
    torch.testing.assert_close(cost, 0.9 * boundaries(one).abs_surprise.mean())


def test_the_detector_feels_its_prior_and_the_prior_its_detector(generator):
    rollout = vta().observe(*inputs(generator), generator)
    model = vta()
    rollout = model.observe(*inputs(generator), generator)

    def touched(loss, module):
        gradients = torch.autograd.grad(
            rollout.losses[loss].value, list(module.parameters()), retain_graph=True
        )
        return any(g.any() for g in gradients)

    assert touched("boundary_rep", model.detector)
    assert touched("boundary_dyn", model.next_boundary)
    with pytest.raises(RuntimeError, match="unused|not have been used|used in the graph"):
        touched("boundary_rep", model.next_boundary)


def test_the_detector_sees_two_frames_ahead_and_back(generator):
    torch.manual_seed(0)
    detector = BoundaryDetector(EMBEDDING, 16)
    embedding = torch.randn(20, 1, EMBEDDING, generator=generator, requires_grad=True)
    detector(embedding)[10, 0].backward()
    assert embedding.grad is not None
    seen = embedding.grad.abs().sum((1, 2)).nonzero().flatten().tolist()
    assert seen == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("training", [False, True])
def test_a_high_force_on_both_is_a_clock(training, generator):
    model = vta(force="both", boundary_force_scale=10.0, max_seg_len=30).train(training)
    with torch.no_grad():
        model.detector.logit.bias.fill_(-40.0)  # left alone it would never read
    steps = 1_001 if not training else 91
    with torch.no_grad():
        rollout = model.observe(*inputs(generator, steps=steps, batch=1), generator)
    found = boundaries(rollout)
    fired = found.read[:, 0].nonzero().flatten().tolist()
    assert fired == list(range(0, steps, 30))
    if not training:
        assert len(fired) - 1 == 33  # as many as the clock condition of earlier runs had
    assert torch.equal(found.forced[1:, 0], found.read[1:, 0] > 0)
    assert rollout.metrics["forced_share"] == 1


def test_without_force_the_lengths_mean_nothing(generator):
    embedding, action, first = inputs(generator, steps=60)
    results = [
        vta(force="both", max_seg_len=length, max_seg_num=number).observe(
            embedding, action, first, torch.Generator().manual_seed(2)
        )
        for length, number in ((2, 1), (50, 200))
    ]
    assert torch.equal(results[0].feature, results[1].feature)
    assert results[0].metrics["forced_share"] == 0


def test_precedence_says_which_rule_wins(generator):
    rules = {"force": "both", "boundary_force_scale": 20.0, "max_seg_len": 5, "max_seg_num": 3}
    counts = {}
    for precedence in ("read", "copy"):
        model = vta(**rules, precedence=precedence).eval()
        rollout = model.observe(*inputs(generator, steps=60, batch=1), generator)
        counts[precedence] = int(boundaries(rollout).read.sum())
    assert counts["copy"] == 3
    assert counts["read"] >= 12


def test_the_paper_s_rule_binds_the_prior_in_training_only(generator):
    rules = {"force": "prior", "boundary_force_scale": 6.91, "max_seg_len": 3}
    embedding, action, first = inputs(generator, steps=40)
    for training in (True, False):
        model = vta(**rules).train(training)
        with torch.no_grad():
            model.detector.logit.bias.fill_(-1.0)  # some segments outlast the rule
        rollout = model.observe(embedding, action, first, torch.Generator().manual_seed(1))
        found, length = boundaries(rollout), rollout.state.length[:-1, :, 0]
        bound = found.prior_logit[1:][length >= 3]
        assert len(bound) > 0
        assert (bound == pytest.approx(2 * 6.91)) is training
        assert not found.forced.any()
        own = model.detector(embedding)
        torch.testing.assert_close(found.logit, own)


def test_evaluation_reads_where_the_logit_is_positive(generator):
    model = vta().eval()
    found = boundaries(model.observe(*inputs(generator), generator))
    assert torch.equal(found.read[1:] > 0, found.logit[1:] > 0)


def test_imagined_boundaries_follow_their_prior(generator):
    model = vta()
    rollout = model.observe(*inputs(generator, batch=1), generator)
    state = type(rollout.state)(*(part[-1].expand(4_000, -1) for part in rollout.state))
    with torch.no_grad():
        model.next_boundary.weight.zero_()
        model.next_boundary.bias.fill_(-1.0)
    later = model.imagine(state, torch.eye(ACTIONS)[[1]].expand(4_000, -1), generator)
    rate = (later.length == 1).float().mean()
    assert rate == pytest.approx(torch.tensor(-1.0).sigmoid().item(), abs=0.025)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [rssm, vta, vta_of_today])
def test_half_precision_rollouts_are_finite_with_their_gradients(make, precision, generator):
    model = make(free_nats=0.0)
    embedding, action, first = inputs(generator, steps=24, batch=8)
    with torch.autocast("cpu", dtype=precision):
        rollout = model.observe(embedding * 50, action, first, generator)
        total = sum(part.value * part.weight for part in rollout.losses.values())
    assert rollout.feature.isfinite().all()
    assert total.dtype == torch.float32
    assert total.isfinite()
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_zero_state_of_the_rssm_is_where_a_window_begins(generator):
    model = rssm()
    embedding, action, first = inputs(generator, steps=1)
    seen = model.observe(embedding, action, first, generator)
    nothing = RssmState(torch.zeros(BATCH, 16), torch.zeros(BATCH, 12))
    begun = model.imagine(nothing, torch.zeros(BATCH, ACTIONS), generator)
    torch.testing.assert_close(seen.state.deter[0], begun.deter)
