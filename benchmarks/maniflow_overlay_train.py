"""A training step: `fit` on the package's batches beside the notes' way in plain torch.

    uv run python benchmarks/maniflow_overlay_train.py [--presets tiny,parity] [--repeats 5]

Both train the same network on the same windows, from stored frames to moved weights. The notes'
way: float32 pictures of the whole horizon are collated, the first frame stands at every observed
step and is encoded there each time, both parts of the objective pass the network apart, four losses
are read by `.item()`, AdamW is not fused and the averaged weights are moved one by one; it does not
augment here. CPU time of one thread; on a GPU, wall time of batches of 64, and bf16 in a row of its
own.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from loom.guards import FiniteGuard
from loom.throughput import Throughput
from loom.update import Updater
from maniflow_overlay.config import NO_CHANGE, TrainConfig
from maniflow_overlay.data.convert import Rows, Source, convert
from maniflow_overlay.data.frame_store import FrameStore, StoreShape
from maniflow_overlay.data.path_layers import PathLayers, write_layers
from maniflow_overlay.data.windows import Batches, Windows, WindowShape
from maniflow_overlay.gripper_path import path_from_rows
from maniflow_overlay.policy.flow import between, consistency_target, draw_flow
from maniflow_overlay.policy.model import OverlayPolicy
from maniflow_overlay.policy.objective import FlowObjective
from maniflow_overlay.policy.presets import PolicyShape
from maniflow_overlay.train import new_state
from maniflow_overlay.training_batches import TrainingBatches
from torch import Tensor

EPISODE, EPISODES, VECTOR, OBSERVED = 40, 6, 14, 2


def make_store(folder: Path, side: int) -> FrameStore:
    """Write a store of noise with a path for every frame."""
    folder.mkdir()
    (folder / "source").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()

    def source(number: int) -> Source:
        def read() -> Rows:
            rng = np.random.default_rng(number)
            size = (side, side, 3)
            pictures = (rng.integers(0, 256, size, dtype=np.uint8) for _ in range(EPISODE))
            vectors = rng.normal(size=(2, EPISODE, VECTOR)).astype(np.float32)
            return Rows("task", number, "noise", digest, pictures, *vectors, ())

        return Source("task", number, folder / "source", read)

    convert(
        [source(n) for n in range(EPISODES)],
        folder / "store",
        StoreShape(side, side, VECTOR),
        about={},
    )
    store = FrameStore(folder / "store")
    path = path_from_rows([[0.2, 0.3, 1], [0.6, 0.5, 0], [0.8, 0.2, 1]], "benchmark")
    write_layers(store, [path] * len(store), ["ok"] * len(store), "benchmark")
    return store


class NotesWay:
    """One step as the notes' training takes it."""

    def __init__(self, model: OverlayPolicy, store: FrameStore, horizon: int, batch: int) -> None:
        """Hold all drawn pictures in memory as float32, as the notes do."""
        self.model, self.batch, self.horizon = model, batch, horizon
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-3, foreach=False
        )
        rows = np.arange(len(store))
        drawn = PathLayers(store).paint(store.read_frames(rows), rows)
        self.pictures = np.ascontiguousarray(drawn.transpose(0, 3, 1, 2), dtype=np.float32) / 255
        self.store = store
        self.windows = Windows(
            store.begins, store.ends, WindowShape(horizon, OBSERVED, 1, horizon - 1)
        )
        self.losses: list[float] = []

    def collate(self, step: int) -> dict[str, Tensor]:
        """Return whole horizons of float32 pictures, the first one repeated."""
        rng = np.random.default_rng(step)
        samples = []
        for window in rng.integers(0, len(self.windows), self.batch):
            rows, first = self.windows.rows(np.array([window]))
            samples.append(
                {
                    "current": self.pictures[rows[0]],
                    "initial": np.repeat(self.pictures[first], self.horizon, axis=0),
                    "state": self.store.state[rows[0]],
                    "action": self.store.action[rows[0]],
                }
            )
        device = self.model.normalise_action.scale.device
        return {
            key: torch.from_numpy(np.stack([sample[key] for sample in samples])).to(device)
            for key in samples[0]
        }

    def step(self, number: int) -> None:
        """Load, compute and update."""
        data = self.collate(number)
        model = self.model
        current, initial = (data[key][:, :OBSERVED] for key in ("current", "initial"))
        seen = model.encoder.trunks[0](current.flatten(0, 1))
        first = model.encoder.trunks[-1](initial.flatten(0, 1))
        state = data["state"][:, :OBSERVED]
        if model.state_in is None:
            parts = [x.mean((2, 3)).unflatten(0, (-1, OBSERVED)) for x in (seen, first)]
            tokens = torch.cat([torch.cat(parts, -1).flatten(1), state.flatten(1)], -1)[:, None]
            extra = None
        else:
            maps = [x.unflatten(0, (-1, OBSERVED)) for x in (seen, first)]
            views = [maps[0][:, 0], maps[0][:, 1], maps[1][:, 0]]
            tokens = torch.cat([view.flatten(2).transpose(1, 2) for view in views], 1)
            extra = model.state_in(state) + model.state_position
        actions = model.normalise_action(data["action"])
        flow_count = int(0.75 * self.batch)
        draws = draw_flow(
            self.batch, self.horizon, VECTOR, np.random.default_rng(number), share=0.25
        )
        order = np.argsort(draws.consistency, kind="stable")
        noise, when, delta = (
            torch.from_numpy(array[order]).to(actions.device)
            for array in (draws.noise, draws.time, draws.delta)
        )
        losses = []
        for rows in (slice(0, flow_count), slice(flow_count, None)):
            context = (tokens[rows], None if extra is None else extra[rows])
            x0, a, t, d = noise[rows], actions[rows], when[rows], delta[rows]
            target = a - x0
            if rows.start:
                target = consistency_target(
                    lambda x, u, s, c=context: self.teacher.ditx(x, u, s, *c), x0, a, t, d
                )
            predicted = model.ditx(between(x0, a, t), t, d, *context)
            losses.append((predicted - target).square().mean())
        loss = losses[0] + losses[1]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses += [loss.item(), losses[0].item(), losses[1].item(), loss.item()]
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), model.parameters(), strict=True)
            for average, value in pairs:
                average.mul_(0.99).add_(value, alpha=0.01)


class OurWay:
    """One step as `fit` takes it."""

    def __init__(
        self, model: OverlayPolicy, store: FrameStore, config: TrainConfig, precision: str
    ) -> None:
        """Wire batches, objective and the loop's updater."""
        device = model.normalise_action.scale.device
        state = new_state(config, model)
        horizon = model.shape.horizon
        windows = Windows(store.begins, store.ends, WindowShape(horizon, OBSERVED, 1, horizon - 1))
        batches = Batches(
            store,
            PathLayers(store),
            windows,
            show="initial_current",
            fuse="concat6" if config.augment.active else "overlay",
            batch=config.batch_size,
        )
        self.updater = Updater(
            state,
            batch=TrainingBatches(batches, config, model.shape, device),
            loss=FlowObjective(state.ema_model),
            lr=lambda step: 1e-4,
            trainable=None,
            accumulate=1,
            clip_norm=None,
            precision="bf16" if precision == "bf16" else "fp32",
            guard=FiniteGuard(Path(tempfile.gettempdir()) / "nonfinite", 0),
            clock=Throughput(),
            info=print,
        )

    def step(self, number: int) -> None:
        """Load, compute and update."""
        self.updater.gradient(number)
        self.updater.apply()


def best_of(
    steps: Mapping[str, Callable[[int], None]], repeats: int, cuda: bool
) -> dict[str, float]:
    """Return the seconds of a step, the best of the repeats, which take turns."""
    clock = time.perf_counter if cuda else time.process_time
    best = dict.fromkeys(steps, float("inf"))
    for number in range(repeats + 1):
        for name, step in steps.items():
            if cuda:
                torch.cuda.synchronize()
            began = clock()
            step(number)
            if cuda:
                torch.cuda.synchronize()
            if number:  # the first one warms up
                best[name] = min(best[name], clock() - began)
    return best


def measure(preset: str, batch: int, device: str, repeats: int, folder: Path) -> None:
    """Print the rows of one preset."""
    side, horizon = (64, 8) if preset == "tiny" else (224, 16)
    base = TrainConfig(batch_size=batch, preset=preset)  # ty: ignore[invalid-argument-type]
    shape = PolicyShape(
        base.preset, base.arm, side, side, VECTOR, VECTOR, (), horizon, OBSERVED, horizon - 1
    )
    store = make_store(folder / f"{preset}-{device}", side)

    def model() -> OverlayPolicy:
        made = OverlayPolicy(shape, torch.Generator().manual_seed(0))
        made.normalise_action.fit(store.action)
        return made.to(device)

    still = TrainConfig(batch_size=batch, preset=base.preset, augment=NO_CHANGE)
    steps = {
        "notes' way, fp32": NotesWay(model(), store, horizon, batch).step,
        "fit, fp32": OurWay(model(), store, still, "fp32").step,
        "fit, fp32, augmented": OurWay(model(), store, base, "fp32").step,
    }
    if device == "cuda":
        steps["fit, bf16, augmented"] = OurWay(model(), store, base, "bf16").step
    best = best_of(steps, repeats, device == "cuda")
    reference = best["notes' way, fp32"]
    for name, seconds in best.items():
        print(
            f"{preset:>8} {device:>5} {batch:>6} {name:>22} {1000 * seconds:10.1f} "
            f"{reference / seconds:6.2f}"
        )


def main() -> None:
    """Measure what this machine has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", default="tiny,parity")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'preset':>8} {'':>5} {'batch':>6} {'':>22} {'ms a step':>10} {'times':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets.split(","):
            measure(preset, 64 if preset == "tiny" else 4, "cpu", options.repeats, Path(folder))
            if torch.cuda.is_available():
                measure(preset, 64, "cuda", options.repeats, Path(folder))
            else:
                print(f"{preset:>8} {'cuda':>5} {64:>6} {'not measured: no GPU here':>22}")


if __name__ == "__main__":
    main()
