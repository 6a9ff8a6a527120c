"""Kept answers as a file of paths: reading again, holding, counting, old pickles."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from loom.errors import UserError
from maniflow_overlay.cli import app
from maniflow_overlay.gripper_path import path_from_rows
from maniflow_overlay.paths import old_pickles, table
from maniflow_overlay.paths.frames import FrameKey
from maniflow_overlay.paths.grammar import Dialect, Status
from maniflow_overlay.paths.table import PathRow
from numpy._core import multiarray
from typer.testing import CliRunner


def rows_of(*statuses: str | None) -> list[PathRow]:
    path = path_from_rows([[0.1, 0.2, 0], [0.3, 0.4, 1]], "case")
    return [
        PathRow(FrameKey("t", 0, number), status, path if status == "ok" else None)
        for number, status in enumerate(statuses)
        if status
    ]


def test_hold_gives_each_frame_the_last_path_of_its_episode_and_says_so():
    rows = rows_of("no_answer", "ok", "timeout", None, "ok")
    rows.append(PathRow(FrameKey("t", 1, 0), "timeout", None))
    keys = [FrameKey("t", e, f) for e, n in ((0, 6), (1, 2)) for f in range(n)]
    held = {
        row.key[1:]: (row.status, row.held_from, row.path is not None)
        for row in table.hold(rows, keys)
    }
    assert held == {
        (0, 0): ("no_answer", None, False),
        (0, 1): ("ok", None, True),
        (0, 2): ("ok", 1, True),
        (0, 3): ("ok", 1, True),
        (0, 4): ("ok", None, True),
        (0, 5): ("ok", 4, True),
        (1, 0): ("timeout", None, False),
    }


def test_paths_survive_a_round_trip_through_their_file(tmp_path):
    rows = [
        *rows_of("ok", "timeout", "ok"),
        PathRow(
            FrameKey("u", 3, 4),
            "ok_repaired",
            path_from_rows([[0, 1], [1, 0]], ""),
            ("clipped",),
            np.array([[0.5, 0.25]]),
            2,
        ),
    ]
    table.write_paths(tmp_path / "p.jsonl", rows)
    back = table.read_paths(tmp_path / "p.jsonl")
    assert [row.to_json() for row in back] == [row.to_json() for row in rows]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "p.jsonl:2"),
        ("[]", "p.jsonl:2"),
        ('{"task": "t", "episode": 0, "frame": 1, "status": "ok", "path": [[2, 0, 1]]}', "outside"),
        (
            '{"task": "t", "episode": 0, "frame": 1, "status": "ok", "path": [[0, -1, 1]]}',
            "outside",
        ),
        (
            '{"task": "t", "episode": 0, "frame": 1, "status": "ok", "path": [["__import__", 0]]}',
            "point 0",
        ),
        ('{"task": "t", "episode": 0, "frame": 1, "status": "fine", "path": null}', "fine"),
        ('{"task": "t", "episode": 0, "frame": 0, "status": "ok", "path": null}', "twice"),
        ('{"task": "t", "episode": 0.5, "frame": 0, "status": "ok", "path": null}', "p.jsonl:2"),
    ],
)
def test_a_row_that_is_no_path_is_refused_by_line(tmp_path, line, named):
    table.write_paths(tmp_path / "p.jsonl", rows_of("timeout"))
    with (tmp_path / "p.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=named):
        table.read_paths(tmp_path / "p.jsonl")


def test_damaged_files_of_paths_end_in_user_errors(tmp_path):
    table.write_paths(tmp_path / "p.jsonl", rows_of("ok", "timeout"))
    whole = (tmp_path / "p.jsonl").read_bytes()
    rng = random.Random(3)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "d.jsonl").write_bytes(damaged[: rng.randint(0, len(damaged))])
        try:
            table.read_paths(tmp_path / "d.jsonl")
        except UserError:
            continue


def test_rows_are_written_in_the_order_of_their_frames(tmp_path):
    rows = rows_of("ok", "timeout", "ok")
    table.write_paths(tmp_path / "p.jsonl", [rows[2], rows[0], rows[1]])
    assert [row.key for row in table.read_paths(tmp_path / "p.jsonl")] == [row.key for row in rows]


def journal(folder, *events):
    """A journal of one question, q, and of a second one, r."""
    asked = [
        {"event": "question", "question": name, "dialect": "hamster", "space": None, "square": None}
        for name in ("q", "r")
    ]
    place = {"task": "t", "episode": 0, "frame": 0, "size": [320, 240]}
    lines = [json.dumps({**place, **event}) for event in (*asked, *events)]
    (folder / "raw.jsonl").write_text("".join(line + "\n" for line in lines), "utf-8")


def test_of_several_answers_with_a_path_the_last_one_counts(tmp_path):
    answers = [
        {"event": "answered", "question": "q", "status": "truncated", "text": text}
        for text in (
            "<ans>[(0.1, 0.2), (0.3, 0.4), (0.5",
            "<ans>[(0.6, 0.7), (0.8, 0.9)]</ans>",
            "?",
        )
    ]
    journal(tmp_path, *answers)
    (row,) = table.parse_journal(tmp_path)
    assert row.status == "ok"
    assert row.path.points.tolist() == [[0.6, 0.7], [0.8, 0.9]]


def test_a_frame_that_was_asked_in_two_ways_is_refused(tmp_path):
    answer = {"event": "answered", "status": "ok", "text": "<ans>[(0.1, 0.2), (0.3, 0.4)]</ans>"}
    journal(tmp_path, {**answer, "question": "q"}, {**answer, "question": "r"})
    with pytest.raises(UserError, match="was asked in two ways"):
        table.parse_journal(tmp_path)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_notes_text_files_are_read_and_counted_by_task(tmp_path):
    for frame, text in enumerate(
        ["<ans>[(0.1, 0.2), (0.3, 0.4)]</ans>", "no", "<ans>[(0.1, 0.2), (0.5"]
    ):
        folder = tmp_path / "raw" / "open_microwave" / "episode_00" / "raw_outputs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"raw_frame_{frame:04d}.txt").write_text(text, encoding="utf-8")
    done = run("paths", "parse", tmp_path / "raw", tmp_path / "p.jsonl")
    assert done.exit_code == 0, done.output
    assert [row.status for row in table.read_paths(tmp_path / "p.jsonl")] == [
        "ok",
        "no_answer",
        "truncated",
    ]
    shown = run("paths", "report", tmp_path / "p.jsonl").output.split("\n")
    assert shown[0].split() == [
        "task",
        "ok",
        "truncated",
        "no_answer",
        "held",
        "with",
        "path",
        "frames",
        "share",
    ]
    assert shown[1].split() == ["open_microwave", "1", "1", "1", "0", "2", "3", "66.7", "%"]


def test_peeks_points_are_mapped_from_its_square_to_the_picture(tmp_path):
    folder = tmp_path / "click_bell" / "episode_00" / "raw_outputs"
    folder.mkdir(parents=True)
    text = "TRAJECTORY: <ans>[(0.0, 0.0), (1.0, 0.5)]</ans> MASK: <ans>[(0.5, 0.5), (0, 1)]</ans>"
    (folder / "raw_frame_0000.txt").write_text(text, encoding="utf-8")
    row = table.parse_texts(tmp_path, Dialect.PEEK, size=(320, 240))[0]
    assert row.path
    assert row.path.rows() == [[0.125, 0.0], [0.875, 0.5]]
    assert row.mask is not None
    assert row.mask.tolist() == [[0.5, 0.5], [0.125, 1.0]]


class Endless:
    """Pickles as an array of a terabyte without content."""

    def __reduce__(self):
        return multiarray._reconstruct, (np.ndarray, (2**37,), b"d")


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_pickled_paths_are_read_as_lists_tuples_and_arrays(tmp_path):
    rows = [[0.25, 0.5, 1], [0.125, 0.75, 0]]
    values = [
        rows,
        [tuple(row) for row in rows],
        np.array(rows),
        [np.array(row, np.float32) for row in rows],
        [(np.float64(x), np.float32(y), np.int64(g)) for x, y, g in rows],
    ]
    for protocol in (2, 4, 5):
        for value in values:
            (tmp_path / "p.pkl").write_bytes(pickle.dumps(value, protocol))
            assert old_pickles.read_pickle(tmp_path / "p.pkl").rows() == rows


@pytest.mark.parametrize(
    "value",
    [
        Payload(),
        [Payload()],
        [Endless()],
        {"a": 1},
        3,
        "text",
        [["a", 1]],
        [[0.1]],
        print,
        np.array([Payload()], object),
    ],
)
def test_a_pickle_with_code_or_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    Path("p.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match="p.pkl"):
        old_pickles.read_pickle(Path("p.pkl"))
    assert not Path("executed").exists()


def test_damaged_pickles_end_in_user_errors(tmp_path):
    whole = pickle.dumps([[0.25, 0.5, 1], [0.125, 0.75, 0]])
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "p.pkl").write_bytes(damaged[: rng.randint(0, len(damaged))])
        try:
            old_pickles.read_pickle(tmp_path / "p.pkl")
        except UserError:
            continue


def test_pickles_are_imported_as_a_file_of_paths(tmp_path):
    folder = tmp_path / "click_bell" / "episode_03" / "paths"
    folder.mkdir(parents=True)
    (folder / "frame_0007.pkl").write_bytes(pickle.dumps([(0.1, 1.2, 1), (0.3, 0.4, 0)]))
    done = run("paths", "import-pickles", tmp_path, tmp_path / "p.jsonl")
    assert done.exit_code == 0, done.output
    row = table.read_paths(tmp_path / "p.jsonl")[0]
    assert (row.key, row.status, row.repairs) == (("click_bell", 3, 7), "imported", ("clipped",))
    assert row.path
    assert row.path.rows() == [[0.1, 1.0, 1], [0.3, 0.4, 0]]


def test_statuses_of_the_grammar_and_of_the_file_agree():
    assert set(map(str, Status)) < set(table.STATUSES)
