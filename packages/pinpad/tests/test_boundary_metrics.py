import itertools
import math

import numpy as np
import pytest
from loom.evaluation.statistics import Undefined
from pinpad.boundary import compat
from pinpad.boundary.matching import average_precision, match, top
from pinpad.boundary.nulls import hits_by_shift, near, placement_p, shift_test
from pinpad.boundary.segments import (
    covering,
    mutual_information,
    p_k,
    segment_ids,
    shape,
    spells,
    window,
    window_diff,
)
from scipy import stats
from scipy.optimize import linear_sum_assignment


def series(rng, steps, rate):
    return rng.random(steps) < rate


def bursty(rng, steps):
    """A series that stays in a quiet or a busy state for about 40 steps."""
    busy = np.cumsum(rng.random(steps) < 1 / 40) % 2 == 1
    return rng.random(steps) < np.where(busy, 0.4, 0.01)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_matching_finds_as_many_pairs_as_an_optimal_assignment(tolerance):
    rng = np.random.default_rng(tolerance)
    for _ in range(40):
        boundary, event = series(rng, 80, 0.15), series(rng, 80, 0.1)
        near_enough = (
            np.abs(np.flatnonzero(boundary)[:, None] - np.flatnonzero(event)[None]) <= tolerance
        )
        pairs = linear_sum_assignment(-near_enough.astype(int))
        expected = int(near_enough[pairs].sum())
        found = match(boundary, event, tolerance)
        assert found.matched == expected
        assert found.precision == pytest.approx(expected / boundary.sum())
        assert found.recall == pytest.approx(expected / event.sum())
        p, r = expected / boundary.sum(), expected / event.sum()
        assert found.f1 == pytest.approx(2 * p * r / (p + r) if expected else 0.0)


def test_two_boundaries_share_no_event():
    boundary, event = np.zeros(20, bool), np.zeros(20, bool)
    boundary[[9, 10, 11]], event[10] = True, True
    assert match(boundary, event, 1) == (1, 3, 1)


def test_what_cannot_be_computed_says_why():
    nothing, some = np.zeros(10, bool), np.arange(10) == 4
    assert match(nothing, some, 0).f1 == 0
    assert str(match(nothing, some, 0).precision) == "undefined: no boundaries"
    assert isinstance(match(some, nothing, 0).f1, Undefined)
    assert isinstance(average_precision(np.zeros(10), nothing), Undefined)
    assert isinstance(shift_test([nothing], [some], np.random.default_rng(0)), Undefined)
    assert isinstance(mutual_information(segment_ids(nothing), segment_ids(nothing)), Undefined)


def test_average_precision_is_the_sum_over_all_thresholds_also_with_ties():
    rng = np.random.default_rng(0)
    for levels in (3, 10, 10_000):
        for _ in range(20):
            score, event = rng.integers(0, levels, 120) / levels, series(rng, 120, 0.1)
            event[0] = True
            expected, recall_before = 0.0, 0.0
            for threshold in sorted(set(score.tolist()), reverse=True):
                taken = score >= threshold
                recall = (taken & event).sum() / event.sum()
                expected += (recall - recall_before) * (taken & event).sum() / taken.sum()
                recall_before = recall
            assert average_precision(score, event) == pytest.approx(expected)


def test_the_top_scores_are_taken_earlier_ones_first():
    assert np.flatnonzero(top(np.array([9.0, 3.0, 2.0, 3.0, 2.0]), 3)).tolist() == [1, 2, 3]
    assert top(np.zeros(4), 0).sum() == 0
    assert top(np.zeros(4), 9).sum() == 3


@pytest.mark.parametrize("width", [2, 3, 7])
def test_window_measures_agree_with_counting_in_every_window(width):
    rng = np.random.default_rng(width)
    for _ in range(20):
        boundary, event = series(rng, 60, 0.2), series(rng, 60, 0.1)
        windows = [slice(i, i + width) for i in range(60 - width + 1)]
        differs = [boundary[w].sum() != event[w].sum() for w in windows]
        one_sided = [boundary[w].any() != event[w].any() for w in windows]
        assert window_diff(boundary, event, width) == pytest.approx(sum(differs) / len(windows))
        assert p_k(boundary, event, width) == pytest.approx(sum(one_sided) / len(windows))


def test_the_window_is_half_a_mean_segment():
    event = np.zeros(100, bool)
    event[[20, 40, 60, 80]] = True
    assert window(event) == 10
    assert window(np.ones(100, bool)) == 2
    assert window_diff(event, event, window(event)) == 0


def test_covering_agrees_with_sets():
    rng = np.random.default_rng(3)
    for _ in range(20):
        boundary, event = series(rng, 50, 0.2), series(rng, 50, 0.1)

        def sets(cuts):
            ids = np.cumsum(cuts)
            return [set(np.flatnonzero(ids == i).tolist()) for i in np.unique(ids)]

        expected = sum(
            len(true) * max(len(true & ours) / len(true | ours) for ours in sets(boundary))
            for true in sets(event)
        )
        assert covering(boundary, event) == pytest.approx(expected / 50)
    assert covering(event, event) == 1


def test_mutual_information_is_that_of_the_joint_frequencies():
    rng = np.random.default_rng(4)

    def entropy(labels):
        shares = [labels.count(value) / len(labels) for value in set(labels)]
        return -sum(share * math.log(share) for share in shares)

    for _ in range(20):
        first = segment_ids(series(rng, 70, 0.1))
        second = segment_ids(series(rng, 70, 0.2))
        one, two = first.tolist(), second.tolist()
        shared = entropy(one) + entropy(two) - entropy(list(zip(one, two, strict=True)))
        expected = shared / ((entropy(one) + entropy(two)) / 2)
        assert mutual_information(first, second) == pytest.approx(expected)


def test_one_segment_shares_exactly_nothing():
    # the sum of logarithms over these 1,000 labels is not 0 but 1e-16
    labels = np.cumsum(np.random.default_rng(2).random(1_000) < 0.1)
    assert mutual_information(np.zeros(1_000), labels) == 0
    assert mutual_information(labels, np.zeros(1_000)) == 0


def test_a_spell_begins_where_a_label_changes():
    assert spells(np.array([2, 2, 3, 3, 2])).tolist() == [False, False, True, False, True]


def test_hits_of_every_shift_agree_with_rolling():
    rng = np.random.default_rng(5)
    for steps in (30, 31):
        boundary, event = series(rng, steps, 0.3), series(rng, steps, 0.3)
        expected = [(np.roll(boundary, shift) & event).sum() for shift in range(steps)]
        assert hits_by_shift(boundary, event).tolist() == expected


def test_near_events_are_those_within_the_tolerance():
    event = np.zeros(12, bool)
    event[[0, 6]] = True
    expected = [any(abs(t - e) <= 2 for e in (0, 6)) for t in range(12)]
    assert near(event, 2).tolist() == expected


def test_one_episode_is_shifted_by_every_step_once():
    rng = np.random.default_rng(6)
    boundary, event = series(rng, 200, 0.1), series(rng, 200, 0.1)
    test = shift_test([boundary], [event], rng)
    hits = [(np.roll(boundary, shift) & event).sum() for shift in range(200)]
    assert not isinstance(test, Undefined)
    assert test.p == pytest.approx(sum(h >= hits[0] for h in hits) / 200)
    assert (test.floor, test.n_permutations) == (1 / 200, 199)


def test_a_tolerance_counts_boundaries_beside_events():
    event = np.zeros(400, bool)
    event[[20, 57, 143, 260, 301]] = True
    beside = np.roll(event, 1)
    rng = np.random.default_rng(0)
    strict = shift_test([beside], [event], rng)
    loose = shift_test([beside], [event], rng, tolerance=1)
    assert not isinstance(strict, Undefined)
    assert not isinstance(loose, Undefined)
    assert (strict.statistic, loose.statistic) == (0, 5)
    assert strict.p > 0.5
    assert loose.p < 0.02


def test_unrelated_bursts_are_called_related_as_rarely_as_the_level_says():
    rng = np.random.default_rng(7)
    by_shift, by_placement = [], []
    for _ in range(300):
        boundaries = [bursty(rng, 300) for _ in range(2)]
        events = [bursty(rng, 300) for _ in range(2)]
        test = shift_test(boundaries, events, rng, permutations=199)
        by_shift.append(not isinstance(test, Undefined) and test.p <= 0.05)
        one_by_one = placement_p(np.concatenate(boundaries), np.concatenate(events))
        by_placement.append(not isinstance(one_by_one, Undefined) and one_by_one <= 0.05)
    assert np.mean(by_shift) <= 0.08
    assert np.mean(by_placement) > 0.09  # why the headline is not this one


def test_related_series_are_found():
    rng = np.random.default_rng(8)
    events = [series(rng, 500, 0.05) for _ in range(3)]
    boundaries = [event & series(rng, 500, 0.5) for event in events]
    test = shift_test(boundaries, events, rng)
    assert not isinstance(test, Undefined)
    assert test.p == test.floor == 1e-4


def test_placement_agrees_with_counting_all_placements():
    event = np.array([1, 1, 0, 0, 1, 0, 0], bool)
    boundary = np.array([1, 0, 0, 1, 1, 0, 0], bool)
    placements = list(itertools.combinations(range(7), 3))
    as_many = sum(event[list(places)].sum() >= 2 for places in placements)
    assert placement_p(boundary, event) == pytest.approx(as_many / len(placements))


def test_the_clock_the_silent_and_the_always_on_are_flagged_and_others_are_not():
    rng = np.random.default_rng(9)
    clock = [np.arange(1_000) % 30 == 29 for _ in range(3)]
    assert shape(clock).flags == ("clock",)
    assert shape(clock).interval_cv == 0
    two_clocks = [np.arange(1_000) % 30 == 29, np.arange(1_000) % 17 == 0]
    assert shape(two_clocks).flags == ("clock",)
    jittered = [np.arange(1_000) % 30 == 29 for _ in range(3)]
    for boundary in jittered:
        boundary[rng.integers(1_000)] = True  # a chance boundary does not hide a clock
    assert shape(jittered).flags == ("clock",)
    assert shape([np.zeros(1_000, bool)] * 3).flags == ("silent",)
    twice = np.zeros(3_000, bool)
    twice[[700, 1_900]] = True
    assert shape([twice]).flags == ("silent",)
    assert shape([np.ones(1_000, bool)] * 3).flags == ("always_on",)
    chance = shape([series(rng, 1_000, 0.1) for _ in range(5)])
    assert chance.flags == ()
    assert chance.interval_cv == pytest.approx(math.sqrt(0.9), abs=0.12)  # geometric intervals
    assert shape([series(rng, 1_000, 0.7)]).flags == ("always_on",)


def planted(steps, boundary_at, event_count, hits, periodic_hits, period):
    """A series of events with given numbers at boundaries and on a periodic grid."""
    boundary = np.zeros(steps, bool)
    boundary[boundary_at] = True
    grid = np.arange(0, steps, period)[: len(boundary_at)]
    event = np.zeros(steps, bool)
    on_both = np.intersect1d(boundary_at, grid)
    event[np.setdiff1d(boundary_at, grid)[:hits]] = True
    event[np.setdiff1d(grid, on_both)[:periodic_hits]] = True
    rest = np.setdiff1d(np.arange(steps), np.union1d(boundary_at, grid))
    event[rest[: event_count - int(event.sum())]] = True
    return boundary, event


def test_the_first_recorded_condition_s_figures_come_out():
    rng = np.random.default_rng(0)
    free = np.setdiff1d(np.arange(1_001), np.arange(0, 1_001, 18))
    boundary, event = planted(
        1_001, np.sort(rng.choice(free, 57, replace=False)), 114, 50, 7, period=18
    )
    row = compat.event_metrics("delta", boundary, None, event)
    assert row["event_rate"] == pytest.approx(114 / 1_001)
    assert round(row["event_at_boundary"], 3) == 0.877
    assert round(row["lift_over_event_rate"], 2) == 7.70
    assert round(row["perm_p_value"], 4) == 0.0196
    assert row["periodic_baseline"] == 0.125
    assert placement_p(boundary, event) == pytest.approx(1.1e-44, rel=0.05)


def test_the_second_recorded_condition_is_a_clock():
    boundary = np.zeros(1_001, bool)
    boundary[30:991:30] = True
    assert boundary.sum() == 33
    event = np.zeros(1_001, bool)
    event[[60, 300]] = True
    rest = np.setdiff1d(np.arange(1_001), np.arange(0, 1_001, 30))
    event[np.random.default_rng(1).choice(rest, 123, replace=False)] = True
    row = compat.event_metrics("delta", boundary, None, event)
    assert row["event_rate"] == pytest.approx(125 / 1_001)
    assert round(row["event_at_boundary"], 4) == 0.0606
    assert round(row["lift_over_event_rate"], 3) == 0.485
    assert round(row["periodic_baseline"], 4) == 0.0606
    # 47 of 50 placements were as good; the exact tail is .933.
    assert (row["perm_p_value"] * 51) == pytest.approx(round(row["perm_p_value"] * 51))
    assert abs(row["perm_p_value"] - 0.933) < 3 * math.sqrt(0.933 * 0.067 / 50)
    assert placement_p(boundary, event) == pytest.approx(0.933, abs=5e-4)
    assert shape([boundary]).flags == ("clock",)


def test_the_third_recorded_condition_has_no_boundary_and_no_figure():
    event = np.arange(1_001) % 8 == 0
    prob = np.random.default_rng(0).uniform(0, 0.4, 1_001)
    row = compat.event_metrics("delta", prob > 0.5, prob, event)
    nothing = ("event_at_boundary", "lift_over_event_rate", "perm_observed", "perm_p_value")
    assert all(row[name] is None for name in (*nothing, "periodic_baseline"))
    wins = np.sign(prob[event][:, None] - prob[~event][None])  # every pair of event and rest
    assert row["auc_read_prob"] == pytest.approx((wins.mean() + 1) / 2)
    assert shape([prob > 0.5]).flags == ("silent",)


def test_the_old_permutation_test_draws_as_it_did():
    rng = np.random.default_rng(3)
    for _ in range(5):
        boundary, event = series(rng, 300, 0.1), series(rng, 300, 0.2)
        generator, count = np.random.default_rng(0), int(boundary.sum())
        observed, as_good = event[boundary].mean(), 0
        for _ in range(50):
            places = generator.choice(300, size=count, replace=False)
            as_good += sum(event[place] for place in places) / count >= observed
        row = compat.event_metrics("x", boundary, None, event, permutations=50)
        assert row["perm_p_value"] == pytest.approx((as_good + 1) / 51)


def test_frame_delta_and_its_events_follow_their_definition():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    delta = compat.frame_delta(image)
    assert delta[0] == 0
    for t in range(1, 12):
        pairs = zip(image[t].ravel().tolist(), image[t - 1].ravel().tolist(), strict=True)
        assert delta[t] == pytest.approx(sum(abs(a - b) for a, b in pairs) / 48)
    ties = np.array([0.0] * 8 + [2.0] * 4)
    assert compat.delta_events(ties).sum() == 4  # more than a tenth: all that tie are events


def test_cohen_s_d_is_the_difference_over_the_pooled_deviation():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0])
    pooled = (stats.tvar(first) + stats.tvar(second)) / 2
    assert compat.cohen_d(first, second) == pytest.approx((7 / 3 - 0.5) / math.sqrt(pooled))
    assert compat.cohen_d(first[:0], second) is None
    summary = compat.delta_summary(np.arange(10.0), np.arange(10) > 7)
    assert summary["frame_delta_mean_boundary"] == 8.5
    assert summary["frame_delta_mean_nonboundary"] == 3.5
