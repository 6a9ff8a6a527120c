"""One update of a training loop: losses, gradients, clipping and the optimiser's step.

The gradient is that of the mean over `accumulate` micro-batches and all processes: micro-batch `m`
of rank `r` is the shard `r * accumulate + m` of `world * accumulate`, so the union of a step's
samples does not depend on how it is split.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch

from loom import distributed
from loom.errors import UserError
from loom.guards import FiniteGuard
from loom.sampling import Shard
from loom.sharded import whole
from loom.state import TrainState
from loom.throughput import Throughput

B = TypeVar("B")
Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Term(NamedTuple):
    """One part of a loss: its value before weighting, a scalar, and its weight at this step."""

    value: torch.Tensor
    weight: float = 1.0


@dataclass
class Losses:
    """Named terms of a loss, and what else was measured on the way.

    A term of weight 0 is recorded and takes no part in the gradient. Tensors among the metrics are
    read only at the steps that are recorded; their keys are the same in every process.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, float | torch.Tensor | None] = field(default_factory=dict)

    @property
    def total(self) -> torch.Tensor:
        """Return the weighted sum."""
        weighted = [term.value * term.weight for term in self.terms.values() if term.weight != 0]
        if not weighted:
            raise ValueError(f"no loss term has a weight ({', '.join(self.terms) or 'no terms'})")
        return sum(weighted[1:], start=weighted[0])


class Measured(NamedTuple):
    """What one update left on the device, until somebody reads it."""

    parts: Sequence[Losses]
    gradient_norm: torch.Tensor
    rates: Mapping[str, float]

    def read(self) -> dict[str, float | None]:
        """Wait for the device and return the record: means over micro-batches and processes.

        Keys: `loss/<term>` before weighting, `loss_weighted/<term>`, `loss_share/<term>` of the
        total, `loss/total`, `grad/norm` before clipping, `lr/<group>`, and the metrics as named.
        """
        terms, metrics = self.parts[0].terms, self.parts[0].metrics
        rows = [_row(part) for part in self.parts]
        vector = torch.stack(rows).mean(0) if len(rows) > 1 else rows[0]
        vector = torch.cat([vector, self.gradient_norm.double().reshape(1)])
        *values, gradient_norm = distributed.mean(vector).tolist()
        unweighted = dict(zip(terms, values, strict=False))
        weighted = {name: value * terms[name].weight for name, value in unweighted.items()}
        weighted = {n: value if terms[n].weight != 0 else 0.0 for n, value in weighted.items()}
        total = sum(weighted.values())
        record: dict[str, float | None] = {"loss/total": total}
        for name, value in unweighted.items():
            record[f"loss/{name}"] = value
            record[f"loss_weighted/{name}"] = weighted[name]
            record[f"loss_share/{name}"] = weighted[name] / total if total else None
        for (name, given), value in zip(metrics.items(), values[len(terms) :], strict=True):
            record[name] = None if given is None else value
        record["grad/norm"] = gradient_norm
        record.update({f"lr/{name}": rate for name, rate in self.rates.items()})
        return record


class Updater(Generic[B]):
    """Computes the gradient of a step and applies it; between the two the processes can agree."""

    def __init__(
        self,
        state: TrainState,
        *,
        batch: Callable[[int, Shard], B],
        loss: Callable[[Any, B, int], Losses],
        lr: Callable[[int], float | Mapping[str, float]],
        trainable: Callable[[int], Collection[str]] | None,
        accumulate: int,
        clip_norm: float | None,
        precision: Precision,
        guard: FiniteGuard,
        clock: Throughput,
        info: Callable[[str], None],
    ) -> None:
        """Take over what `fit` was given; fp16 puts a gradient scaler into the state."""
        if accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; 1 or more")
        if precision not in _AUTOCAST:
            raise ValueError(f"precision {precision!r}; fp32, bf16 or fp16")
        self._state = state
        self._batch, self._loss, self._lr, self._trainable = batch, loss, lr, trainable
        self._accumulate, self._clip_norm, self._precision = accumulate, clip_norm, precision
        self._guard, self._clock, self._info = guard, clock, info
        self._shard = distributed.shard()
        self._learning: frozenset[str] | None = None
        if precision == "fp16" and state.scaler is None:
            state.scaler = torch.amp.GradScaler(state.device.type)

    def gradient(self, step: int) -> tuple[Measured, bool]:
        """Fill the gradients of a step.

        Returns:
            What was measured, and whether all of it that has been checked is finite.
        """
        self._choose_learning(step)
        rates = self._set_rates(step)
        self._state.optimizer.zero_grad(set_to_none=True)
        parts, batches = [], []
        for micro in range(self._accumulate):
            with self._clock.waiting():
                data = self._batch(step, self._shard.split(micro, self._accumulate))
            batches.append(data)
            parts.append(self._backward(data, step))
        parameters = self._parameters()
        distributed.average_gradients(parameters)
        scaler = self._state.scaler
        if scaler is not None:
            scaler.unscale_(self._state.optimizer)
        learning = [p for p in parameters if p.grad is not None]
        gradients = [p.grad for p in learning if p.grad is not None]
        norms = _norms(gradients)
        total = torch.linalg.vector_norm(norms)
        terms = [n for n, term in parts[0].terms.items() if term.weight != 0]
        values = torch.stack([sum(p.terms[n].value.double() for p in parts) for n in terms])
        values = values / self._accumulate
        # fp16 gradients overflow now and then by design, and the scaler skips that step.
        judged = learning if scaler is None or scaler.get_scale() < 1.0 else []
        if judged:
            values = torch.cat([values, norms])
        names = [f"loss term {n}" for n in terms]
        finite = self._guard.watch(
            step,
            lambda: names + [f"the gradient of {self._name(p)}" for p in judged],
            values,
            batches,
        )
        if self._clip_norm is not None and learning:
            scale = (self._clip_norm / (total + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        return Measured(parts, total, rates), finite

    def apply(self) -> None:
        """Let the optimiser use the gradients, count the update and move the EMA."""
        state = self._state
        if state.scaler is not None:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            state.optimizer.step()
        state.step += 1
        state.update_ema()
        self._clock.step()

    def _backward(self, data: B, step: int) -> Losses:
        state = self._state
        with self._autocast():
            losses = self._loss(state.model, data, step)
            total = losses.total
        if self._accumulate > 1:
            total = total / self._accumulate
        if state.scaler is not None:
            total = state.scaler.scale(total)
        total.backward()
        return Losses(
            {name: Term(term.value.detach(), term.weight) for name, term in losses.terms.items()},
            {
                name: value.detach() if isinstance(value, torch.Tensor) else value
                for name, value in losses.metrics.items()
            },
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self._state.device.type, dtype=_AUTOCAST[self._precision])

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self._state.optimizer.param_groups for p in group["params"]]

    def _name(self, parameter: torch.Tensor) -> str:
        for name, own in self._state.model.named_parameters():
            if own is parameter:
                return name
        for group_name, group in _groups(self._state.optimizer).items():
            for index, own in enumerate(group["params"]):
                if own is parameter:
                    return f"parameter {index} of group {group_name}"
        raise AssertionError("a gradient of a parameter that the optimiser does not have")

    def _set_rates(self, step: int) -> dict[str, float]:
        groups = _groups(self._state.optimizer)
        rate = self._lr(step)
        if isinstance(rate, Mapping):
            _require_groups(rate.keys(), groups.keys(), "lr")
            missing = groups.keys() - rate.keys()
            if missing:
                raise UserError(f"lr gives no rate for the groups {', '.join(sorted(missing))}")
            rates = {name: float(rate[name]) for name in groups}
        else:
            rates = dict.fromkeys(groups, float(rate))
        for name, group in groups.items():
            group["lr"] = rates[name]
        return rates

    def _choose_learning(self, step: int) -> None:
        """Freeze the groups that do not learn now: no gradient, optimiser state untouched."""
        if self._trainable is None:
            return
        learning = frozenset(self._trainable(step))
        if learning == self._learning:
            return
        groups = _groups(self._state.optimizer)
        _require_groups(learning, groups.keys(), "trainable")
        for name, group in groups.items():
            for parameter in group["params"]:
                parameter.requires_grad_(name in learning)
        self._learning = learning
        frozen = ", ".join(name for name in groups if name not in learning) or "none"
        learns = ", ".join(name for name in groups if name in learning) or "none"
        self._info(f"[phase] from step {step}: learning {learns}; frozen {frozen}")


def _groups(optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """Return the parameter groups by name; one without a name goes by its number."""
    return {str(g.get("name", i)): g for i, g in enumerate(optimizer.param_groups)}


def _require_groups(names: Collection[str], known: Collection[str], source: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(
            f"{source} names the optimiser groups {', '.join(unknown)}, "
            f"which are not among {', '.join(known)}",
            hint='give each group of the optimiser a "name"',
        )


def _norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return the norm of each gradient, `(len(gradients),)` float64."""
    if not gradients:
        return torch.zeros(0, dtype=torch.float64)
    return whole(torch.stack(list(torch._foreach_norm(gradients)))).double()


def _row(part: Losses) -> torch.Tensor:
    """Return the terms and metrics of a micro-batch as one vector on their device."""
    values = [term.value.double() for term in part.terms.values()]
    device = values[0].device
    for value in part.metrics.values():
        number = float("nan") if value is None else value
        values.append(torch.as_tensor(number, dtype=torch.float64, device=device).detach())
    return torch.stack([value.reshape(()) for value in values])
