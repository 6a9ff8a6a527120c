"""A training small enough to be killed many times; also a script that forks, kills and compares.

As a script it imports torch once and runs every training in a forked child, so that a kill costs no
import: `tiny_training.py kill DIR KILLS SEED`, `tiny_training.py group DIR WORLD`. Torchrun starts
`tiny_training.py train DIR`, `tiny_training.py stoppable RUN PAUSE` and
`tiny_training.py fails RUN HOW`; `tiny_training.py leave DIR` fails in every way without torchrun.
"""

import atexit
import importlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from loom import distributed, farewell
from loom.config import Config, resolve
from loom.errors import UserError
from loom.gates import Gate
from loom.ledger import Ledger
from loom.loop import Every, FitResult, Losses, Shard, Term, TrainState, fit
from loom.run import Run
from loom.sampling import draw_rng, epoch_indices
from loom.schedule import WarmupCosine
from torch import nn
from torch.distributed import TCPStore

SAMPLES, BATCH = 37, 8


class TinyConfig(Config):
    seed: int = 3
    steps: int = 40


class Counter:
    """An extra with a state: how many updates it has seen."""

    def __init__(self) -> None:
        self.seen = torch.zeros(1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.seen.copy_(state["seen"])


class SignDescent(torch.optim.Optimizer):
    """An optimiser of our own, with a state for each parameter."""

    def __init__(self, groups: list[dict], lr: float = 1e-2) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.2)
                parameter.sub_(group["lr"] * momentum.sign())


def data() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(7))
    return inputs, inputs.sin().sum(1, keepdim=True)


def train(
    directory: Path,
    *,
    resume: bool = False,
    optimizer: str = "adam",
    noise: bool = True,
    seen: list | None = None,
    **options,
) -> tuple[TrainState, FitResult]:
    """Train with every source of state that a resume has to restore."""
    settings = resolve(TinyConfig)  # a run killed at once may not have written its own
    with Run.open(
        "tiny", TinyConfig, settings, directory=directory, resume=resume, quiet=True
    ) as run:
        torch.manual_seed(run.seed)
        model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2 if noise else 0.0), nn.Linear(8, 1)
        )
        model.register_buffer("mask", torch.tensor([True, False]))
        groups = [
            {"name": "trunk", "params": list(model[:3].parameters())},
            {"name": "head", "params": list(model[3].parameters())},
        ]
        chosen = torch.optim.AdamW(groups) if optimizer == "adam" else SignDescent(groups)
        counter = Counter()
        state = TrainState(
            model,
            chosen,
            ema_decay=0.9,
            generators={"torch": run.generator("noise"), "numpy": run.rng("noise")},
            extras={"counter": counter},
        )
        inputs, targets = data()
        if not noise:  # one process must be able to repeat what two did
            model[1].eval()

        def batch(step: int, shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
            rows = epoch_indices(SAMPLES, run.seed, step, BATCH, shard)
            if seen is not None:
                seen.append((step, rows.tolist()))
            jitter = draw_rng(run.seed, step, "jitter").normal(size=(BATCH, 4)).astype(np.float32)
            begin, end = shard.bounds(BATCH)
            return inputs[rows] + 0.01 * torch.from_numpy(jitter)[begin:end], targets[rows]

        def loss(model: nn.Module, pair: tuple, step: int) -> Losses:
            error = (model(pair[0]) - pair[1]).square().mean()
            pull = model[0].weight.abs().mean()
            if noise:
                pull = pull * torch.rand((), generator=state.generators["torch"])
                pull = pull * float(state.generators["numpy"].random())
            return Losses(
                {"fit": Term(error), "pull": Term(pull, 0.1)}, {"metric/error": error.sqrt()}
            )

        def count(step: int) -> None:
            counter.seen += 1

        options.setdefault("lr", WarmupCosine(1e-2, warmup=5, total=run.config.steps).at)
        options.setdefault("steps", run.config.steps)
        options.setdefault("evaluate", Every(10, lambda model: {"metric/weight": norm(model)}))
        options.setdefault("loss", loss)
        result = fit(run, state, batch=batch, after_step=count, **options)
        return state, result


def norm(model: nn.Module) -> float:
    """Return a score that also draws from torch's global generator, as careless code does."""
    torch.rand(3)
    return float(sum(p.square().sum() for p in model.parameters()))


def flat(value: object, place: str = "") -> dict[str, torch.Tensor | object]:
    """Return every leaf of a state by its place."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {place: value}
    leaves: dict[str, torch.Tensor | object] = {}
    for key, item in parts:
        leaves |= flat(item, f"{place}/{key}")
    return leaves


def differing(left: dict, right: dict) -> list[str]:
    """Return the places at which two states are not bit-equal."""
    a, b = flat(left), flat(right)
    return [
        place
        for place in sorted(a.keys() | b.keys())
        if not (
            torch.equal(a[place], b[place])
            if isinstance(a.get(place), torch.Tensor) and isinstance(b.get(place), torch.Tensor)
            else a.get(place) == b.get(place)
        )
    ]


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            os._exit(code)
    return pid


def kill_until_done(directory: Path, kills: int, seed: int) -> None:
    """Kill a run at random moments, resume it each time, and compare with an uninterrupted one."""

    def work(target: str, resume: bool) -> None:
        def slow(step: int) -> None:
            time.sleep(0.005 * kills)  # so that there is a run left for the last kill

        state, _ = train(directory / target, resume=resume, checkpoint_interval=1, before_step=slow)
        torch.save(state.state_dict(), directory / f"{target}.pt")

    assert os.waitpid(in_child(lambda: work("whole", False)), 0)[1] == 0
    moments = random.Random(seed)
    killed = 0
    while True:
        began = (directory / "killed").exists()
        pid = in_child(lambda began=began: work("killed", began))
        if killed < kills:
            if killed % 3:  # two of three in the midst of steps and saves, one while starting
                wait_for_another_checkpoint(directory / "killed" / "checkpoints", pid)
            time.sleep(moments.uniform(0.0, 0.15))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
            continue
        assert status == 0, f"the resumed run failed with {status}"
        break
    pair = [torch.load(directory / f"{n}.pt", weights_only=True) for n in ("whole", "killed")]
    print(f"killed {killed}; differing {differing(*pair)}")


def wait_for_another_checkpoint(checkpoints: Path, pid: int) -> None:
    before = sorted(checkpoints.glob("step_*"))
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if sorted(checkpoints.glob("step_*")) != before:
            return
        time.sleep(0.002)


def train_member(directory: Path) -> None:
    """Train as the environment says; write samples, weights and what was exchanged."""
    with distributed.group() as shard:
        seen: list = []
        state, result = train(
            directory / f"world{shard.world}", noise=False, seen=seen, log_interval=1
        )
        content = {"seen": seen, "step": result.step, "weights": flat(state.state_dict())}
        if shard.world > 1:
            content["exchange"] = exchange(shard)
    torch.save(content, directory / f"world{shard.world}_rank{shard.rank}.pt")


def train_stoppable(directory: Path, pause_s: float) -> None:
    """Train slowly, or go on with a run that was stopped; each process says who and where it is.

    A step takes a pause and a checkpoint ten.
    """
    state_dict = Counter.state_dict

    def slow_state_dict(counter: Counter) -> dict[str, torch.Tensor]:
        time.sleep(10 * pause_s)
        return state_dict(counter)

    Counter.state_dict = slow_state_dict
    with distributed.group() as shard:

        def slow(step: int) -> None:
            (directory.parent / f"rank{shard.rank}").write_text(f"{os.getpid()} {step}")
            time.sleep(pause_s)

        train(directory, resume=directory.exists(), before_step=slow)


def train_to_fail(directory: Path, how: str, page_s: float) -> None:
    """Fail as `how` says; process 0 then takes its time for a page, as commands do."""
    rank = int(os.environ["RANK"])

    def spoil(step: int) -> None:
        if how == "alone" and rank == 1:
            raise RuntimeError("process 1 fails alone")
        if how == "alone":
            time.sleep(60)

    def loss(model: nn.Module, pair: tuple, step: int) -> Losses:
        return Losses({"fit": Term(model(pair[0]).mean() * float("nan"))})

    ways = {
        "gate": {"gates": [Gate("metric/error", "<=", 0.0)]},
        "value": {"loss": loss},
        "early": {"steps": None},
        "alone": {"before_step": spoil},
    }
    try:
        train(directory, noise=False, **ways[how])
    finally:
        if rank == 0:
            time.sleep(page_s)
            (directory / "report.html").touch()


def leave_in_every_way(directory: Path) -> None:
    """Let two processes fail in each way and print which was still there when the other had ended.

    This process is what torchrun's agent is to them: it keeps the store.
    """
    farewell.HEARING_S = 1.0

    def work(how: str, rank: int, port: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        try:
            train_to_fail(directory / how, how, page_s=1.0)
        except (UserError, RuntimeError, TypeError):
            pass
        finally:
            atexit._run_exitfuncs()

    for how in ("gate", "value", "early", "alone"):
        store = TCPStore("127.0.0.1", 0, is_master=True)
        pids = [
            in_child(lambda rank=rank, how=how, store=store: work(how, rank, store.port))
            for rank in range(2)
        ]
        os.waitpid(pids[1], 0)
        page = (directory / how / "report.html").exists()
        print(f"{how}: process 1 left {'after' if page else 'before'} the page")
        os.kill(pids[0], signal.SIGKILL)
        os.waitpid(pids[0], 0)


def exchange(shard: Shard) -> dict:
    """Call everything that talks to other processes with values known in closed form."""
    parameters = [torch.zeros(n, requires_grad=True) for n in ((2, 3), (1,), (4,))]
    parameters.append(torch.zeros(1, dtype=torch.float64, requires_grad=True))
    parameters.append(torch.zeros(7_000_000, requires_grad=True))
    parameters[0].grad = torch.full((3, 2), float(shard.rank)).t()
    if shard.rank == 1:
        parameters[1].grad = torch.tensor([4.0])
    parameters[3].grad = torch.tensor([float(shard.rank)], dtype=torch.float64)
    parameters[4].grad = torch.full((7_000_000,), 1.0 + shard.rank)
    distributed.average_gradients(parameters)
    rows = torch.tensor([[i, i * i] for i in distributed.sharded_indices(5)])
    return {
        "gradients": [p.grad for p in parameters[:4]],
        "large": parameters[4].grad.unique(),
        "agreed": distributed.agree(15 if shard.rank else 2),
        "gathered": distributed.gather(rows),
        "mean": distributed.mean(torch.tensor([float(shard.rank), 10.0])),
        "best": best_so_far(shard, ({"m": 1.0}, {"m": 0.5}, {}, {"m": 2.0})),
    }


def best_so_far(shard: Shard, found: Sequence[dict[str, float]]) -> list[bool]:
    """Ask which record is the best so far, where process 1 has measured the opposite."""
    run = SimpleNamespace(dir=Path(), warn=print, is_main=shard.rank == 0)
    ledger = Ledger(run, SimpleNamespace(sharded=False), (), (), 2, "m")
    ledger._best = 0.75
    sign = 1.0 if shard.rank == 0 else -1.0
    return [ledger.improves({key: sign * value for key, value in row.items()}) for row in found]


def train_group(directory: Path, world: int) -> None:
    """Train in one process and in `world`, and write the samples, rates and weights of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int, world: int) -> None:
        if world > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        train_member(directory)

    for size in (1, world):
        pids = [in_child(lambda rank=rank, size=size: work(rank, size)) for rank in range(size)]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * size


def import_what_training_imports() -> None:
    """Load what torch and the records import at first use, for all children at once."""
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    importlib.import_module("tensorboard.compat.proto.event_pb2")
    importlib.import_module("tensorboard.summary.writer.record_writer")


if __name__ == "__main__":
    import_what_training_imports()
    mode, place = sys.argv[1], Path(sys.argv[2])
    if mode == "kill":
        kill_until_done(place, int(sys.argv[3]), int(sys.argv[4]))
    elif mode == "train":
        train_member(place)
    elif mode == "stoppable":
        train_stoppable(place, float(sys.argv[3]))
    elif mode == "fails":
        train_to_fail(place, sys.argv[3], page_s=10.0)
    elif mode == "leave":
        leave_in_every_way(place)
    else:
        train_group(place, int(sys.argv[3]))
