"""Claims: `cpu_tiny` makes 5 updates/s or more on one thread; 3 times NM512's at equal shapes.

    uv run python benchmarks/pinpad_update.py [--updates 10] [--peer CHECKOUT]

An update is world model and behaviour, forward, backward and optimiser, on random frames. `--peer`
takes a checkout of NM512/dreamerv3-torch, measured in the same process, turn by turn with ours, at
equal shapes: images of 64 x 64, windows 8 x 32, GRU and layers of 128, latents of 8 x 8, first
convolution of 4 channels, 15 steps imagined from all 256 states. The peer has a continuation head
and two layers in its reward head, where ours has none and one. Process time, median.
"""

import argparse
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loom.config import parse_yaml, resolve
from loom.drawing import print_table
from loom.loop import Losses, Term
from pinpad.models.world import Seen
from pinpad.train import new_agent, new_optimizer
from pinpad.train_config import TrainConfig

EQUAL = (
    "size=64", "cnn_depth=4", "batch_size=8", "batch_length=32", "imag_starts=256",
)  # fmt: skip
ACTIONS = 5


def ours(settings: tuple[str, ...]) -> Callable[[], object]:
    """Return an update of our agent."""
    config = resolve(TrainConfig, None, settings).config
    pixels = config.size**2 * 3
    agent = new_agent(config, pixels, torch.Generator().manual_seed(0))
    optimizer, draws = new_optimizer(config, agent), torch.Generator().manual_seed(1)
    shape = config.batch_length, config.batch_size
    number = torch.randint(ACTIONS, shape)
    seen = Seen(
        torch.rand(*shape, pixels),
        torch.nn.functional.one_hot(number, ACTIONS).float(),
        torch.rand(shape),
        torch.zeros(shape, dtype=torch.bool),
    )

    def update() -> None:
        parts, _ = agent.losses(seen, draws)
        optimizer.zero_grad()
        Losses({n: Term(p.value, p.weight) for n, p in parts.items()}).total.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), config.grad_clip)
        optimizer.step()
        agent.critic.follow()

    return update


def peer(checkout: Path) -> Callable[[], object]:
    """Return an update of NM512/dreamerv3-torch at the equal shapes."""
    sys.path.insert(0, str(checkout))
    import models  # ty: ignore[import-not-found]

    values = parse_yaml((checkout / "configs.yaml").read_text(), "configs.yaml")["defaults"]
    values |= {"device": "cpu", "compile": False, "num_actions": ACTIONS, "units": 128}
    values |= {"dyn_hidden": 128, "dyn_deter": 128, "dyn_stoch": 8, "dyn_discrete": 8}
    values["encoder"] |= {"cnn_depth": 4}
    values["decoder"] |= {"cnn_depth": 4}
    values["actor"] |= {"dist": "onehot", "std": "none"}
    values["imag_gradient"] = "reinforce"
    config = types.SimpleNamespace(**values)
    image = types.SimpleNamespace(shape=(64, 64, 3))
    space = types.SimpleNamespace(spaces={"image": image})
    world = models.WorldModel(space, None, 0, config)
    behaviour = models.ImagBehavior(config, world)
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (8, 32, 64, 64, 3)).astype(np.uint8),
        "action": np.eye(ACTIONS, dtype=np.float32)[rng.integers(0, ACTIONS, (8, 32))],
        "reward": rng.random((8, 32)).astype(np.float32),
        "is_first": np.zeros((8, 32)),
        "is_terminal": np.zeros((8, 32)),
    }

    def update() -> None:
        post, _, _ = world._train(data)
        behaviour._train(post, lambda f, s, a: world.heads["reward"](f).mode())

    return update


def milliseconds(updates: list[Callable[[], object]], count: int) -> list[float]:
    """Return the median CPU time of each, turn by turn after two rounds of warming up."""
    spent: list[list[float]] = [[] for _ in updates]
    for turn in range(count + 2):
        for update, times in zip(updates, spent, strict=True):
            began = time.process_time()
            update()
            if turn >= 2:
                times.append((time.process_time() - began) * 1e3)
    return [float(np.median(times)) for times in spent]


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--updates", type=int, default=10)
    options.add_argument("--peer", type=Path, help="checkout of NM512/dreamerv3-torch")
    given = options.parse_args()
    torch.set_num_threads(1)
    names = ["cpu_tiny, rssm", "cpu_tiny, vta", "equal shapes, ours"]
    measured: list[Callable[[], Any]] = [ours(()), ours(("dynamics_type=vta",)), ours(EQUAL)]
    if given.peer is not None:
        names.append("equal shapes, NM512/dreamerv3-torch")
        measured.append(peer(given.peer))
    times = milliseconds(measured, given.updates)
    rows = [(name, each, 1e3 / each) for name, each in zip(names, times, strict=True)]
    print_table(("update of", "CPU ms", "updates/s"), rows)
    if given.peer is not None:
        print(f"ours is {times[3] / times[2]:.2f} times as fast")


if __name__ == "__main__":
    main()
