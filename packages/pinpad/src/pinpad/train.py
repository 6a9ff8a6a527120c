"""Train an agent: it plays, remembers, learns a world model from that, and to act within it.

The loop's step is the update. Before it the rooms are played in until the frames learnt from are
`train_ratio` times the new ones: a pure function of the step, so a resumed run plays the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from loom import distributed
from loom.device import choose_device
from loom.errors import UserError
from loom.gates import Gate
from loom.loop import Every, FitResult, Losses, Term, TrainState, fit
from loom.run import Run
from torch import Tensor

from pinpad.data.episodes import require_same_frames
from pinpad.data.players import parse_mix
from pinpad.data.replay import Replay
from pinpad.envs.layouts import MOVES, layout_name
from pinpad.models.agent import TASK, Agent, Interest
from pinpad.models.laprop import LaProp
from pinpad.models.world import Seen
from pinpad.returns import RETURN_STEPS, compare, write_returns, yardsticks
from pinpad.rooms import Acting, Rooms, fill
from pinpad.tensors import pixel_statistics, seen
from pinpad.train_config import TrainConfig
from pinpad.train_world import (
    PRECISIONS,
    Evaluation,
    heldout_episodes,
    new_model,
)

RECENT = 400
"""Steps of each room that the return while training is measured over."""
_FRAMES_FOR_STATISTICS = 20_000


def new_agent(config: TrainConfig, pixels: int, generator: torch.Generator) -> Agent[Any]:
    """Make an agent whose weights follow from a generator."""
    world = new_model(config, pixels, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return Agent(world, len(MOVES), config.behaviour())


def new_optimizer(config: TrainConfig, agent: Agent[Any]) -> torch.optim.Optimizer:
    """Name the parts that have a rate of their own."""
    world = list(agent.world.parameters())
    if agent.explorers is not None:
        world += list(agent.explorers.parameters())
    groups = [
        {"name": "world", "params": world},
        {"name": "actor", "params": list(agent.actor.parameters())},
        {"name": "critic", "params": list(agent.critic.network.parameters())},
    ]
    if config.opt == "laprop":
        return LaProp(groups, clip=config.agc)
    return torch.optim.Adam(groups, eps=1e-8)


def new_memory(config: TrainConfig) -> Replay:
    """Make an empty memory for the rooms of a run."""
    return Replay(
        layout_name(config.task),
        config.envs,
        max(config.dataset_size // config.envs, config.batch_length),
        size=config.size,
        batch_size=config.batch_size,
        batch_length=config.batch_length,
        reward_windows=config.reward_windows,
        recent_windows=config.recent_windows,
        recent_steps=config.recent_steps // config.envs,
        seed=config.seed,
    )


def train(config: TrainConfig, run: Run[TrainConfig]) -> tuple[Agent[Any], FitResult]:
    """Play and learn, writing records and checkpoints into the run's directory."""
    if distributed.shard().world > 1:
        raise UserError(
            "an agent that acts trains in one process",
            hint="start it without torchrun; wm_only=true learns in several",
        )
    scripted = yardsticks(config.judging())  # what cannot be judged at the end is not begun
    heldout = heldout_episodes(config)
    require_same_frames((config.size, config.size, 3), heldout[0].image.shape[1:])
    rooms = Rooms(
        layout_name(config.task),
        config.envs,
        size=config.size,
        length=config.time_limit,
        seed=config.seed,
    )
    memory, rng = new_memory(config), run.rng("prefill")
    rooms.scatter(rng)
    fill(memory, rooms, parse_mix(config.players), config.prefill, rng)
    run.info(
        f"[prefill] {len(memory):,} steps of {config.players}, {memory.rewards} of them with reward"
    )
    device = choose_device(config.device)
    agent = new_agent(config, rooms.image[0].size, run.generator("agent")).to(device)
    agent.world.fit_pixels(*pixel_statistics(memory.frames(_FRAMES_FOR_STATISTICS)))
    acting, filled = Acting(agent, rooms), memory.total
    draws, moves = (run.generator(name, device.type) for name in ("latents", "actions"))
    state = TrainState(
        agent,
        new_optimizer(config, agent),
        generators={"latents": draws, "actions": moves},
        extras={"memory": memory, "acting": acting},
    )

    def play(step: int) -> None:
        while memory.total < filled + config.acted(step):
            reward = acting.step(moves)
            memory.add(rooms.envs, rooms.action, reward, rooms.is_first)

    def loss(agent: Agent[Any], data: Seen, step: int) -> Losses:
        env_steps = memory.total * config.envs
        exploring = config.explores(env_steps)
        interest = Interest(config.expl_extr_scale, config.expl_intr_scale) if exploring else TASK
        parts, metrics = agent.losses(data, draws, interest, behaviour=step >= config.pretrain // 2)
        measured: dict[str, float | Tensor | None] = {
            "train/env_steps": float(env_steps),
            "train/rewards_held": float(memory.rewards),
            **{f"train/{name}": value for name, value in metrics.items()},
        }
        if memory.total > filled:
            measured["metric/train_return"] = recent_return(memory, filled)
        terms = {name: Term(part.value, part.weight) for name, part in parts.items()}
        return Losses(terms, measured)

    steps, windows = config.all_updates(), Evaluation(heldout, config)

    def evaluate(agent: Agent[Any]) -> dict[str, float | None]:
        found = windows(agent.world)
        if state.step >= steps:
            earned = compare(agent, config.judging(), scripted)
            write_returns(run.path("evaluation"), earned)
            found |= {"metric/return": earned[0].mean, "metric/return_score": earned[0].score}
            found |= {f"baseline/{row.who}/return": row.mean for row in earned[1:]}
        return found

    result = fit(
        run,
        state,
        steps=steps,
        batch=lambda step, shard: seen(memory.batch(step, shard), device),
        loss=loss,
        lr=lambda step: {
            "world": config.model_lr,
            "actor": config.actor_lr,
            "critic": config.critic_lr,
        },
        evaluate=Every(config.eval_every, evaluate),
        gates=(*config.gates, *_reward_gate(config)),
        before_step=play,
        after_step=lambda step: agent.critic.follow(),
        clip_norm=config.grad_clip if config.opt == "adam" else None,
        precision=PRECISIONS[config.precision],
        log_interval=config.log_every,
        checkpoint_interval=config.eval_every,
    )
    return agent, result


def recent_return(memory: Replay, filled: int) -> float:
    """Return what the agent earns in 2,000 steps, by its last 400 in each room."""
    since = max(filled, memory.total - RECENT)
    return RETURN_STEPS * memory.mean_reward(since)


def _reward_gate(config: TrainConfig) -> Sequence[Gate]:
    if config.least_reward_ap == 0:
        return ()
    why = (
        "the model does not know from actions alone when a reward comes, so nothing can be planned"
    )
    return (Gate("metric/reward_ap_open_loop", ">=", config.least_reward_ap, otherwise=why),)
