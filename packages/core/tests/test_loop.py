"""The training loop: updates in closed form, guards, gates, phases, accumulation, precision."""

import os
import signal
import time

import pytest
import torch
from loom.checkpoint import Checkpoints
from loom.config import Config
from loom.errors import GateMissed, UserError
from loom.gates import Baseline, Gate, Invariant
from loom.loop import Every, Losses, Shard, Term, TrainState, fit
from loom.record import read_records
from loom.run import Run
from loom.schedule import Constant
from torch import nn

from packages.core.tests import tiny_training as tiny

pytestmark = pytest.mark.usefixtures("one_thread")


# A straight line, whose updates are known in closed form ------------------------------------------


class Line(Config):
    seed: int = 0


X = torch.linspace(-1, 1, 8, dtype=torch.float64)


def fit_line(directory, *, loss=None, optimizer=None, ema_decay=None, model=None, **options):
    """Fit y = w x to y = 3 x by gradient descent, from w = 0."""
    resume = options.pop("resume", False)
    with Run.open("line", Line, directory=directory, quiet=True, resume=resume) as run:
        if model is None:
            model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
            nn.init.zeros_(model.weight)
        groups = [{"params": list(model.parameters()), "name": "line"}]
        state = TrainState(model, (optimizer or torch.optim.SGD)(groups), ema_decay=ema_decay)

        def batch(step, shard):
            begin, end = shard.bounds(len(X))
            return X[begin:end, None]

        def square(model, x, step):
            return Losses({"fit": Term((model(x) - 3 * x).square().mean())})

        options.setdefault("steps", 5)
        options.setdefault("lr", Constant(0.1).at)
        return state, fit(run, state, batch=batch, loss=loss or square, **options)


def line_after(steps, lr=0.1, clip=None):
    w, path = 0.0, []
    for _ in range(steps):
        gradient = 2 * (w - 3) * float(X.square().mean())
        if clip is not None:
            gradient = max(-clip, min(clip, gradient))
        w -= lr * gradient
        path.append(w)
    return path


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(tmp_path, accumulate):
    state, _ = fit_line(tmp_path, accumulate=accumulate)
    assert state.model.weight.item() == pytest.approx(line_after(5)[-1], rel=1e-12)


def test_clipping_limits_the_gradient_and_the_record_shows_it_unclipped(tmp_path):
    state, _ = fit_line(tmp_path, clip_norm=0.5, log_interval=1)
    assert state.model.weight.item() == pytest.approx(line_after(5, clip=0.5)[-1], rel=1e-5)
    first = read_records(tmp_path)[0]
    assert first["grad/norm"] == pytest.approx(6 * float(X.square().mean()))


def test_ema_follows_its_closed_form(tmp_path):
    state, _ = fit_line(tmp_path, ema_decay=0.3)
    average = 0.0
    for n, w in enumerate(line_after(5), start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * w
    assert state.ema_model.weight.item() == pytest.approx(average, rel=1e-12)
    assert not state.ema_model.weight.requires_grad


def test_terms_are_recorded_plain_weighted_and_as_shares(tmp_path):
    def loss(model, x, step):
        return Losses(
            {
                "a": Term((model.weight - 1).square().sum(), 0.5),
                "b": Term((model.weight - 2).square().sum(), 0.25),
                "off": Term(torch.tensor(float("nan")), 0.0),
            },
            {"metric/rows": torch.tensor(float(len(x))), "metric/unknown": None},
        )

    fit_line(tmp_path, loss=loss, steps=1, accumulate=2, lr=lambda step: {"line": 0.25})
    (row,) = read_records(tmp_path)
    assert (row["loss/a"], row["loss/b"]) == (1.0, 4.0)
    assert [row[f"loss_weighted/{name}"] for name in ("a", "b", "off")] == [0.5, 1.0, 0.0]
    assert row["loss/total"] == 1.5
    assert (row["loss_share/a"], row["loss_share/b"]) == pytest.approx((1 / 3, 2 / 3))
    assert (row["metric/rows"], row["metric/unknown"], row["lr/line"]) == (4.0, None, 0.25)
    assert row["perf/steps_per_s"] > 0
    assert 0 <= row["perf/data_wait_share"] <= 1


def test_waiting_for_data_shows_in_its_share(tmp_path):
    with Run.open("line", Line, directory=tmp_path, quiet=True) as run:
        model = nn.Linear(1, 1)
        state = TrainState(model, torch.optim.SGD(model.parameters()))

        def batch(step, shard):
            time.sleep(0.02)
            return torch.ones(1, 1)

        def loss(model, x, step):
            time.sleep(0.01)
            return Losses({"a": Term(model(x).sum())})

        fit(run, state, steps=8, batch=batch, loss=loss, lr=Constant(0.0).at, log_interval=4)
    shares = [row["perf/data_wait_share"] for row in read_records(tmp_path) if row["step"] > 1]
    assert all(0.4 < share < 0.72 for share in shares), shares


class Cube(torch.autograd.Function):
    """A kernel of our own: value and gradient given by hand."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w**3

    @staticmethod
    def backward(ctx, upstream):
        (w,) = ctx.saved_tensors
        return upstream * 3 * w**2


def test_gradients_of_a_custom_function_are_used(tmp_path):
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 2.0)

    def loss(model, x, step):
        return Losses({"cube": Term(Cube.apply(model.weight).sum())})

    state, _ = fit_line(tmp_path, model=model, loss=loss, steps=1, lr=Constant(0.01).at)
    assert state.model.weight.item() == pytest.approx(2.0 - 0.01 * 12.0)


def test_batch_loss_and_rates_are_asked_for_each_step_once(tmp_path):
    asked = []

    def lr(step):
        asked.append(step)
        return 0.1 / (1 + step)

    fit_line(tmp_path, lr=lr, log_interval=1)
    assert asked == [0, 1, 2, 3, 4]
    rates = [row["lr/line"] for row in read_records(tmp_path)]
    assert rates == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025, 0.02])


# Phases -------------------------------------------------------------------------------------------


def two_groups(directory, trainable, steps=6, **options):
    with Run.open("line", Line, directory=directory, quiet=True) as run:
        model = nn.ModuleDict({"student": nn.Linear(2, 2), "projector": nn.Linear(2, 1)})
        groups = [{"name": n, "params": list(m.parameters())} for n, m in model.items()]
        state = TrainState(model, torch.optim.AdamW(groups, weight_decay=0.1), **options)
        seen = []

        def look(step):
            moments = state.optimizer.state_dict()["state"]
            seen.append(tiny.flat({"weights": model.state_dict(), "moments": moments}))
            seen[-1] = {k: torch.as_tensor(v).clone() for k, v in seen[-1].items()}

        def loss(model, x, step):
            return Losses({"a": Term(model["projector"](model["student"](x)).square().mean())})

        fit(
            run,
            state,
            steps=steps,
            batch=lambda step, shard: torch.ones(4, 2),
            loss=loss,
            lr=Constant(0.1).at,
            trainable=trainable,
            before_step=look,
            after_step=look,
        )
        return seen


def test_phases_change_only_the_named_groups_and_their_optimiser_state(tmp_path):
    everything = {"student", "projector"}
    seen = two_groups(tmp_path, lambda step: {"projector"} if step < 3 else everything)
    for step in range(6):
        before, after = seen[2 * step], seen[2 * step + 1]
        changed = {
            key.split("/")[2].split(".")[0]
            for key in before
            if "weights" in key and not torch.equal(before[key], after[key])
        }
        assert changed == ({"projector"} if step < 3 else everything)
        assert len([k for k in after if "exp_avg_sq" in k]) == (2 if step < 3 else 4)
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "from step 0: learning projector; frozen student" in log
    assert "from step 3: learning student, projector; frozen none" in log


def test_a_group_frozen_again_keeps_its_moments(tmp_path):
    everything = {"student", "projector"}
    seen = two_groups(tmp_path, lambda step: everything if step < 3 else {"projector"})
    for key in seen[5]:
        if "moments/0/" in key or "moments/1/" in key or "student" in key:
            assert torch.equal(seen[5][key], seen[-1][key]), key


def test_unknown_groups_are_named(tmp_path):
    with pytest.raises(UserError, match="projektor, which are not among student, projector"):
        two_groups(tmp_path / "a", lambda step: ["projektor"])
    with pytest.raises(UserError, match="lr gives no rate for the groups line"):
        fit_line(tmp_path / "b", lr=lambda step: {})


# Values that are not finite -----------------------------------------------------------------------


def test_the_first_loss_term_that_is_not_finite_is_named_and_the_batch_kept(tmp_path):
    def loss(model, x, step):
        poison = float("nan") if step == 3 else 1.0
        fine = (model(x) - 3 * x).square().mean()
        return Losses({"color": Term(fine), "depth": Term(fine * poison), "opacity": Term(fine)})

    with pytest.raises(UserError, match="loss term depth is nan at step 3") as caught:
        fit_line(tmp_path, loss=loss, checkpoint_interval=1)
    assert caught.value.exit_code == 2
    (file,) = (tmp_path / "nonfinite").iterdir()
    assert str(file) in caught.value.hint
    kept = torch.load(file, weights_only=True)
    assert torch.equal(kept["batches"][0], X[:, None])
    assert kept["first"] == "loss term depth"
    assert '"failed"' in (tmp_path / "status.json").read_text(encoding="utf-8")
    newest = Checkpoints(tmp_path / "checkpoints").load_newest()
    assert newest.step == 3
    assert newest.state["model"]["weight"].item() == pytest.approx(line_after(3, lr=0.3)[-1])


def test_the_parameter_of_a_gradient_that_is_not_finite_is_named(tmp_path):
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)).double()

    def loss(model, x, step):
        # sqrt has an infinite slope at 0, its value is fine: only the gradient shows it
        steep = (model[1].bias * 0.0).abs().sqrt().sum()
        return Losses({"a": Term(model(x).square().mean() + steep)})

    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"the gradient of 1\.bias is nan at step 0"):
        fit_line(tmp_path, model=model, loss=loss)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_batch_that_is_not_finite_is_named(tmp_path):
    X_bad = {"rays": torch.ones(2, 1), "rgb": [torch.tensor([1.0, float("inf")])]}
    with Run.open("line", Line, directory=tmp_path, quiet=True) as run:
        model = nn.Linear(1, 1)
        state = TrainState(model, torch.optim.SGD(model.parameters()))

        def loss(model, batch, step):
            return Losses({"color": Term((model(batch["rays"]) - batch["rgb"][0]).square().mean())})

        with pytest.raises(UserError, match=r"loss term color is inf .*batch\[0\]\.rgb\[0\]"):
            fit(run, state, steps=2, batch=lambda s, h: X_bad, loss=loss, lr=Constant(0.1).at)


def test_weights_that_an_update_made_infinite_reach_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="the parameter weight is not finite after 1 updates"):
        fit_line(tmp_path, steps=1, lr=Constant(float("inf")).at)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


# Gates and invariants -----------------------------------------------------------------------------

SCORE = "metric/psnr_db"


def scoring(interval, values):
    """Evaluate to values by the number of calls."""
    calls = iter(values)
    return Every(interval, lambda model: {SCORE: next(calls), "baseline/blank/psnr_db": 9.48})


def test_a_fatal_gate_stops_the_run_at_its_step(tmp_path):
    above_blank = Baseline("blank", margin=1.0)
    gate = Gate(SCORE, ">", above_blank, "step 2", otherwise="student is blank", fatal=True)
    with pytest.raises(GateMissed, match="student is blank") as caught:
        fit_line(tmp_path, steps=100, gates=[gate], evaluate=scoring(50, [9.6]))
    assert caught.value.exit_code == 3
    assert [row["step"] for row in read_records(tmp_path)] == [1, 2]
    assert '"passed": false' in (tmp_path / "gates.json").read_text(encoding="utf-8")
    assert '"gate_missed"' in (tmp_path / "status.json").read_text(encoding="utf-8")


def test_both_ends_of_a_range_are_told(tmp_path):
    gates = [Gate(SCORE, ">=", 20.0), Gate(SCORE, "<=", 10.0)]
    with pytest.raises(GateMissed, match="is not >= 20 at the end; .* is not <= 10 at the end"):
        fit_line(tmp_path, steps=2, gates=gates, evaluate=scoring(50, [15.0]))


def test_other_gates_let_the_run_end_and_then_fail_it(tmp_path):
    gates = [Gate(SCORE, ">=", 20.0, at="step 2"), Gate(SCORE, ">=", 30.0)]
    with pytest.raises(GateMissed, match="is not >= 20 at step 2; .* is not >= 30 at the end"):
        fit_line(tmp_path, steps=4, gates=gates, evaluate=scoring(100, [19.0, 29.0]))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
    with pytest.raises(GateMissed, match="is not >= 20 at step 2; .* is not >= 30 at the end"):
        fit_line(tmp_path, steps=4, gates=gates, resume=True)  # the answer does not fade


def test_gates_that_hold_let_the_run_finish(tmp_path):
    gates = [Gate(SCORE, ">=", 5.0, at="preflight"), Gate("loss/fit", "<", 1.0)]
    _, result = fit_line(tmp_path, steps=30, gates=gates, evaluate=scoring(10, [6.0] * 9))
    assert result.reason == "complete"
    assert result.metrics[SCORE] == 6.0


def test_a_preflight_gate_is_asked_before_the_first_update(tmp_path):
    gate = Gate(SCORE, ">", 10.0, at="preflight", fatal=True)
    model = nn.Linear(1, 1, bias=False).double()
    before = model.weight.clone()
    with pytest.raises(GateMissed, match="at step 0"):
        fit_line(tmp_path, model=model, gates=[gate], evaluate=scoring(10, [9.0]))
    assert torch.equal(before, model.weight)


def test_an_unmeasured_metric_fails_its_gate(tmp_path):
    with pytest.raises(GateMissed, match="metric/lpips was not measured"):
        fit_line(tmp_path, gates=[Gate("metric/lpips", "<=", 0.19)])


def weighted(weights):
    def loss(model, x, step):
        fine = (model(x) - 3 * x).square().mean()
        return Losses({"fit": Term(fine)}, {"loss/effective": weights[step]})

    return loss


def test_a_monotone_value_may_not_fall_across_a_resume(tmp_path):
    invariant = Invariant("loss/effective", monotone=True)
    options = {"invariants": [invariant], "log_interval": 1}
    fit_line(tmp_path, loss=weighted([0.1, 0.2, 0.3]), steps=3, **options)
    with pytest.raises(GateMissed, match=r"fell from 0\.3 to 0\.25 at step 4"):
        fit_line(tmp_path, loss=weighted([0, 0, 0, 0.25]), steps=5, resume=True, **options)


def test_the_best_checkpoint_is_kept_also_where_less_is_better(tmp_path):
    values = [5.0, 3.0, 4.0, 6.0, 7.0]
    fit_line(tmp_path, evaluate=scoring(1, values), metric_for_best=f"-{SCORE}")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.best() == checkpoints.folder(2)


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_in_it_with_weights_in_full(tmp_path, precision):
    kinds = set()
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def loss(model, x, step):
        prediction = model(x.float())
        kinds.add(prediction.dtype)
        return Losses({"fit": Term((prediction.float() - 3 * x).square().mean())})

    options = {"loss": loss, "precision": precision, "steps": 30}
    state, _ = fit_line(tmp_path, model=model, **options)
    assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert state.model.weight.dtype == torch.float32
    assert state.model.weight.item() == pytest.approx(line_after(30)[-1], rel=0.02)


def test_the_scaler_is_part_of_the_checkpoint(tmp_path):
    def loss(model, x, step):
        return Losses({"fit": Term((model(x.float()) - 3 * x).square().mean())})

    def model():
        torch.manual_seed(0)
        return nn.Linear(1, 1)

    options = {"loss": loss, "precision": "fp16"}
    whole, _ = fit_line(tmp_path / "a", model=model(), steps=8, **options)
    fit_line(tmp_path / "b", model=model(), steps=3, **options)
    parts, _ = fit_line(tmp_path / "b", model=model(), steps=8, resume=True, **options)
    assert tiny.differing(whole.state_dict(), parts.state_dict()) == []
    assert parts.scaler.state_dict()["_growth_tracker"] > 8 - 3  # more than this process can count


def test_shards_of_a_batch_are_handed_through(tmp_path):
    shards = []
    with Run.open("line", Line, directory=tmp_path, quiet=True) as run:
        model = nn.Linear(1, 1)
        state = TrainState(model, torch.optim.SGD(model.parameters()))

        def batch(step, shard):
            shards.append((step, shard))
            return torch.ones(1, 1)

        def loss(model, x, step):
            return Losses({"a": Term(model(x).sum())})

        fit(run, state, steps=2, batch=batch, loss=loss, lr=Constant(0.0).at, accumulate=2)
    assert shards == [(s, Shard(m, 2)) for s in (0, 1) for m in (0, 1)]


# Endings ------------------------------------------------------------------------------------------


def test_a_signal_during_the_last_step_still_stops_what_would_follow(tmp_path):
    def at_the_end(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        fit_line(tmp_path, before_step=at_the_end)
    assert caught.value.code == 143
    assert fit_line(tmp_path, resume=True)[1].step == 5


def test_a_spent_budget_ends_the_run_regularly(tmp_path):
    gate = Gate(SCORE, ">", 1.0)
    _, result = fit_line(
        tmp_path,
        steps=100,
        gates=[gate],
        evaluate=scoring(100, [2.0]),
        stop=lambda n: "time is up" if n == 7 else None,
    )
    assert (result.step, result.reason) == (7, "time is up")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.final() == checkpoints.folder(7)
