import csv
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loom.errors import UserError
from loom.record import EVENTS_FOLDER, METRICS_FILE, TABLE_FILE, Records, read_records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / TABLE_FILE).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    """Read what TensorBoard itself would draw."""
    events = EventAccumulator(str(directory / EVENTS_FOLDER))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def test_a_row_is_on_the_disk_before_the_records_are_closed(tmp_path):
    with Records(tmp_path) as records:
        records.record(50, {"loss/color": 0.5, "metric/psnr_db": 21.0})
        line = json.loads((tmp_path / METRICS_FILE).read_text(encoding="utf-8"))
        assert line.pop("time") > 1.7e9
        assert line == {"step": 50, "loss/color": 0.5, "metric/psnr_db": 21.0}
        assert table(tmp_path)[0]["psnr_db"] == "21.0"
        assert scalars(tmp_path, "loss/color") == [(50, 0.5)]


def test_every_row_survives_kill_9(tmp_path):
    script = (
        "import os, sys, signal; from pathlib import Path; from loom.record import Records\n"
        "records = Records(Path(sys.argv[1]))\n"
        "for step in range(7): records.record(step, {'x': step / 2})\n"
        "assert 'torch' not in sys.modules\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert [row["x"] for row in read_records(tmp_path)] == [step / 2 for step in range(7)]
    assert len(table(tmp_path)) == 7
    assert len(scalars(tmp_path, "x")) == 7


def test_not_finite_and_missing_values_come_back_as_they_were(tmp_path):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": 3, "f": 1e300}
    with Records(tmp_path) as records:
        records.record(0, values)
        row = records.rows()[0]
    assert math.isnan(row["a"] or 0)
    assert [row[key] for key in "bcdef"] == [math.inf, -math.inf, None, 3, 1e300]
    text = (tmp_path / METRICS_FILE).read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert table(tmp_path)[0]["d"] == ""
    assert float(table(tmp_path)[0]["b"]) == math.inf


def test_a_new_key_widens_the_table_under_one_header(tmp_path):
    with Records(tmp_path) as records:
        records.record(1, {"loss/color": 1.0})
        records.record(2, {"loss/color": 0.5, "metric/psnr_db": 9.6})
        records.record(3, {"metric/psnr_db": 9.7})
    lines = (tmp_path / TABLE_FILE).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "step" in line] == ["step,time,loss/color,psnr_db"]
    cells = [(row["step"], row["loss/color"], row["psnr_db"]) for row in table(tmp_path)]
    assert cells == [("1", "1.0", ""), ("2", "0.5", "9.6"), ("3", "", "9.7")]


def test_two_records_of_one_step_are_one_row(tmp_path):
    with Records(tmp_path) as records:
        records.record(50, {"loss": 1.0, "lr": 0.1})
        records.record(100, {"loss": 0.5, "lr": 0.1})
        records.record(100, {"lr": 0.2})
        records.record(150, {"loss": 0.25, "lr": 0.1})
    expected = [("50", "1.0", "0.1"), ("100", "0.5", "0.2"), ("150", "0.25", "0.1")]
    assert [(row["step"], row["loss"], row["lr"]) for row in table(tmp_path)] == expected
    assert [row["lr"] for row in read_records(tmp_path)] == [0.1, 0.2, 0.1]


steps = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.dictionaries(
            st.sampled_from(["a", "metric/b", 'q"c,', "ü"]), st.none() | st.floats(width=32)
        ),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(steps, st.integers(0, 8))
def test_table_and_rows_always_tell_the_same(tmp_path_factory, recorded, cut):
    directory = tmp_path_factory.mktemp("run")
    step = 0
    with Records(directory) as records:
        for advance, metrics in recorded[:cut]:
            step += advance
            records.record(step, metrics)
    with Records(directory, resume_step=step) as records:
        for advance, metrics in recorded[cut:]:
            step += advance
            records.record(step, metrics)
    rows = read_records(directory)
    assert len(rows) == len(table(directory)) <= len(recorded)
    for row, cells in zip(rows, table(directory), strict=True):
        for key, value in row.items():
            cell = cells[key.removeprefix("metric/")]
            assert repr(float(cell)) == repr(float(value)) if value is not None else cell == ""
        assert {k for k, v in cells.items() if v} <= {k.removeprefix("metric/") for k in row}


def test_resume_forgets_the_steps_beyond_the_checkpoint_everywhere(tmp_path):
    with Records(tmp_path) as records:
        for step in range(0, 50, 10):
            records.record(step, {"x": float(step), "late" if step > 20 else "early": 1.0})
    notices: list[str] = []
    with Records(tmp_path, resume_step=20, on_notice=notices.append) as records:
        records.record(30, {"x": -30.0})
    assert notices == ["metrics.jsonl: dropped 2 rows after step 20"]
    expected = [(0, 0.0), (10, 10.0), (20, 20.0), (30, -30.0)]
    assert [(row["step"], row["x"]) for row in read_records(tmp_path)] == expected
    assert [(int(row["step"]), float(row["x"])) for row in table(tmp_path)] == expected
    assert scalars(tmp_path, "x") == expected
    assert "late" not in table(tmp_path)[0]


def test_a_row_that_was_not_written_whole_is_dropped_with_a_notice(tmp_path):
    with Records(tmp_path) as records:
        records.record(1, {"x": 1.0})
        records.record(2, {"x": 2.0})
    file = tmp_path / METRICS_FILE
    file.write_bytes(file.read_bytes()[:-7])
    assert [row["step"] for row in read_records(tmp_path)] == [1]
    notices: list[str] = []
    with Records(tmp_path, resume_step=5, on_notice=notices.append) as records:
        records.record(6, {"x": 6.0})
    assert len(notices) == 1
    assert "not been written whole" in notices[0]
    assert [row["step"] for row in read_records(tmp_path)] == [1, 6]


DAMAGED = [
    b"\0" * 40,
    b'{"time": 3}',
    b"[1, 2]",
    b'{"step": "x"}',
    b'{"step": [1]}',
    b'{"step": 1.5}',
    b'{"step": null}',
    b'{"step": "NaN"}',
    b'{"step": 1, "x": [2]}',
    b'{"step": 1, "x": {"y": 2}}',
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_row_is_named_by_file_and_line(tmp_path, damage):
    with Records(tmp_path) as records:
        records.record(1, {"x": 1.0})
    with (tmp_path / METRICS_FILE).open("ab") as stream:
        stream.write(damage + b'\n{"step": 3}\n')
    before = (tmp_path / METRICS_FILE).read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a row") as caught:
        Records(tmp_path, resume_step=3)
    assert caught.value.hint
    assert (tmp_path / METRICS_FILE).read_bytes() == before


def test_an_event_file_has_a_point_to_draw_from_its_beginning(tmp_path):
    Records(tmp_path).close()
    assert scalars(tmp_path, "run/started") == [(0, 1.0)]


def test_a_strangers_event_file_does_no_harm(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    (folder / "events.out.tfevents.copy.host.1").write_bytes(b"")
    (folder / "events.out.tfevents.2000000000.host.1").write_bytes(b"")
    with Records(tmp_path) as records:
        records.record(1, {"x": 1.0})
    stamps = [path.name.split(".")[3] for path in folder.iterdir()]
    assert sorted(stamps) == ["2000000000", "2000000001", "copy"]  # ours is read last


def test_rows_of_another_run_are_refused(tmp_path):
    with Records(tmp_path) as records:
        records.record(1, {"x": 1.0})
    with pytest.raises(UserError, match="another run"):
        Records(tmp_path)


def test_a_first_metric_cannot_take_the_column_of_the_step(tmp_path):
    with Records(tmp_path) as records, pytest.raises(ValueError, match="share the column 'step'"):
        records.record(0, {"metric/step": 1.0})
    assert read_records(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "metrics", "message"),
    [
        (2, {"x": "high"}, "x: 'high' is not a number"),
        (2, {"x": [1]}, "x: .* is not a number"),
        (2, {"step": 1.0}, "cannot be the name"),
        (2, {"metric/time": 1.0}, "would share the column 'time'"),
        (2, {"metric/known": 1.0}, "would share the column 'known'"),
        (-1, {"x": 1.0}, "step -1"),
        (1.5, {"x": 1.0}, "step 1.5"),
    ],
)
def test_what_no_reader_could_understand_is_refused_and_not_written(
    tmp_path, step, metrics, message
):
    with Records(tmp_path) as records:
        records.record(1, {"known": 1.0})
        with pytest.raises(ValueError, match=message):
            records.record(step, metrics)
    assert without_time(read_records(tmp_path)) == [{"step": 1, "known": 1.0}]


def test_closed_records_take_nothing(tmp_path):
    records = Records(tmp_path)
    records.close()
    records.close()
    with pytest.raises(ValueError, match="step 3 was recorded after"):
        records.record(3, {"x": 1.0})


def test_a_row_that_does_not_fit_leaves_no_part_of_itself(tmp_path):
    with Records(tmp_path) as records:
        records.record(1, {"x": 1.0})
        before = (tmp_path / METRICS_FILE).read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        try:
            with pytest.raises((UserError, OSError), match=r"(?i)too large"):
                records.record(2, {"x": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / METRICS_FILE).read_bytes() == before
        records.record(3, {"x": 3.0})
    assert [row["step"] for row in read_records(tmp_path)] == [1, 3]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs privileges")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_error_with_a_hint_and_leaves_whole_rows(small_disk):
    written = 0

    def fill(records: Records) -> None:
        nonlocal written
        for step in range(10_000):
            records.record(step, {"x": 1.0})
            written = step + 1

    with Records(small_disk) as records, pytest.raises(UserError, match=r"(?i)no space") as caught:
        fill(records)
    assert "space" in caught.value.hint
    assert written > 50
    assert (small_disk / METRICS_FILE).read_bytes().endswith(b"\n")
    assert len(read_records(small_disk)) in (written, written + 1)
