import itertools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
import pytest
from loom.evaluation import statistics as room
from loom.evaluation.statistics import Undefined, auc, holm, iqm, mcnemar
from scipy import stats

P = ParamSpec("P")
T = TypeVar("T")


def defined(function: Callable[P, T | Undefined]) -> Callable[P, T]:
    """Narrow a function to the inputs that have an answer."""

    def narrowed(*args: P.args, **kwargs: P.kwargs) -> T:
        answer = function(*args, **kwargs)
        assert not isinstance(answer, Undefined), answer
        return answer

    return narrowed


bootstrap_interval = defined(room.bootstrap_interval)
permutation_test = defined(room.permutation_test)
shift_test = defined(room.shift_test)
stratified_interval = defined(room.stratified_interval)
wilson_interval = defined(room.wilson_interval)
mean_interval = defined(room.mean_interval)
difference_interval = defined(room.difference_interval)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_the_mean_s_interval_is_near_the_normal_one_for_normal_values(rng):
    values = rng.normal(5, 2, 400)
    interval = bootstrap_interval(values, rng)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)
    assert interval.n == 400


def test_the_percentile_interval_is_the_exact_one_of_all_resamples(rng):
    values = [1.0, 2.0, 6.0]
    means = [np.mean(sample) for sample in itertools.product(values, repeat=3)]
    interval = bootstrap_interval(values, rng, method="percentile", confidence=0.8)
    assert interval.low == pytest.approx(np.quantile(means, 0.1), abs=0.35)
    assert interval.high == pytest.approx(np.quantile(means, 0.9), abs=0.35)


def test_bca_follows_skew_and_percentile_does_not(rng):
    values = rng.exponential(1.0, 40)
    bca = bootstrap_interval(values, np.random.default_rng(0))
    percentile = bootstrap_interval(values, np.random.default_rng(0), method="percentile")
    assert bca.low > percentile.low
    assert bca.high > percentile.high


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        interval = bootstrap_interval(rng.normal(0, 1, 40), rng, resamples=400, confidence=0.9)
        covered += interval.low <= 0 <= interval.high
    assert 0.83 <= covered / 200 <= 0.96


def test_constant_values_have_an_interval_of_no_width(rng):
    assert bootstrap_interval([3.0] * 5, rng)[:3] == (3.0, 3.0, 3.0)


def test_the_permutation_p_value_is_that_of_all_relabelings(rng):
    treated, control = [3.1, 4.0, 5.2, 4.4], [2.0, 3.0, 2.2, 4.1]
    pooled = np.array(treated + control)
    observed = np.mean(treated) - np.mean(control)
    every = [
        pooled[list(picked)].mean() - np.delete(pooled, list(picked)).mean()
        for picked in itertools.combinations(range(8), 4)
    ]
    exact = np.mean(np.array(every) >= observed - 1e-12)
    test = permutation_test(treated, control, rng, alternative="greater")
    assert test.statistic == pytest.approx(observed)
    assert test.p == pytest.approx(exact, abs=4 * math.sqrt(exact / 9_999))
    two_sided = permutation_test(treated, control, rng)
    assert two_sided.p == pytest.approx(2 * exact, abs=0.012)


def test_p_is_never_below_the_floor_of_its_permutations(rng):
    test = permutation_test(
        np.arange(50) + 100.0, np.arange(50.0), rng, permutations=49, alternative="greater"
    )
    assert test.p == test.floor == pytest.approx(1 / 50)


def test_no_difference_gives_p_one(rng):
    assert permutation_test([1.0, 1.0], [1.0, 1.0, 1.0], rng, alternative="greater").p == 1.0


def slow_signal(rng: np.random.Generator, length: int) -> np.ndarray:
    return np.convolve(rng.normal(size=length + 60), np.ones(60) / 60, mode="valid")[:length]


def slow_events(rng: np.random.Generator, length: int) -> np.ndarray:
    return slow_signal(rng, length) > 0


def test_shifts_keep_their_level_on_correlated_signals_where_iid_labels_do_not():
    rng = np.random.default_rng(5)
    shifted, iid = 0, 0
    for _ in range(60):
        signal, events = slow_signal(rng, 600), slow_events(rng, 600)
        shifted += shift_test(signal, events, rng, permutations=99).p <= 0.05
        iid += (
            permutation_test(
                signal[events], signal[~events], rng, permutations=99, alternative="greater"
            ).p
            <= 0.05
        )
    assert shifted <= 9  # expected 3 of 60; 9 is beyond the 99.9 % point of the binomial
    assert iid >= 15


def test_the_shift_test_takes_every_shift_once_when_there_are_few(rng):
    signal = rng.normal(size=12)
    events = np.arange(12) % 5 == 0
    statistics = [
        signal[np.roll(events, shift)].mean() - signal[~np.roll(events, shift)].mean()
        for shift in range(12)
    ]
    test = shift_test(signal, events, rng)
    assert test.n_permutations == 11
    assert test.p == pytest.approx(np.mean(np.array(statistics) >= statistics[0] - 1e-12))
    assert test.floor == pytest.approx(1 / 12)


def test_the_shift_test_finds_an_aligned_signal_and_not_with_the_wrong_sign(rng):
    events = rng.random(400) < 0.05
    signal = events + 0.1 * rng.normal(size=400)
    assert shift_test(signal, events, rng, permutations=399).p <= 0.01
    assert shift_test(-signal, events, rng, permutations=399).p > 0.9


def test_short_shifts_are_left_out_on_both_sides(rng):
    seen = []

    def statistic(signal: np.ndarray, events: np.ndarray) -> float:
        seen.append(int(np.argmax(events)))
        return 0.0

    shift_test(np.zeros(20), np.arange(20) == 0, rng, statistic=statistic, minimum_shift=4)
    assert sorted(set(seen) - {0}) == list(range(4, 17))


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert iqm([100.0, 1.0, 2.0, 3.0, -50.0, 4.0, 9.0, 10.0]) == pytest.approx((2 + 3 + 4 + 9) / 4)
    assert iqm(np.array([[0.0, 1.0], [2.0, 9.0]])) == pytest.approx(1.5)


def test_runs_are_resampled_within_tasks(rng):
    # Tasks differ by far more than runs: resampling across tasks would widen the interval a lot.
    table = np.array([0.0, 10.0, 20.0, 30.0]) + rng.normal(0, 0.1, (5, 4))
    interval = stratified_interval(table, rng, aggregate=lambda sample: float(sample.mean()))
    assert interval.estimate == pytest.approx(table.mean())
    sd = math.sqrt((table.var(axis=0) / 5).sum()) / 4
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * sd, rel=0.15)
    assert stratified_interval(table, rng, resamples=200).estimate == iqm(table)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 17), (199, 200)])
def test_wilson_equals_scipy(successes, n):
    theirs = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    ours = wilson_interval(successes, n)
    assert ours[:3] == pytest.approx((successes / n, theirs.low, theirs.high), abs=1e-12)


def test_auc_is_the_share_of_pairs_in_order_with_ties_half(rng):
    scores = rng.integers(0, 6, 40).astype(float)
    labels = rng.random(40) < 0.4
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[labels]
        for low in scores[~labels]
    ]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert auc(scores, ~labels) == pytest.approx(1 - np.mean(pairs))
    assert auc([1.0, 1.0, 1.0], [True, False, False]) == 0.5


def test_mcnemar_is_the_exact_binomial_tail():
    exact = 2 * sum(math.comb(12, k) for k in range(3)) / 2**12
    assert mcnemar(2, 10) == pytest.approx(exact)
    assert mcnemar(10, 2) == pytest.approx(exact)
    assert mcnemar(4, 4) == pytest.approx(1.0)


def test_holm_steps_down_and_stays_in_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


UNDEFINED = {
    "no values": lambda rng: room.bootstrap_interval([], rng),
    "1 value, an interval needs 2": lambda rng: room.bootstrap_interval([1.0], rng),
    "1 of 2 values are not finite": lambda rng: room.bootstrap_interval([1.0, math.nan], rng),
    "0 events in 5 time steps": lambda rng: room.shift_test(np.arange(5.0), np.zeros(5), rng),
    "5 events in 5 time steps": lambda rng: room.shift_test(np.arange(5.0), np.ones(5), rng),
    "no shift of 9 or more": lambda rng: room.shift_test(
        np.arange(5.0), np.arange(5) == 1, rng, minimum_shift=9
    ),
    "0 events and 3 other values": lambda rng: room.auc(np.arange(3.0), np.zeros(3)),
    "3 events and 0 other values": lambda rng: room.auc(np.arange(3.0), np.ones(3)),
    "not finite for 1 of 3 labellings": lambda rng: room.shift_test(
        np.arange(3.0), [1, 0, 0], rng, statistic=lambda x, e: math.nan if e[0] else 0.0
    ),
    "not finite for 2 of 3 labellings": lambda rng: room.shift_test(
        np.arange(3.0), [1, 0, 0], rng, statistic=lambda x, e: 0.0 if e[0] else math.nan
    ),
    "0 trials": lambda rng: room.wilson_interval(0, 0),
    "agree in every case": lambda rng: room.mcnemar(0, 0),
    "1 run, an interval needs 2": lambda rng: room.stratified_interval([[1.0, 2.0]], rng),
    "1 of 2 scores are finite": lambda rng: room.stratified_interval([[1.0, math.inf]], rng),
    "no values ": lambda rng: room.iqm([]),
    "no values  ": lambda rng: room.permutation_test([1.0], [], rng),
}


@pytest.mark.parametrize("reason", UNDEFINED)
def test_what_has_no_answer_is_undefined_with_its_reason(reason, rng):
    answer = UNDEFINED[reason](rng)
    assert isinstance(answer, Undefined)
    assert reason.strip() in answer.reason
    assert str(answer).startswith("undefined: ")
    assert not answer


def test_the_same_generator_gives_the_same_answer():
    values = np.random.default_rng(0).normal(size=30)
    answers = [
        (
            bootstrap_interval(values, rng, resamples=99),
            permutation_test(values[:10], values[10:], rng, permutations=99),
            shift_test(values, values > 0.5, rng, permutations=9),
            stratified_interval(values.reshape(10, 3), rng, resamples=99),
        )
        for rng in (np.random.default_rng(4), np.random.default_rng(4))
    ]
    assert answers[0] == answers[1]


def test_the_t_interval_covers_the_mean_of_three_normal_values_as_often_as_it_says(rng):
    found = [mean_interval(rng.normal(3.0, 2.0, 3), 0.9) for _ in range(4000)]
    covered = np.mean([each.low <= 3.0 <= each.high for each in found])
    assert covered == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 4000))


def test_the_t_interval_of_known_values():
    # t(0.975, 2) = 4.30265, the standard error of 1, 2, 3 is 1 / sqrt(3)
    found = mean_interval([1.0, 2.0, 3.0])
    half = 4.30265 / math.sqrt(3)
    assert (found.estimate, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-4)
    assert isinstance(room.mean_interval([1.0]), Undefined)
    assert isinstance(room.mean_interval([1.0, math.nan]), Undefined)


def test_the_interval_of_a_difference_is_welch_s(rng):
    first, second = rng.normal(0, 1, 4), rng.normal(3, 5, 7)
    found = difference_interval(first, second, 0.9)
    other = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((other.low, other.high))
    assert found.estimate == pytest.approx(second.mean() - first.mean())
    assert difference_interval([1.0, 1.0], [3.0, 3.0])[:3] == (2.0, 2.0, 2.0)
    assert isinstance(room.difference_interval([1.0, 2.0], [1.0]), Undefined)
    assert isinstance(room.difference_interval([1.0, math.nan], [1.0, 2.0]), Undefined)
