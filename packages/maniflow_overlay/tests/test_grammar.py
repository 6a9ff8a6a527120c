"""Reading a model's answer: every failure of the notes' parser, HAMSTER's rule, round trips."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import maniflow_overlay.paths.grammar as grammar
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maniflow_overlay.paths.grammar import Dialect, Status, parse_answer
from maniflow_overlay.paths.prompts import asking, from_central_square

H, P, Q = Dialect.HAMSTER, Dialect.PEEK, Dialect.QWEN
TWO = [[0.1, 0.2, 0], [0.3, 0.4, 0]]
OPENED = "<action>Open Gripper</action>"
CLOSED = "<action>Close Gripper</action>"

# answer, dialect, status, rows of the path, repairs
ANSWERS = [
    ("<ans>[(0.1, 0.2), (0.3, 0.4)]</ans>", H, "ok", TWO, []),
    ("<ans>[(0.1,0.2),(.3,0.4)]</ans>", H, "ok", TWO, []),
    ("<ans>\n[ ( 0.1 , 0.2 ),\n (0.3, 4e-1) ]\n</ans>\n", H, "ok", TWO, []),
    ("<ANS>[(0.1, 0.2), (0.3, 0.4)]</ANS>", H, "ok", TWO, []),
    ("I think: <ans>[(0.9, 0.9)]</ans> no, <ans>[(0.1, 0.2), (0.3, 0.4)]</ans>", H, "ok", TWO, []),
    (f"<ans>[(0.1, 0.2), {OPENED}, (0.3, 0.4)]</ans>", H, "ok", [[0.1, 0.2, 1], [0.3, 0.4, 1]], []),
    (
        f"<ans>[(0.1, 0.2), (0.3, 0.4), {OPENED}, (0.5, 0.6), {CLOSED}]</ans>",
        H,
        "ok",
        [[0.1, 0.2, 0], [0.3, 0.4, 1], [0.5, 0.6, 0]],
        [],
    ),
    (
        f"<ans>[(0.1, 0.2), {OPENED}, {CLOSED}, (0.3, 0.4)]</ans>",
        H,
        "ok",
        [[0.1, 0.2, 0], [0.3, 0.4, 0]],
        [],
    ),
    ("<ans>[(1, 0), (0, 1)]</ans>", H, "ok", [[1, 0, 0], [0, 1, 0]], []),
    # what HAMSTER's eval fails on
    (
        f"<ans>[{OPENED}, (0.1, 0.2), (0.3, 0.4)]</ans>",
        H,
        "ok_repaired",
        [[0.1, 0.2, 1], [0.3, 0.4, 1]],
        ["leading_action"],
    ),
    ("<ans>[(0.1, 0.2), (0.3, 0.4), ...]</ans>", H, "ok_repaired", TWO, ["ellipsis"]),
    ("<ans>[(0.1, 0.2), …, (0.3, 0.4)]</ans>", H, "ok_repaired", TWO, ["ellipsis"]),
    ("<ans>[(0.1, 0.2) (0.3, 0.4)]</ans>", H, "ok_repaired", TWO, ["missing_comma"]),
    ("<ans>[(0.1, 0.2), (0.3, 0.4), (0.5", H, "truncated", TWO, []),
    ("<ans>[(0.1, 0.2), (0.3, 0.4), <action>Op", H, "truncated", TWO, []),
    ("<ans>[(0.1, 0.2), (0.3, 0.4), <act", H, "truncated", TWO, []),
    ("<ans>[(0.1, 0.2), (0.3, 0.4)", H, "truncated", TWO, []),
    ("<ans>[(0.1, 0.2), (0.3, 0.4),", H, "truncated", TWO, []),
    ("<ans>[", H, "truncated", None, []),
    ("<ans>[(0.", H, "truncated", None, []),
    ("[(0.1, 0.2), (0.3, 0.4)]", H, "ok_repaired", TWO, ["no_ans_tag"]),
    (
        "Sure: [(0.1, 0.2), (0.3, 0.4)] Done.",
        H,
        "ok_repaired",
        TWO,
        ["no_ans_tag", "text_after_list"],
    ),
    ("<ans>[(0.1, 0.2), (0.3, 0.4)]", H, "ok", TWO, []),
    ("<ans>[(0.1, 0.2), (0.3, 0.4)] so it moves</ans>", H, "ok_repaired", TWO, ["text_after_list"]),
    ("<ans>(0.1, 0.2), (0.3, 0.4)</ans>", H, "ok_repaired", TWO, ["no_brackets"]),
    ("<ans>[(0.1, 0.2), (0.3, 0.4)</ans>", H, "ok_repaired", TWO, ["unclosed_list"]),
    ("<ans>[[0.1, 0.2], [0.3, 0.4]]</ans>", H, "ok", TWO, []),
    ("<ans>[(0.1, 0.2), then (0.3, 0.4)]</ans>", H, "ok_repaired", TWO, ["stray_text"]),
    (
        "<ans>[(0.1, 0.2), <action>open gripper<action>, (0.3, 0.4)]</ans>",
        H,
        "ok",
        [[0.1, 0.2, 1], [0.3, 0.4, 1]],
        [],
    ),
    (
        "<ans>[(1.02, 0.2), (0.3, -0.01)]</ans>",
        H,
        "ok_repaired",
        [[1, 0.2, 0], [0.3, 0, 0]],
        ["clipped"],
    ),
    # nothing to be had
    ("", H, "empty", None, []),
    (" \n", H, "empty", None, []),
    ("<ans>[]</ans>", H, "empty", None, []),
    ("I cannot see a hammer.", H, "no_answer", None, []),
    ("<ans>none</ans>", H, "no_answer", None, []),
    ("<ans>[(0.1, 0.2), (0.3)]</ans>", H, "bad_number", None, []),
    ("<ans>[(0.1, 0.2), (x, y)]</ans>", H, "bad_number", None, []),
    ("<ans>[(0.1, 0.2, 0.3), (0.1, 0.4)]</ans>", H, "bad_number", None, []),
    ("<ans>[(0.1.2, 0.3), (0.1, 0.4)]</ans>", H, "bad_number", None, []),
    ("<ans>[(0.1, 0.2), (0.3</ans>", H, "bad_number", None, []),
    ("<ans>[(0.1, 0.2)]</ans>", H, "degenerate", None, []),
    ("<ans>[(0.1, 0.2), (0.1, 0.2)]</ans>", H, "degenerate", None, []),
    ("<ans>[(120, 80), (200, 90)]</ans>", H, "out_of_range", None, []),
    ("<ans>[(0.1, 0.2), (0.3, -0.2)]</ans>", H, "out_of_range", None, []),
    ("<ans>[(0.1, 0.2), (1e308, 1e999)]</ans>", H, "out_of_range", None, []),
    ("<ans>[__import__('os').system('true'), (0.1, 0.2)]</ans>", H, "degenerate", None, []),
    # PEEK
    (
        "TRAJECTORY: <ans>[(0.1, 0.2), (0.3, 0.4)]</ans> MASK: <ans>[(0.5, 0.5), (0.6, 0.6)]</ans>",
        P,
        "ok",
        [[0.1, 0.2], [0.3, 0.4]],
        [],
    ),
    (
        "TRAJECTORY: <ans>[(0.1, 0.2), (0.3, 0.4)]</ans> MASK: <ans>[(0.5",
        P,
        "ok",
        [r[:2] for r in TWO],
        [],
    ),
    ("TRAJECTORY: <ans>[(0.1, 0.2), (0.3, 0.4), (0.", P, "truncated", [r[:2] for r in TWO], []),
    # Qwen
    ("<ans>[[100, 200], [300, 400]]</ans>", Q, "ok", [[0.1, 0.2], [0.3, 0.4]], []),
    (
        '```json\n[{"point_2d": [100, 200], "label": "start"}, {"point_2d": [300, 400]}]\n```',
        Q,
        "ok_repaired",
        [[0.1, 0.2], [0.3, 0.4]],
        ["no_ans_tag"],
    ),
    (f"<ans>[[100, 200], {OPENED}, [300, 400]]</ans>", Q, "ok", [[0.1, 0.2, 1], [0.3, 0.4, 1]], []),
    (
        "<ans>[[0.1, 0.2], [0.3, 0.4]]</ans>",
        Q,
        "ok_repaired",
        [[0.1, 0.2], [0.3, 0.4]],
        ["unit_coordinates"],
    ),
    ("<ans>[[100, 200], [3000, 400]]</ans>", Q, "out_of_range", None, []),
]


@pytest.mark.parametrize(("text", "dialect", "status", "rows", "repairs"), ANSWERS)
def test_answers_are_read_as_a_person_reads_them(text, dialect, status, rows, repairs):
    answer = parse_answer(text, dialect)
    assert answer.status == status
    assert (answer.path.rows() if answer.path else None) == rows
    if answer.path:
        assert list(answer.repairs) == repairs


def test_peek_gives_its_mask_beside_the_path():
    text = (
        "TRAJECTORY: <ans>[(0.1, 0.2), (0.3, 0.4)]</ans> MASK: <ans>[(0.5, 0.5), (0.6, 0.7)]</ans>"
    )
    mask = parse_answer(text, P).mask
    assert mask is not None
    assert mask.tolist() == [[0.5, 0.5], [0.6, 0.7]]
    assert parse_answer(text.split(" MASK")[0], P).mask is None


def test_pixel_coordinates_are_relative_to_the_picture_that_was_shown():
    answer = parse_answer("[[160, 120], [320, 0]]", Q, space="pixel", size=(320, 240))
    assert answer.path
    assert answer.path.rows() == [[0.5, 0.5], [1.0, 0.0]]
    with pytest.raises(ValueError, match="size"):
        parse_answer("[[1, 2]]", Q, space="pixel")


def hamster_rule(text: str) -> list[list[float]]:
    """HAMSTER's own reading of a well-formed answer, with literal_eval in place of eval."""
    body = text.split("<ans>")[1].split("</ans>")[0]
    body = body.replace(CLOSED, "(1000.0, 1000.0)").replace(OPENED, "(1001.0, 1001.0)")
    rows: list[list[float]] = []
    state = 0
    for x, y in ast.literal_eval(body):
        if x >= 1000:
            state = int(x) - 1000
            rows[-1][2] = state
        else:
            rows.append([x, y, state])
    return rows


coordinate = st.floats(0, 1).map(lambda value: round(value, 3))
item = st.one_of(
    st.tuples(coordinate, coordinate).map(lambda p: f"({p[0]}, {p[1]})"),
    st.sampled_from([OPENED, CLOSED]),
)


@settings(max_examples=300, deadline=None)
@given(st.tuples(coordinate, coordinate), st.lists(item, max_size=15))
def test_well_formed_answers_follow_hamsters_rule(first, items):
    text = f"So: <ans>[{', '.join([f'({first[0]}, {first[1]})', *items])}]</ans>"
    expected = hamster_rule(text)
    answer = parse_answer(text, H)
    if len({(x, y) for x, y, _ in expected}) < 2:
        assert answer.status is Status.DEGENERATE
    else:
        assert answer.status is Status.OK
        assert answer.path
        assert answer.path.rows() == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate), min_size=2, max_size=9, unique=True), st.data())
def test_an_answer_cut_anywhere_gives_the_points_before_the_cut(points, data):
    whole = "<ans>[" + ", ".join(f"({x}, {y})" for x, y in points) + "]</ans>"
    cut = data.draw(st.integers(len("<ans>["), len(whole) - len("]</ans>")))
    answer = parse_answer(whole[:cut], H)
    assert answer.status is Status.TRUNCATED
    kept = whole[:cut].count(")")
    rows = answer.path.rows() if answer.path else []
    assert rows == [[x, y, 0] for x, y in points[:kept]]


pieces = st.sampled_from(
    ["<ans>", "</ans>", "[", "]", "(", ")", "0.5", ",", " ", "...", OPENED, "<action>", "MASK:",
     "{", "}", '"', "'", "x", "-", "1e9", "nan", "(0.1, 0.2)", "[0.3, 0.4]", "\0", "é"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(pieces, max_size=30).map("".join)))
def test_no_text_breaks_the_reader_and_a_path_is_always_inside_the_picture(text):
    for dialect in Dialect:
        answer = parse_answer(text, dialect)
        if answer.path is not None:
            assert np.isfinite(answer.path.points).all()
            assert (answer.path.points >= 0).all()
            assert (answer.path.points <= 1).all()
        assert (answer.path is not None) or answer.status not in (Status.OK, Status.REPAIRED)


@pytest.mark.parametrize("end", ["", ")>"])
@pytest.mark.parametrize("piece", ["(", "[", "<", "<ans>[(", '"', "(0.1,", "{", "<action>"])
def test_long_nonsense_takes_no_long_time(piece, end):
    begin = time.process_time()
    for dialect in Dialect:
        parse_answer("<ans>[(0.1, 0.2)," + piece * (40_000 // len(piece)) + end, dialect)
        parse_answer("<ans>[(" + "3" * 40_000 + end, dialect)
    assert time.process_time() - begin < 2
    assert parse_answer("[" + "(0.1, 0.2)," * 9000, H).status is Status.BAD_NUMBER


def test_the_reader_evaluates_nothing():
    tree = ast.parse(Path(grammar.__file__).read_text(encoding="utf-8"))
    called = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not called & {"eval", "exec", "compile", "__import__", "getattr", "open"}


def test_peeks_square_maps_back_to_the_whole_picture():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.25, 0.5]])
    mapped = from_central_square(points, 320, 240)
    assert mapped[:, 0].tolist() == [(x * 240 + 40) / 320 for x in points[:, 0]]
    assert mapped[:, 1].tolist() == points[:, 1].tolist()
    upright = from_central_square(points[:, ::-1], 240, 320)
    assert upright[:, ::-1].tolist() == mapped.tolist()


def test_the_square_that_peek_sees_is_the_middle_of_the_picture():
    import cv2

    image = np.zeros((240, 320, 3), np.uint8)
    image[:, 40:280] = 200
    shown = cv2.imdecode(np.frombuffer(asking(P, "peek").shown_jpeg(image), np.uint8), 1)
    assert shown is not None
    assert shown.shape == (384, 384, 3)
    assert shown.min() > 190
    whole = cv2.imdecode(np.frombuffer(asking(H, "h").shown_jpeg(image), np.uint8), 1)
    assert whole is not None
    assert whole.shape == image.shape
