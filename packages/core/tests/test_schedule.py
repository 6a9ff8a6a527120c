"""Schedules against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loom.schedule import (
    Constant,
    Piecewise,
    Ramp,
    Schedule,
    WarmupCosine,
    is_monotone,
    ramp,
    warmup_cosine,
)


def test_warmup_is_a_line_from_one_part_of_the_peak_to_the_peak():
    values = [warmup_cosine(s, peak=5e-4, warmup=4, total=100) for s in range(4)]
    assert values == pytest.approx([1.25e-4, 2.5e-4, 3.75e-4, 5e-4])


def test_cosine_is_at_the_peak_the_middle_and_the_floor_where_it_should_be():
    schedule = WarmupCosine(peak=1.0, warmup=10, total=110, floor=0.2)
    assert schedule.at(10) == 1.0
    assert schedule.at(60) == pytest.approx(0.6)
    assert schedule.at(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule.at(110) == schedule.at(10_000) == 0.2


@given(st.integers(-10, 300), st.integers(1, 100), st.integers(0, 100))
def test_linear_ramp_is_the_clamped_line(step, over, begin):
    part = min(1.0, max(0.0, (step - begin) / over))
    assert ramp(step, 2.0, -1.0, over, begin) == pytest.approx(2.0 - 3.0 * part)


def test_cosine_ramp_passes_the_middle_at_half_time_and_a_quarter_at_a_third():
    assert ramp(50, 0.0, 1.0, over=100, shape="cosine") == pytest.approx(0.5)
    assert ramp(40, 0.0, 1.0, over=120, shape="cosine") == pytest.approx(0.25)


def test_ramp_over_no_steps_is_a_jump():
    assert [Ramp(0.0, 1.0, over=0, begin=3).at(s) for s in (2, 3)] == [0.0, 1.0]


def test_piecewise_holds_or_joins_its_knots():
    knots = ((2, 1.0), (4, 3.0), (8, 0.0))
    steps = (0, 2, 3, 4, 6, 8, 99)
    assert [Piecewise(knots).at(s) for s in steps] == [1.0, 1.0, 1.0, 3.0, 3.0, 0.0, 0.0]
    joined = [Piecewise(knots, "linear").at(s) for s in steps]
    assert joined == pytest.approx([1.0, 1.0, 2.0, 3.0, 1.5, 0.0, 0.0])


def test_a_fall_anywhere_is_not_monotone():
    assert is_monotone(Ramp(0.0, 1.0, over=50), steps=100)
    assert not is_monotone(Piecewise(((0, 1.0), (99, 0.9), (100, 2.0))), steps=200)
    assert is_monotone(Ramp(1.0, 0.0, over=50), steps=100, falling=True)
    assert not is_monotone(WarmupCosine(1.0, 5, 50), steps=50, falling=True)


def test_all_schedules_are_values_with_at():
    same = (Constant(1.0), Constant(1.0))
    assert same[0] == same[1]
    assert hash(Ramp(0, 1, 2)) == hash(Ramp(0, 1, 2))
    for schedule in (Constant(1), Ramp(0, 1, 2), WarmupCosine(1, 2, 3), Piecewise(((0, 1),))):
        assert isinstance(schedule, Schedule)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Ramp(0, 1, over=-1),
        lambda: WarmupCosine(1, warmup=5, total=4),
        lambda: Piecewise(()),
        lambda: Piecewise(((5, 1.0), (5, 2.0))),
    ],
)
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError, match=r"\d|rising"):
        wrong()
