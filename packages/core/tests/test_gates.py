"""Gates and invariants: what passes, what does not, and what they say."""

import json
import math

import pydantic
import pytest
from loom.gates import (
    Baseline,
    Gate,
    Invariant,
    InvariantWatch,
    evaluate,
    gates_missed,
    write_results,
)

PSNR = "metric/psnr_db"
BLANK = {PSNR: 9.6, "baseline/blank/psnr_db": 9.48}


def answer(gate, metrics, step=1500, **when):
    (result,) = evaluate([gate], metrics, step, **when)
    return result


@pytest.mark.parametrize(
    ("op", "passing"),
    [(">=", [5.0, 6.0]), (">", [6.0]), ("<=", [5.0, 4.0]), ("<", [4.0])],
)
def test_operators_compare_the_metric_with_the_limit(op, passing):
    gate = Gate("metric/x", op, 5.0, at="every 10")
    passed = [v for v in (4.0, 5.0, 6.0) if answer(gate, {"metric/x": v}, 20).passed]
    assert sorted(passed) == sorted(passing)


@pytest.mark.parametrize("op", [">=", ">", "<=", "<"])
@pytest.mark.parametrize("value", [None, math.nan])
def test_what_was_not_measured_passes_no_gate(op, value):
    gate = Gate("metric/x", op, 5.0, at="step 1")
    assert not answer(gate, {"metric/x": value}, 1).passed
    assert not answer(gate, {}, 1).passed


def test_a_blank_student_is_named_with_value_limit_and_step():
    gate = Gate(PSNR, ">", Baseline("blank", 1.0), at="step 1500", otherwise="student is blank")
    result = answer(gate, BLANK)
    assert not result.passed
    assert result.limit == pytest.approx(10.48)
    for part in (PSNR, "9.6", "10.48", "1500", "student is blank"):
        assert part in result.message
    assert answer(gate, BLANK | {PSNR: 10.6}).passed


def test_a_missing_baseline_does_not_pass():
    result = answer(Gate(PSNR, ">", Baseline("blank", 1.0), at="step 1"), {PSNR: 30.0}, 1)
    assert not result.passed
    assert "baseline/blank/psnr_db was not measured" in result.message


@pytest.mark.parametrize(
    ("value", "passed"), [(29.7, True), (30.3, True), (29.6, False), (30.4, False)]
)
def test_within_is_two_sided(value, passed):
    gate = Gate(PSNR, "within", Baseline("metric/teacher_db", 0.301), at="end")
    assert answer(gate, {PSNR: value, "metric/teacher_db": 30.0}, end=True).passed is passed


def test_identical_pictures_are_within_any_distance():
    gate = Gate(PSNR, "within", Baseline("metric/teacher_db", 0.3))
    assert answer(gate, {PSNR: math.inf, "metric/teacher_db": math.inf}, end=True).passed


def test_gates_are_asked_when_they_are_due():
    def due(at):
        gate = Gate("metric/x", ">", 0.0, at=at)
        return [s for s in range(11) if gate.due(s, end=s == 10)]

    assert due("preflight") == [0]
    assert due("step 4") == [4]
    assert due("every 3") == [3, 6, 9]
    assert due("end") == [10]


@pytest.mark.parametrize("at", ["step", "step -1", "step 0", "every 0", "later", "end "])
def test_an_unknown_moment_is_refused(at):
    with pytest.raises(ValueError, match="gate at"):
        Gate("metric/x", ">", 0.0, at=at)


def test_gates_are_read_from_a_config_and_unknown_keys_refused():
    class Holder(pydantic.BaseModel):
        gates: tuple[Gate, ...]
        invariants: tuple[Invariant, ...] = ()

    row = {"metric": PSNR, "op": ">", "threshold": {"metric": "blank", "margin": 1}, "at": "step 9"}
    (gate,) = Holder.model_validate({"gates": [row]}).gates
    assert gate == Gate(PSNR, ">", Baseline("blank", 1.0), at="step 9")
    for wrong in (row | {"att": "end"}, row | {"at": "soon"}, row | {"op": "=>"}):
        with pytest.raises(pydantic.ValidationError):
            Holder.model_validate({"gates": [wrong]})


def test_results_are_written_with_infinities_as_text(tmp_path):
    results = evaluate([Gate(PSNR, ">=", 22.5)], {PSNR: math.inf}, 10, end=True)
    write_results(tmp_path / "gates.json", results)
    (row,) = json.loads((tmp_path / "gates.json").read_text(encoding="utf-8"))
    assert row["value"] == "inf"
    assert row["passed"] is True


def test_missed_gates_exit_with_code_3_and_name_each():
    results = evaluate(
        [Gate("a/b", ">", 1.0), Gate("c/d", "<", 1.0)], {"a/b": 0.0, "c/d": 2.0}, 5, end=True
    )
    error = gates_missed(results)
    assert error.exit_code == 3
    assert "a/b" in error.message
    assert "c/d" in error.message


WEIGHT = "loss/opacity_target_weight_effective"


def test_a_falling_value_is_a_breach_also_across_a_resume():
    invariant = Invariant(WEIGHT, monotone=True, otherwise="the schedule was restarted")
    before = InvariantWatch([invariant])
    assert not before.check({WEIGHT: 0.1}, 1)
    assert not before.check({WEIGHT: 0.1}, 2)
    assert not before.check({WEIGHT: 0.3}, 3)
    after = InvariantWatch([invariant])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    (breach,) = after.check({WEIGHT: 0.2}, 4)
    for part in (WEIGHT, "0.3", "0.2", "step 4", "restarted"):
        assert part in breach


def test_a_mask_below_its_floor_is_a_breach_at_the_third_record_in_a_row():
    watch = InvariantWatch([Invariant("metric/mask", min=0.05, records=3)])
    values = [0.04, 0.01, 0.06, 0.04, None, 0.03, math.nan, 0.02]
    found = [bool(watch.check({"metric/mask": v}, s)) for s, v in enumerate(values)]
    assert found == [False, False, False, False, False, False, True, True]


def test_the_streak_survives_a_resume():
    watch = InvariantWatch([Invariant("metric/mask", min=0.05, records=2)])
    watch.check({"metric/mask": 0.0}, 1)
    after = InvariantWatch([Invariant("metric/mask", min=0.05, records=2)])
    after.load_state_dict(watch.state_dict())
    assert after.check({"metric/mask": 0.0}, 2)


def test_a_ceiling_is_watched_and_other_records_are_passed_over():
    watch = InvariantWatch([Invariant("grad/norm", max=10.0)])
    assert not watch.check({"metric/x": 99.0}, 1)
    assert not watch.check({"grad/norm": 10.0}, 2)
    assert watch.check({"grad/norm": 10.1}, 3)


def test_an_invariant_that_asks_nothing_is_refused():
    with pytest.raises(ValueError, match="asks nothing"):
        Invariant("metric/x")
