"""What a matrix says of arms and of single networks, and how sure it is."""

import json
import sys
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
from loom.errors import UserError
from loom.evaluation.statistics import mean_interval
from loom.run import Run
from maniflow_overlay.evaluation.config import MatrixConfig
from maniflow_overlay.evaluation.crossed import crossed_interval
from maniflow_overlay.evaluation.judgement import comparisons, rates
from maniflow_overlay.evaluation.matrix import CELLS, Cell
from maniflow_overlay.evaluation.page import FOLDER, summary, write_page
from maniflow_overlay.evaluation.rollout import Outcome
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from made_up_cells import CLEAR, NOISY, made_cell


def test_rates_are_pooled_over_trainings_with_wilsons_interval():
    cells = [
        made_cell("current A", "s0", NOISY, [1] * 6 + [0] * 4),
        made_cell("current A", "s1", NOISY, [1] * 2 + [0] * 8),
    ]
    (rate,) = rates(cells)
    p, n, z = 8 / 20, 20, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (rate.runs, rate.episodes, rate.rate) == (2, 20, p)
    assert (rate.low, rate.high) == pytest.approx((centre - half, centre + half))
    assert (rate.lowest, rate.highest) == (0.2, 0.6)
    assert rate.picked == p
    assert rate.mistaken == 1 - p
    assert rate.shown() == "40 % [22, 61]"


def made_pair(first, second, runs=None):
    """Two arms from (trainings, episodes) each; `runs` is the order of the cells in the file."""
    return [
        made_cell(arm, f"s{run}", condition, solved[run])
        for arm, condition, solved in (("current A", NOISY, first), ("none", CLEAR, second))
        for run in (runs or range(len(first)))
    ]


def exact_mcnemar(first, second):
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    tail = sum(comb(total, k) for k in range(min(only_first, only_second) + 1)) / 2**total
    return min(1.0, 2 * tail)


def test_networks_are_compared_episode_by_episode_within_a_training():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 40)) < 0.8, rng.random((2, 40)) < 0.4
    (found,) = comparisons(made_pair(first, second, runs=(1, 0)))
    assert (found.runs, found.pairs) == (2, 80)
    assert found.gain == pytest.approx(first.mean() - second.mean())
    assert found.only_first == (first & ~second).sum()
    assert found.only_second == (second & ~first).sum()
    expected = [exact_mcnemar(one, other) for one, other in zip(first, second, strict=True)]
    assert found.mcnemar == pytest.approx(expected)
    assert found.mcnemar_holm == pytest.approx(
        [max(min(expected) * 2, p) if p == max(expected) else p * 2 for p in expected]
    )


def test_the_same_network_trained_twice_is_no_second_witness():
    """Pooled, two copies of one training would have the p of twice the episodes."""
    rng = np.random.default_rng(1)
    first, second = rng.random((1, 40)) < 0.7, rng.random((1, 40)) < 0.4
    (once,) = comparisons(made_pair(first, second))
    (twice,) = comparisons(made_pair(first.repeat(2, 0), second.repeat(2, 0)))
    assert once.mcnemar == pytest.approx((exact_mcnemar(first, second),))
    assert twice.mcnemar == once.mcnemar * 2
    # Trainings that do the same leave the episodes to vary: a paired t test over them.
    paired = stats.ttest_1samp(first[0].astype(float) - second[0], 0)
    interval = paired.confidence_interval()
    assert twice.p == pytest.approx(paired.pvalue)
    assert (twice.low, twice.high) == pytest.approx((interval.low, interval.high))
    assert exact_mcnemar(first.repeat(2, 0), second.repeat(2, 0)) < once.mcnemar[0] / 3


def test_trainings_that_differ_on_all_episodes_alike_are_as_many_witnesses_as_there_are_trainings():
    """Of 60 episodes per training, each gains on all or loses on all: a t test of three values."""
    gains = np.array([1.0, 1.0, -1.0])[:, None].repeat(60, axis=1)
    found = crossed_interval(gains)
    of_three = stats.ttest_1samp(gains[:, 0], 0)
    assert found.freedom == 2
    assert found.p == pytest.approx(of_three.pvalue)
    interval = of_three.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_the_interval_of_a_crossed_table_by_hand():
    """Means of rows 1, 2 and of columns 0, 1, 3.5: MS_a = 3 / 2, MS_b = 2 * 13 / 4."""
    table = np.array([[0.0, 0.0, 3.0], [0.0, 2.0, 4.0]])
    found = crossed_interval(table)
    of_runs, of_episodes = 3 / 2, 2 * 13 / 4
    freedom = (of_runs + of_episodes) ** 2 / (of_runs**2 / 1 + of_episodes**2 / 2)
    half = stats.t.ppf(0.975, freedom) * ((of_runs + of_episodes) / 6) ** 0.5
    assert found.freedom == pytest.approx(freedom)
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half))


def test_the_interval_is_wrong_as_seldom_as_it_says_where_pooled_episodes_are_not():
    """Three trainings on the same 40 tables, no difference between the arms, 1,000 matrices."""
    rng = np.random.default_rng(0)
    wrong = np.zeros(3)
    for _ in range(1000):
        ease = rng.normal(0, 2, (1, 40))
        first, second = (
            rng.random((3, 40)) < 1 / (1 + np.exp(-ease - rng.normal(0, 0.6, (3, 1)) - taste))
            for taste in rng.normal(0, 2, (2, 1, 40))  # a table may suit one arm
        )
        gains = first.astype(float) - second
        found, alone = crossed_interval(gains), mean_interval(gains.mean(axis=1))
        wrong[0] += not found.low <= 0 <= found.high
        wrong[1] += exact_mcnemar(first, second) < 0.05
        wrong[2] += not alone.low <= 0 <= alone.high
    crossed, pooled, trainings_alone = wrong / 1000
    assert crossed < 0.055
    assert pooled > 0.2
    assert trainings_alone > 0.07


def test_one_training_says_nothing_of_arms_and_neither_does_a_difference_nowhere():
    ones, noughts = np.ones((1, 9), bool), np.zeros((1, 9), bool)
    (single,) = comparisons(made_pair(ones, noughts))
    assert (single.low, single.high, single.p, single.p_holm) == (None,) * 4
    assert single.mcnemar == pytest.approx((2 / 2**9,))
    (same,) = comparisons(made_pair(ones.repeat(2, 0), ones.repeat(2, 0)))
    assert (same.gain, same.low, same.p_holm) == (0, None, None)
    assert same.mcnemar == same.mcnemar_holm == (1.0, 1.0)
    (without,) = comparisons(made_pair(noughts.repeat(3, 0), noughts.repeat(3, 0))[:-1])
    assert without.runs == 2  # the third training of one has no partner


def test_holm_corrects_over_all_comparisons_of_each_kind():
    rng = np.random.default_rng(3)
    rates_of = {"current A": 0.5, "initial A": 0.2, "initial+current A": 0.8}
    cells = [
        made_cell(arm, f"s{run}", NOISY, rng.random(30) < rate)
        for arm, rate in rates_of.items()
        for run in range(2)
    ]
    found = comparisons(cells)
    assert len(found) == 3
    for kind, corrected in (("p", "p_holm"), ("mcnemar", "mcnemar_holm")):
        raw = np.ravel([getattr(each, kind) for each in found])
        adjusted = np.ravel([getattr(each, corrected) for each in found])
        order = np.argsort(raw)
        steps = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
        np.testing.assert_allclose(adjusted[order], np.minimum(steps, 1))
    listed = json.loads(json.dumps(summary(cells)))["comparisons"]
    assert [row["mcnemar"] for row in listed] == [list(each.mcnemar) for each in found]


def test_cells_of_other_episodes_are_not_compared():
    other = Cell("none", "s", CLEAR, tuple(Outcome(seed, True, True, False, 9) for seed in (7, 8)))
    with pytest.raises(UserError, match="different episodes"):
        comparisons([made_cell("current A", "s", NOISY, [1, 1]), other])
    with pytest.raises(UserError, match="different episodes"):
        rates([made_cell("none", "t", CLEAR, [1, 1]), other])


def test_the_page_says_of_each_task_what_is_said_of_arms_and_what_of_networks(tmp_path):
    rng = np.random.default_rng(3)
    marked = replace(NOISY, task="pick_place_marked", occluded=True)
    cells = [
        made_cell(arm, f"s{run}", condition, rng.random(30) < rate)
        for condition in (NOISY, marked)
        for arm, rate in (("current A", 0.3), ("initial+current A", 0.9))
        for run in range(2)
    ]
    with Run.open("maniflow_overlay", MatrixConfig, directory=tmp_path / "m", quiet=True) as run:
        place = run.path(FOLDER, CELLS)
    place.write_text("".join(cell.to_json() + "\n" for cell in cells))
    page = write_page(run.dir).read_text(encoding="utf-8")
    for found in comparisons(cells):
        assert f"Arms compared on the same episodes: {found.condition.task}<" in page
        assert f">{', '.join(f'{p:.2g}' for p in found.mcnemar_holm)}<" in page
