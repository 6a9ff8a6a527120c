import json
import math

import pytest
from loom.errors import UserError
from pinpad.boundary.detectors import parse_anchor
from pinpad.boundary.evaluate import as_json, judge
from pinpad.boundary.recordings import recording
from pinpad.data.collect import record_episodes
from pinpad.data.players import parse_mix
from pinpad.sweep import execute
from pinpad.sweep.plan import Member, SweepSettings
from pinpad.sweep.report import over_seeds, rows, write_report

F1, LIFT = "f1@1", "lift"


def judgement(detector, value, *, lift=3.0, p=0.01, flags=(), event="reward"):
    """A judgement in which every figure is one number."""
    interval = {"estimate": value, "low": value - 0.1, "high": value + 0.1}
    metrics = (F1, "average_precision", "auc", "subtask_nmi")
    return {
        "detector": detector,
        "event": event,
        "events": 7,
        "metrics": dict.fromkeys(metrics, interval),
        "lift": lift,
        "chance": {"p": p},
        "shape": {"count": 10 * value, "flags": list(flags), "interval_cv": 1.0},
        "forced_share": None,
    }


def test_the_interval_over_seeds_is_students():
    spread = over_seeds([1.0, 2.0, 3.0])
    assert spread.mean == 2
    # t(0.975, 2 degrees of freedom) = 4.302653, standard error = 1 / sqrt(3).
    assert spread.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert spread.low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert over_seeds([]) is None
    assert math.isnan(over_seeds([1.0]).low)


def test_a_flag_of_every_seed_needs_no_count():
    judged = {Member("vta", seed): [judgement("online", 1.0, flags=("silent",))] for seed in (0, 1)}
    assert rows(judged, "reward")[0].flags == "silent"


def test_a_condition_is_the_mean_of_its_seeds_and_anchors_stand_once():
    judged = {
        Member("vta", seed): [
            judgement("posterior", value, lift=lift, p=p, flags=flags),
            judgement("random", 0.5),
            judgement("posterior", 0.0, event="delta"),
        ]
        for seed, (value, lift, p, flags) in enumerate(
            [(1.0, 3.0, 0.01, ()), (2.0, 3.0, 0.2, ("clock",)), (3.0, 1.5, 0.001, ())]
        )
    }
    judged[Member("rssm", 0)] = [judgement("surprise", 4.0), judgement("random", 0.5)]
    table = rows(judged, "reward")
    named = [(row.condition, row.detector, row.seeds) for row in table]
    assert named == [("vta", "posterior", 3), ("rssm", "surprise", 1), ("no model", "random", 1)]
    first, second, _ = table
    assert first.metrics[F1].mean == 2
    assert first.lift.mean == 2.5
    assert first.boundaries == 20
    # Lift above 2 and p below 0.05 holds for the first seed only.
    assert first.successes == 1
    assert first.flags == "clock 1/3"  # it is no clock on the other two
    assert (second.metrics[F1].low, second.metrics[F1].high) == (3.9, 4.1)


def test_what_is_undefined_stays_out_of_the_mean():
    silent = judgement("posterior", 1.0) | {
        "lift": {"value": None, "reason": "no boundaries"},
        "chance": {"value": None, "reason": "no boundaries"},
    }
    silent["metrics"] = silent["metrics"] | {"auc": {"value": None, "reason": "no events"}}
    judged = {Member("vta", 0): [silent], Member("vta", 1): [judgement("posterior", 3.0)]}
    (row,) = rows(judged, "reward")
    assert row.metrics["auc"].mean == 3
    assert row.metrics["auc"].seeds == 1
    assert row.lift.mean == 3
    assert row.successes == 1


@pytest.fixture
def log_root(tmp_path):
    settings = SweepSettings(seeds=(0, 1), conditions={"rssm": {"dynamics_type": "rssm"}})
    execute.begin(settings, tmp_path / "root", None)
    mix = parse_mix("oracle:0.1")
    recordings = [
        recording(each) for each in record_episodes("three", mix, 3, length=80, size=16, seed=0)
    ]
    judged = [
        as_json(judge(recordings, parse_anchor(name), "sequence_append", permutations=99))
        for name in ("frame_delta", "random:0")
    ]
    for seed in (0, 1):
        run = tmp_path / "root" / f"rssm_seed{seed}"
        (run / "evaluation").mkdir(parents=True)
        (run / "evaluation" / "boundary_eval.json").write_text(json.dumps({"judgements": judged}))
    return tmp_path / "root"


def test_the_report_of_real_judgements_is_a_table_json_and_a_page(log_root, capsys):
    page = write_report(log_root).read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "means over 2 seeds, Student's 95 % intervals" in printed
    assert "frame_delta" in printed
    assert "silent" in printed
    assert "Boundaries against sequence_append" in page
    assert "rssm_seed1: waiting" in page
    content = json.loads((log_root / "report.json").read_text())
    row = content["events"]["sequence_append"][0]
    assert row["f1@1"]["low"] == row["f1@1"]["high"]
    assert page.count("[0.000, 0.000]") >= 1
    assert row["detector"] == "random:0"  # no anchor by that name
    with pytest.raises(UserError, match="nothing was judged against 'pads'"):
        write_report(log_root, event="pads")


@pytest.mark.parametrize("text", ["[]", '{"judgements": 3}', "{"])
def test_a_damaged_evaluation_is_named(log_root, text):
    (log_root / "rssm_seed0" / "evaluation" / "boundary_eval.json").write_text(text)
    with pytest.raises(UserError, match=r"rssm_seed0/evaluation/boundary_eval\.json"):
        write_report(log_root)
