"""The training loop of every thread: a loss of a step in, a trained state out.

`fit` owns accumulation, clipping, precision, the finite guard, EMA, records, evaluation,
checkpoints, gates, signals and process groups; it owns no mathematics of a thread. A step is a pure
function of its number: `batch(step, shard)`, `loss(model, batch, step)`, `lr(step)` and
`trainable(step)` are called with the number of updates completed before it, so a resumed run
repeats exactly what an uninterrupted one does, on any number of processes. Records, evaluations,
gates and checkpoints come after an update and carry the number completed by then, from 1.
"""

import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from loom import distributed, farewell
from loom.gates import Gate, Invariant
from loom.guards import FiniteGuard, require_finite
from loom.ledger import Ledger, Metrics
from loom.run import Run
from loom.sampling import Prefetch, Shard
from loom.signals import StopSignals, exit_code
from loom.state import TrainState
from loom.throughput import Throughput
from loom.update import Losses, Measured, Precision, Term, Updater

__all__ = ["Every", "FitResult", "Losses", "Prefetch", "Shard", "Term", "TrainState", "fit"]

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)
_STOP_ASKED, _NOT_FINITE = 1_000, 1_001  # flags the processes agree on, above all signal numbers


@dataclass(frozen=True)
class Every(Generic[M]):
    """An evaluation after each `interval` updates and at the end.

    `run` gets the EMA model, in eval mode and without gradients. Its draws from torch's global
    generator do not change the training.
    """

    interval: int
    run: Callable[[M], Mapping[str, float | None]]


@dataclass(frozen=True)
class FitResult:
    """How a training ended: updates completed, why, and the last value of every metric."""

    step: int
    reason: str
    metrics: Metrics


def fit(
    run: Run,
    state: TrainState[M],
    *,
    steps: int,
    batch: Callable[[int, Shard], B],
    loss: Callable[[M, B, int], Losses],
    lr: Callable[[int], float | Mapping[str, float]],
    trainable: Callable[[int], Collection[str]] | None = None,
    evaluate: Every[M] | None = None,
    gates: Sequence[Gate] = (),
    invariants: Sequence[Invariant] = (),
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    precision: Precision = "fp32",
    log_interval: int = 50,
    checkpoint_interval: int | None = None,
    keep_checkpoints: int = 2,
    metric_for_best: str | None = None,
    progress_name: str | None = None,
    stop: Callable[[int], str | None] | None = None,
) -> FitResult:
    """Train until `steps` updates are complete; go on from the newest checkpoint on a resumed run.

    Args:
        run: The open run; records, progress, checkpoints and gate results go there.
        state: What learns; changed in place.
        steps: Updates in all, those before a resume included.
        batch: The data of a step for a shard; pure. With `accumulate`, it is called once for each
            micro-batch, with a shard of a world that is so much larger.
        loss: The losses of a batch at a step. It may call the model in any way.
        lr: The rate at a step, one for all groups of the optimiser or one for each by name.
        trainable: Names of the optimiser's groups that learn at a step; the others are frozen and
            their optimiser state is not touched.
        evaluate: Evaluation of the EMA model.
        gates: Required values; a gate that is due has its metric evaluated.
        invariants: What every record must keep.
        before_step: Called with the step before its batch is taken.
        after_step: Called with the step after its update.
        accumulate: Micro-batches for one update.
        clip_norm: Largest norm of the gradient over all parameters.
        precision: bf16 and fp16 run the loss under autocast, fp16 with a gradient scaler.
        log_interval: Updates between two records.
        checkpoint_interval: Updates between two checkpoints; without it there is one at the end, at
            a signal, and at each best evaluation.
        keep_checkpoints: How many of the newest to keep, beside the best and the final one.
        metric_for_best: Metric of the best checkpoint, higher is better; `-metric/x`: lower is.
        progress_name: Shown in the progress line; the thread's name by default.
        stop: Returns a reason to end early and regularly, such as a spent time budget.

    Returns:
        The step, the reason and the last value of every metric.

    Raises:
        GateMissed: A gate or an invariant does not hold.
        UserError: A loss or a gradient is not finite, or the disk refuses.
        SystemExit: After a signal, with a checkpoint at the step boundary.
    """
    if steps < 1 or log_interval < 1 or (checkpoint_interval or 1) < 1:
        raise ValueError(f"steps {steps}, {log_interval=}, {checkpoint_interval=}: 1 or more each")
    with distributed.group(), farewell.together(), StopSignals() as signals:
        clock = Throughput()
        guard = FiniteGuard(run.dir / "nonfinite", distributed.shard().rank)
        updater = Updater(
            state,
            batch=batch,
            loss=loss,
            lr=lr,
            trainable=trainable,
            accumulate=accumulate,
            clip_norm=clip_norm,
            precision=precision,
            guard=guard,
            clock=clock,
            info=run.info,
        )
        ledger = Ledger(run, state, gates, invariants, keep_checkpoints, metric_for_best)
        ledger.resume(steps)
        plan = _Plan(
            run, state, ledger, clock, guard, evaluate, gates, log_interval, checkpoint_interval
        )
        if state.step == 0 and any(gate.due(0) for gate in gates):
            plan.preflight()
        progress = run.progress(progress_name or run.thread, total=steps, start=state.step)
        reason = ""
        while state.step < steps and not reason:
            step = state.step
            if before_step is not None:
                before_step(step)
            measured, finite = updater.gradient(step)
            asked = stop(step + 1) if stop is not None else None
            flag = signals.received or (_STOP_ASKED if asked else 0)
            flag = distributed.agree(flag if finite else _NOT_FINITE)
            if flag == _NOT_FINITE:
                raise guard.error()
            updater.apply()
            if after_step is not None:
                after_step(step)
            if flag == _STOP_ASKED:
                reason = asked or "another process asked to stop"
            elif flag and state.step < steps:
                plan.after_update(measured, leave=True)
                progress.close()
                _leave(run, state.step, flag)
            plan.after_update(measured, end=state.step == steps or bool(reason))
            progress.update(state.step, plan.note)
        if not ledger.ended:
            plan.end()
        progress.close()
        if late := distributed.agree(signals.received):
            _leave(run, state.step, late)
        ledger.close()
        return FitResult(state.step, reason or "complete", ledger.metrics)


@dataclass
class _Plan:
    """What is due after an update: records, evaluation, gates, checkpoints, in this order."""

    run: Run
    state: TrainState
    ledger: Ledger
    clock: Throughput
    guard: FiniteGuard
    evaluate: Every | None
    gates: Sequence[Gate]
    log_interval: int
    checkpoint_interval: int | None
    note: str = ""

    def preflight(self) -> None:
        """Evaluate the model as it begins, and answer the gates that ask for that."""
        with self.clock.elsewhere():
            metrics = self._evaluated()
            self.ledger.record(metrics)
            self.ledger.judge(metrics, end=False)

    def after_update(self, measured: Measured, *, end: bool = False, leave: bool = False) -> None:
        """Do what is due; `leave` asks for a checkpoint because the process is about to stop."""
        step = self.state.step
        due = [gate for gate in self.gates if gate.due(step, end=end)]
        metrics: Metrics = {}
        if step == 1 or step % self.log_interval == 0 or end or due:
            metrics.update(measured.read())
            metrics.update(self.clock.read())
            self.note = f"loss {metrics['loss/total']:.4g}"
        unknown = {key for gate in due for key in gate.needs()} - metrics.keys()
        with self.clock.elsewhere():
            if self.evaluate and (step % self.evaluate.interval == 0 or end or unknown):
                metrics.update(self._evaluated())
            if metrics:
                self.ledger.record(metrics)
            if due:
                self.ledger.judge(metrics, end=end)
            regular = self.checkpoint_interval and step % self.checkpoint_interval == 0
            if regular or end or leave or self.ledger.improves(metrics):
                self._save(metrics, end=end)

    def end(self) -> None:
        """Close a run that was resumed at its last step, or beyond: no update is left to do."""
        metrics = self._evaluated()
        self.ledger.record(metrics)
        self.ledger.judge(self.ledger.metrics, end=True)
        self._save(metrics, end=True)

    def _save(self, metrics: Metrics, *, end: bool) -> None:
        if not self.guard.settle():
            raise self.guard.error()
        require_finite(self.state.model, self.state.step)
        self.ledger.save(metrics, final=end)

    def _evaluated(self) -> Metrics:
        if self.evaluate is None:
            return {}
        model = self.state.ema_model
        training = model.training
        device = self.state.device
        devices = [device] if device.type == "cuda" else []
        model.eval()
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                return dict(self.evaluate.run(model))
        finally:
            model.train(training)


def _leave(run: Run, step: int, number: int) -> None:
    name = signal.Signals(number).name
    reason = f"{name} at step {step}; its checkpoint is saved, resume goes on from there"
    run.info(f"[stop] {reason}")
    run.status(state="stopped", reason=reason)
    distributed.agree(number)  # torchrun ends all when one has ended: wait for the checkpoint
    raise SystemExit(exit_code(number))
