import base64
import io
import json
import math
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loom.config import Config
from loom.errors import UserError
from loom.report import Report
from loom.report_curves import Curves, curves_html, format_number
from loom.report_run import run_report
from loom.run import Run
from PIL import Image

VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass(frozen=True)
class Answer:
    """A gate's answer as an object, with the attributes that the report reads."""

    passed: bool
    value: float | None
    limit: float | None
    message: str


class Page(HTMLParser):
    """Reads a page as a browser would: tags, attributes, text, and whether it is well nested."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.broken: list[str] = []
        self.feed(html)
        self.close()
        self.broken += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open) and self.rows:
            self.rows[-1][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] for each, attrs in self.tags if each == tag and name in attrs]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def gradient(value: int) -> np.ndarray:
    return np.full((6, 8, 3), value, np.uint8)


def full_report() -> Report:
    report = Report("thread / run", "a command")
    report.warning("shortened").facts({"steps": 50_000, "clean": True, "device": "cpu"})
    report.heading("Gates").gates([Answer(True, 36.4, 36.0, "psnr_db is >= 36")])
    report.scores({"student": {"psnr_db": 36.4}}, {"blank": {"psnr_db": 9.48}})
    report.curves({"a": ([0, 1, 2], [1.0, None, 3.0])}, y_label="loss", baselines={"blank": 2.0})
    report.curves_grid([Curves({"lr": ([0, 1], [1e-4, 1.0])}, log=True)])
    report.pictures([("truth", gradient(10)), ("student", gradient(20))], columns=2)
    report.table(["frame", "psnr_db"], [["r_0", 30.0], ["r_1", math.inf]], "a note")
    report.config(
        {"train": {"lr": 1e-3}, "seed": 0}, {"train.lr": "demo.yaml:3", "seed": "default"}
    )
    return report.text("one\n\ntwo")


def test_every_block_is_well_formed_and_the_page_refers_to_nothing_outside_itself():
    html = full_report().html()
    page = Page(html)
    assert not page.broken
    assert not re.search(r"(?:https?:)?//[a-z]", html.split("<script>\n")[0])
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|\bimport\b", html)
    sources = page.attributes("img", "src")
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not page.attributes("script", "src")
    assert not page.attributes("link", "href")
    assert not page.attributes("a", "href")
    policy = page.attributes("meta", "content")[0]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_page_follows_the_reader_s_light_or_dark_setting():
    html = full_report().html()
    assert "color-scheme: light dark" in html
    assert "@media (prefers-color-scheme: dark)" in html


EVIL = '" onclick="alert(0)"></script><script>alert(1)</script><img src=x onerror=alert(2)>\'&amp;'


def test_names_from_files_are_text_wherever_they_stand():
    report = Report(EVIL, EVIL).heading(EVIL).text(EVIL).warning(EVIL).facts({EVIL: EVIL})
    report.table([EVIL, "x"], [[EVIL, 1.0]], EVIL).scores(
        {EVIL: {EVIL: 1.0}}, {EVIL + "b": {EVIL: 2}}
    )
    report.curves({EVIL: ([0, 1], [1.0, 2.0])}, EVIL, EVIL, baselines={EVIL: 1.5})
    report.curves({EVIL: ([], [])}, EVIL, EVIL)
    report.pictures([(EVIL, gradient(0))]).config({EVIL: EVIL}, {EVIL: EVIL})
    report.gates([{"message": EVIL, "value": 1.0, "limit": 2.0, "passed": False}])
    page = Page(report.html())
    assert not page.broken
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [
        {"type": "application/json"},
        {},
    ]
    assert len(page.attributes("img", "src")) == 1
    assert page.attributes("img", "alt") == [EVIL]
    assert set(page.attributes("td", "data-value")) == {EVIL, EVIL + "b", "1.0", "2.0"}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.words().count("alert(1)") >= 15
    assert (
        json.loads(re.findall(r'<script type="application/json">(.*?)</script>', report.html())[0])[
            "series"
        ][0]["name"]
        == EVIL
    )


def test_the_same_content_gives_the_same_bytes():
    assert full_report().html() == full_report().html()


def test_writing_replaces_the_page_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "report.html"
    assert full_report().write(path) == path
    assert path.read_text(encoding="utf-8") == full_report().html()
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    with pytest.raises(UserError):
        full_report().write(blocked / "report.html")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_pictures_come_back_pixel_for_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    page = Page(Report("t").pictures([("a", picture), ("b", stream.getvalue())]).html())
    for source in page.attributes("img", "src"):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)


@pytest.mark.parametrize("picture", [b"GIF89a", np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(ValueError, match="picture is"):
        Report("t").pictures([("a", picture)])


def test_gates_pass_miss_or_stay_open_and_a_missing_value_never_passes():
    results = [
        {"message": "reached", "value": 2.0, "limit": 1.0, "passed": True},
        {"message": "not reached", "value": 0.5, "limit": 1.0, "passed": False},
        {"message": "no value", "value": None, "limit": 1.0, "passed": True},
        {"message": "nan", "value": "nan", "limit": 1.0, "passed": True},
        {"message": "no baseline", "value": 2.0, "limit": None, "passed": True},
        {"message": "infinite", "value": "inf", "limit": 1.0, "passed": True},
        Answer(False, None, 0.1, "an object"),
    ]
    rows = {row[0]: row[1:] for row in Page(Report("t").gates(results).html()).rows[1:]}
    assert rows["reached"] == ["✓ pass", "2", "1"]
    assert rows["not reached"] == ["✗ miss", "0.5", "1"]
    assert rows["infinite"] == ["✓ pass", "inf", "1"]
    for name in ("no value", "nan", "no baseline", "an object"):
        assert rows[name][0] == "not evaluated"


def test_a_missing_score_is_said_and_the_baseline_stands_in_the_same_table():
    report = Report("t").scores(
        {"student": {"psnr_db": 36.412, "lpips": None}}, {"blank": {"psnr_db": 9.48, "ssim": 0.73}}
    )
    assert Page(report.html()).rows == [
        ["", "psnr_db", "lpips", "ssim"],
        ["student", "36.41", "not evaluated", "not evaluated"],
        ["blank", "9.48", "not evaluated", "0.7300"],
    ]


def test_cells_carry_the_value_that_they_sort_by():
    rows = [["r_0", 30.123456], ["r_1", math.inf], ["r_2", None], ["r_3", 4]]
    page = Page(Report("t").table(["frame", "psnr_db"], rows).html())
    assert page.attributes("td", "data-value") == [
        "r_0",
        "30.123456",
        "r_1",
        "Infinity",
        "r_2",
        "r_3",
        "4.0",
    ]
    assert [row[1] for row in page.rows[1:]] == ["30.12", "inf", "not evaluated", "4"]


def test_a_row_of_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Report("t").table(["a", "b"], [["1", "2"], ["3"]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (50_000, "50,000"),
        (0.25, "0.25"),
        (31.23456, "31.235"),
        (-1234.5678, "-1,234.6"),
        (5e-4, "5e-4"),
        (1.234567e-9, "1.235e-9"),
        (2.5e7, "25,000,000"),
        (2.5e12, "2.5e12"),
        (math.inf, "inf"),
    ],
)
def test_numbers_are_written_short(value, text):
    assert format_number(value) == text


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def lines(html: str, view: str = "linear-view") -> list[list[tuple[float, float]]]:
    part = html.split(f'<div class="{view}">')[1].split("</svg>")[0]
    return [points(path) for path in re.findall(r'class="line"[^>]* d="([^"]*)"', part)]


def test_a_line_runs_where_its_values_say():
    html = curves_html(Curves({"a": ([0, 5, 10], [0.0, 10.0, 5.0])}))
    assert lines(html) == [[(0, 300), (500, 0), (1000, 150)]]


def test_a_logarithmic_line_is_straight_for_an_exponential():
    xs = list(range(50))
    html = curves_html(Curves({"a": (xs, [math.exp(-x / 5) for x in xs])}, log=True))
    line = np.array(lines(html, "log-view")[0])
    assert np.abs(np.diff(line[:, 1]) - np.diff(line[:, 1]).mean()).max() < 0.11  # rounding to 0.1
    assert 'class="curves logarithmic"' in html


def test_a_logarithm_is_offered_only_for_positive_values():
    assert "log-view" not in curves_html(Curves({"a": ([0, 1], [0.0, 100.0])}, log=True))
    assert "log-view" not in curves_html(Curves({"a": ([0, 1], [30.0, 36.0])}))


def test_missing_values_leave_a_gap_and_lone_points_a_dot():
    xs, ys = list(range(40)), [1.0] * 20 + [None, 2.0, math.nan] + [3.0] * 17
    html = curves_html(Curves({"a": (xs, ys)}))
    path = re.findall(r'class="line"[^>]* d="([^"]*)"', html)[0]
    assert path.count("M") == 2
    dots = re.findall(r'class="dots"[^>]* d="([^"]*)"', html)[0]
    assert dots.count("M") == 1


def test_a_long_series_keeps_every_spike():
    ys = [math.sin(x / 900) for x in range(100_000)]
    ys[54_321], ys[77_777] = 40.0, -40.0
    html = curves_html(Curves({"a": (list(range(100_000)), ys)}))
    data = json.loads(re.findall(r"<script[^>]*>(.*?)</script>", html)[0])["series"][0]
    kept = dict(zip(data["x"], data["y"], strict=True))
    assert kept[54_321] == 40.0
    assert kept[77_777] == -40.0
    assert {0, 99_999} <= kept.keys()
    assert len(kept) < 1_000


@pytest.mark.parametrize("ys", [[], [None, None], [math.nan, math.inf]])
def test_a_figure_without_values_says_so(ys):
    assert "No values recorded" in curves_html(Curves({"a": (list(range(len(ys))), ys)}))


@pytest.mark.parametrize("value", [0.0, 3.0, -2e9, 1e-12])
def test_a_constant_series_is_drawn_inside_its_axis(value):
    line = lines(curves_html(Curves({"a": ([1, 2], [value, value])})))[0]
    assert all(0 < y < 300 for _, y in line)


VALUES = st.lists(
    st.one_of(
        st.none(),
        st.floats(),
        st.sampled_from([0.1, 0.1 + 2**-56, 1.0, 1 - 2**-53, 5e-324, -1.7e308, 1.7e308]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(ys=VALUES, baseline=st.floats(), log=st.booleans())
def test_any_values_make_a_figure(ys, baseline, log):
    shown = Curves({"a": (list(range(len(ys))), ys)}, baselines={"b": baseline}, log=log)
    assert not Page(curves_html(shown)).broken


class Settings(Config):
    seed: int = 4
    max_steps: int = 50_000


@pytest.fixture
def run_directory(tmp_path) -> Path:
    directory = tmp_path / "lego<b>"
    with Run.open(
        "featdistill", Settings, None, ["max_steps=200"], directory=directory, quiet=True
    ) as run:
        run.shorten("max_steps", 50_000, 200)
        run.warn("the teacher's mask covers 3 % only")
        run.record(0, {"baseline/blank/psnr_db": 9.48})
        for step in (100, 200):
            run.record(
                step, {"metric/psnr_db": step / 10, "loss/color": 1 / step, "metric/lpips": None}
            )
        run.status(state="gate_missed", reason="metric/psnr_db = 20 is not >= 22.5")
    gates = [
        {
            "metric": "m",
            "at": "every 100",
            "step": s,
            "limit": 1.0 + s / 10_000,  # that of a baseline, which is measured anew
            "value": v,
            "passed": p,
            "message": f"m at {s}",
        }
        for s, v, p in ((100, 2.0, True), (200, 0.5, False), (300, 3.0, True), (400, 4.0, True))
    ]
    (directory / "gates.json").write_text(json.dumps(gates), encoding="utf-8")
    return directory


def test_a_run_s_report_shows_how_it_ended_what_it_reached_and_the_baseline(run_directory):
    page = Page(run_report(run_directory).html())
    words = page.words()
    assert "featdistill / lego<b>" in words
    assert "This run missed a gate: metric/psnr_db = 20 is not >= 22.5" in words
    assert "max_steps is 200 where the configuration says 50000" in words
    assert "the teacher's mask covers 3 % only" in words
    assert ["this run", "20.00", "not evaluated"] in page.rows
    assert ["blank (baseline)", "9.48", "not evaluated"] in page.rows
    assert ["max_steps", "200", "override max_steps=200"] in page.rows
    assert not page.broken


def test_a_run_s_report_shows_each_missed_answer_and_the_last_of_each_gate(run_directory):
    rows = Page(run_report(run_directory).html()).rows
    assert [row[0] for row in rows if row[0].startswith("m at")] == ["m at 200", "m at 400"]


def test_a_shortened_run_says_so_once(run_directory):
    words = Page(run_report(run_directory).html()).words()
    assert words.count("shortened") == 1
    assert "using override regardless" not in words  # the log's words for the same


@pytest.mark.parametrize("name", ["run.json", "status.json", "metrics.jsonl", "gates.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "another kind"])
def test_a_damaged_file_costs_its_own_part_and_is_named(run_directory, name, damage):
    path = run_directory / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9] + b"\n")
    else:
        path.write_text("[3]\n", encoding="utf-8")
    page = Page(run_report(run_directory).html())
    assert not page.broken
    quiet = damage == "missing" and name in ("metrics.jsonl", "gates.json")  # a run that just began
    assert ("Left out of this page" in page.words()) != quiet
    assert name in page.words() or quiet


def test_a_row_that_is_being_written_is_left_out_without_a_word(run_directory):
    with (run_directory / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 300, "time": 1, "metric/ps')
    page = Page(run_report(run_directory).html())
    assert "Left out" not in page.words()
    assert ["this run", "20.00", "not evaluated"] in page.rows


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        run_report(tmp_path / "none")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="no run's directory"):
        run_report(tmp_path / "pictures")


def test_a_thread_writes_no_page_over_that_of_another_thread(run_directory):
    thread = json.loads((run_directory / "run.json").read_text(encoding="utf-8"))["thread"]
    run_report(run_directory, thread=thread)
    with pytest.raises(UserError, match=f"is a run of {thread}"):
        run_report(run_directory, thread="another")
