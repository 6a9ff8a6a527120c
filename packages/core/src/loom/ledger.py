"""What a training run knows about itself: last metrics, gate answers, invariants, checkpoints.

All of it lies in each checkpoint, so a missed gate, the memory of an invariant and the best score
so far survive a resume.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from loom import distributed
from loom import gates as gating
from loom.checkpoint import Checkpoints, Loaded
from loom.config import config_hash
from loom.gates import Gate, GateResult, Invariant, InvariantWatch
from loom.run import Run
from loom.state import TrainState

Metrics = dict[str, float | None]


class Ledger:
    """Writes the records, gate answers and checkpoints of one `fit`."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        gates: Sequence[Gate],
        invariants: Sequence[Invariant],
        keep_checkpoints: int,
        metric_for_best: str | None,
    ) -> None:
        """Name what is watched; nothing is read or written yet.

        In a group, rank 0 decides: what the other processes have measured may be a part.
        """
        self._run, self._state, self._gates = run, state, gates
        self._watch = InvariantWatch(invariants)
        self._sign = -1.0 if (metric_for_best or "").startswith("-") else 1.0
        self._best_key = (metric_for_best or "").removeprefix("-")
        self._best: float | None = None
        self._checkpoints = Checkpoints(
            run.dir / "checkpoints", keep_checkpoints, on_warning=run.warn
        )
        self._results: list[GateResult] = []
        self.metrics: Metrics = {}
        self.ended = False

    def resume(self, steps: int) -> None:
        """Take up the newest checkpoint of a resumed run, the same one in every process."""
        loaded = None
        if self._run.is_main:
            self._checkpoints.recover()
            if self._run.resumed:
                loaded = self._checkpoints.load_newest()
        found = distributed.agree(loaded.step if loaded else -1)
        if found >= 0:
            self._take_up(loaded or self._checkpoints.load(found), steps)
        if self._run.resumed:
            self._run.resume_at(self._state.step)
        _equalise(self._state)

    def _take_up(self, loaded: Loaded, steps: int) -> None:
        self._state.load_state_dict(loaded.state)
        ledger = loaded.state["ledger"]
        self._watch.load_state_dict(ledger["invariants"])
        self.metrics, self._best = dict(ledger["metrics"]), ledger["best"]
        results = [GateResult(**result) for result in ledger["gates"]]
        self.ended = ledger["ended"] and loaded.step >= steps
        # A run that is made longer reaches its end anew.
        self._results = [r for r in results if r.at != "end" or self.ended]
        self._run.info(f"[resume] from {loaded.path} at step {loaded.step}")

    def record(self, metrics: Mapping[str, float | None]) -> None:
        """Record what was measured at the present step; a broken invariant stops the run.

        Raises:
            GateMissed: An invariant does not hold.
        """
        step = self._state.step
        self.metrics.update(metrics)
        if metrics:
            self._run.record(step, metrics)
        breaches = self._watch.check(metrics, step)
        if distributed.agree(bool(breaches) and self._run.is_main):
            raise gating.gates_missed(breaches or ["an invariant is broken, see rank 0"])

    def judge(self, metrics: Mapping[str, float | None], *, end: bool) -> None:
        """Answer the gates that are due now.

        Raises:
            GateMissed: A fatal gate is missed; the others wait until `close`.
        """
        results = gating.evaluate(self._gates, metrics, self._state.step, end=end)
        self._results += results
        self._write_results()
        for result in results:
            self._run.info(f"[gate] {'passed' if result.passed else 'MISSED'}: {result.message}")
        fatal = [result for result in results if result.fatal and not result.passed]
        if distributed.agree(bool(fatal) and self._run.is_main):
            raise gating.gates_missed(fatal or ["a gate is missed, see rank 0"])

    def improves(self, metrics: Mapping[str, float | None]) -> bool:
        """Tell whether the best checkpoint would be that of the present step.

        Sharded weights take every process to save, so rank 0's answer is everybody's.
        """
        if self._best_key not in metrics:
            return False
        score = self._score(metrics)
        better = score is not None and (self._best is None or score > self._best)
        return bool(distributed.agree(better and self._run.is_main))

    def save(self, metrics: Mapping[str, float | None], *, final: bool = False) -> None:
        """Write a checkpoint of the present step.

        Args:
            metrics: Measured at this step; may hold the metric of the best checkpoint.
            final: Whether the training ends here.
        """
        score = self._score(metrics)
        if score is not None and (self._best is None or score > self._best):
            self._best = score
        self.ended = final
        if not self._run.is_main and not self._state.sharded:
            return
        sections = self._state.state_dict()
        if not self._run.is_main:
            return
        sections["ledger"] = {
            "invariants": self._watch.state_dict(),
            "metrics": self.metrics,
            "best": self._best,
            "ended": final,
            "gates": [asdict(result) for result in self._results],
        }
        self._checkpoints.save(
            self._state.step,
            sections,
            metric=score,
            config_hash=config_hash(self._run.config),
            world_size=distributed.shard().world,
            final=final,
        )

    def close(self) -> None:
        """End a training that reached its end.

        Raises:
            GateMissed: A gate was missed on the way or at the end; each is named once.
        """
        missed: dict[tuple, GateResult] = {}
        for gate, result in gating.by_gate(self._results, getattr):
            if not result.passed:
                missed.setdefault(gate, result)
        self._write_results()
        if distributed.agree(bool(missed) and self._run.is_main):
            first = list(missed.values())
            raise gating.gates_missed(first or ["a gate is missed, see rank 0"])

    def _score(self, metrics: Mapping[str, float | None]) -> float | None:
        value = metrics.get(self._best_key) if self._best_key else None
        return None if value is None or math.isnan(value) else self._sign * value

    def _write_results(self) -> None:
        if self._run.is_main and self._results:
            gating.write_results(self._run.path("gates.json"), self._results)


def _equalise(state: TrainState) -> None:
    """Give every process the weights of rank 0."""
    modules: list[nn.Module] = [state.model, state.ema_model]
    tensors: dict[int, Any] = {}
    for module in modules:
        tensors.update((id(t), t) for t in module.state_dict().values() if torch.is_tensor(t))
    for group in state.optimizer.param_groups:
        tensors.update((id(tensor), tensor) for tensor in group["params"])
    distributed.broadcast_(tensors.values())
