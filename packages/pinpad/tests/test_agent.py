import dataclasses

import pytest
import torch
from pinpad.models.agent import Agent, BehaviourSettings, Interest
from pinpad.models.dynamics import at
from pinpad.models.policy import lambda_returns
from pinpad.models.rssm import RssmSettings
from pinpad.models.vta import VtaSettings
from pinpad.models.world import Seen, WorldModel, WorldSettings

STEPS, BATCH, PIXELS, ACTIONS = 5, 4, 12, 5
KINDS = {
    "rssm": RssmSettings(deter=16, variables=3, classes=4, hidden=16),
    "vta": VtaSettings(abs_belief=12, abs_stoch=4, obs_belief=16, obs_stoch=6, hidden=16),
}
SMALL = BehaviourSettings(units=16, horizon=4, starts=10, entropy=0.01)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def agent(kind, **changed):
    torch.manual_seed(1)
    sizes = WorldSettings(embedding=16, decoder=16, reward=16)
    world = WorldModel(PIXELS, ACTIONS, KINDS[kind], sizes)
    made = Agent(world, ACTIONS, dataclasses.replace(SMALL, **changed))
    for module in (made.actor.network[-1], made.critic.network[-1], made.world.reward[-1]):
        torch.nn.init.normal_(module.weight, std=0.3)
    return made


def seen(generator):
    number = torch.randint(ACTIONS, (STEPS, BATCH), generator=generator)
    return Seen(
        torch.rand(STEPS, BATCH, PIXELS, generator=generator),
        torch.nn.functional.one_hot(number, ACTIONS).float(),
        torch.randn(STEPS, BATCH, generator=generator),
        torch.zeros(STEPS, BATCH, dtype=torch.bool),
    )


def test_an_agent_that_acts_sees_what_its_world_model_has_learnt_from(kind, generator, monkeypatch):
    model, windows = agent(kind).world.eval(), seen(generator)
    windows.is_first[3, 1] = True
    if kind == "vta":  # the agent's boundaries come from the prior: let both always read
        torch.nn.init.constant_(model.dynamics.detector.logit.bias, 100.0)
        always = lambda state, action, generator: torch.ones(BATCH, 1)  # noqa: E731
        monkeypatch.setattr(model.dynamics, "_prior_boundary", always)
    whole = model.rollout(windows, torch.Generator().manual_seed(2)).state
    state, again = model.dynamics.zeros(BATCH, windows.frame), torch.Generator().manual_seed(2)
    for t in range(STEPS):
        first = windows.is_first[t] if t else torch.ones(BATCH, dtype=torch.bool)
        embedding = model.embed(windows.frame[t])
        state = model.dynamics.filter(state, embedding, windows.action[t], first, again)
        for part, expected in zip(state, at(whole, t), strict=True):
            torch.testing.assert_close(part, expected)


def test_imagination_is_the_world_model_under_the_actor(kind, generator):
    model = agent(kind).eval()
    state = at(model.world.rollout(seen(generator), generator).state, -1)
    imagined = model.imagine(state, torch.Generator().manual_seed(3))
    again, dynamics = torch.Generator().manual_seed(3), model.world.dynamics
    for t in range(SMALL.horizon):
        torch.testing.assert_close(imagined.feature[t], dynamics.feature(state))
        action = model.actor.draw(dynamics.feature(state), again)
        assert torch.equal(imagined.action[t], action)
        state = dynamics.imagine(state, action, again)
    torch.testing.assert_close(imagined.feature[-1], dynamics.feature(state))


def test_the_actor_s_loss_is_reinforce_over_imagined_advantages(kind, generator):
    model = agent(kind).eval()
    state = at(model.world.rollout(seen(generator), generator).state, -1)
    imagined = model.imagine(state, generator)
    parts, _ = model._behaviour(imagined, Interest())
    with torch.no_grad():
        value = model.critic(imagined.feature)
        reward = model.world.predicted_reward(imagined.feature[1:])
        returns = lambda_returns(reward, value, SMALL.discount, SMALL.lam)
        scale = max(1.0, float(model.scale.high - model.scale.low))
    policy = torch.distributions.Categorical(logits=model.actor(imagined.feature[:-1]))
    gain = policy.log_prob(imagined.action.argmax(-1)) * (returns - value[:-1]) / scale
    expected = -(gain + SMALL.entropy * policy.entropy()).mean()
    torch.testing.assert_close(parts["actor"].value, expected)


def test_the_world_learns_from_what_was_seen_and_the_actor_from_what_was_imagined(kind, generator):
    model, windows = agent(kind, explorers=2, explorer_units=8), seen(generator)
    parts, _ = model.losses(windows, generator)
    own = {
        "actor": model.actor.network,
        "critic": model.critic.network,
        "explorers": model.explorers,
    }
    for name, network in own.items():
        parameters = dict(model.named_parameters())
        learning = {key: p for key, p in parameters.items() if p.requires_grad}
        gradients = torch.autograd.grad(
            parts[name].value, list(learning.values()), retain_graph=True, allow_unused=True
        )
        reached = {
            id(p) for p, g in zip(learning.values(), gradients, strict=True) if g is not None
        }
        assert reached == {id(p) for p in network.parameters()}, name
    world = sum(parts[name].value for name in parts.keys() - own.keys())
    world.backward()
    assert all(p.grad is None for network in own.values() for p in network.parameters())


def test_nobody_learns_to_act_before_the_model_has_learnt_something(kind, generator):
    parts, metrics = agent(kind).losses(seen(generator), generator, behaviour=False)
    assert not {"actor", "critic"} & parts.keys()
    assert "actor_entropy" not in metrics


def test_novelty_counts_as_much_as_it_is_asked_to(kind, generator):
    model = agent(kind, explorers=3, explorer_units=8).eval()
    state = at(model.world.rollout(seen(generator), generator).state, -1)
    imagined = model.imagine(state, generator)
    task = model.reward(imagined, Interest())
    both = model.reward(imagined, Interest(task=0.5, novelty=2.0))
    bonus = model.explorers.bonus(imagined.feature[:-1], imagined.action)
    torch.testing.assert_close(both, 0.5 * task + 2 * bonus)
    assert (bonus > 0).all()


class Corridor(torch.nn.Module):
    """A world that is known: eight cells in a row, reward on arrival at the last, then cell 0."""

    CELLS = feature_dim = 8

    def __init__(self):
        super().__init__()
        self.dynamics = self
        self.register_buffer("pixel_mean", torch.zeros(1))

    def feature(self, state):
        return state[0]

    def imagine(self, state, action, generator=None):
        place = state[0].argmax(-1)
        step = torch.tensor([-1, 0, 1])[action.argmax(-1)]
        after = torch.where(place == self.CELLS - 1, 0, (place + step).clamp_min(0))
        return (torch.nn.functional.one_hot(after, self.CELLS).float(),)

    def predicted_reward(self, feature):
        return feature[..., -1]


def test_an_actor_finds_the_way_in_a_world_that_is_known(generator):
    """Eight moves for each reward: the values are those of the geometric series."""
    torch.manual_seed(0)
    settings = BehaviourSettings(units=32, horizon=10, entropy=3e-3, discount=0.9, slow_rate=0.1)
    model = Agent(Corridor(), 3, settings)
    optimizer = torch.optim.Adam(
        [*model.actor.parameters(), *model.critic.network.parameters()], 3e-3
    )
    everywhere = torch.eye(Corridor.CELLS)
    for _ in range(250):
        parts, _ = model._behaviour(
            model.imagine((everywhere.repeat(8, 1),), generator), Interest()
        )
        optimizer.zero_grad()
        sum(part.value for part in parts.values()).backward()
        optimizer.step()
        model.critic.follow()
    assert (model.actor(everywhere)[:-1].argmax(-1) == 2).all()
    best = [0.9 ** (6 - cell) / (1 - 0.9**8) for cell in range(7)]
    torch.testing.assert_close(
        model.critic(everywhere)[:-1], torch.tensor(best), rtol=0.1, atol=0.05
    )
