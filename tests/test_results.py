"""docs/results.md is what its command writes, and what documents measure has a source."""

import json
import re
from pathlib import Path

import pytest
import results
from documents import DOCUMENTS, ROOT, command_lines, shown
from loom.errors import UserError
from test_documents import parse

KILOBYTE = 1024
SOURCES = re.compile(
    r"\bexperiments/|\bresults\.md|benchmarks[/ ]|`?uv run |LOOM_DATA|scripts/\w+\.py"
    r"|(?:`|^)(?:loom|featdistill|coopcyl|pinpad|maniflow-overlay|end2race) [a-z]",
    re.MULTILINE,
)


def test_the_page_is_what_the_records_say():
    assert results.RESULTS.read_text(encoding="utf-8") == results.page(), "scripts/results.py write"


def test_every_command_of_an_experiment_parses_and_its_documents_exist():
    for name, experiment in results.experiments().items():
        assert experiment.documents, name
        for document in experiment.documents:
            assert (ROOT / document).is_file(), f"{name}: {document}"
        for command in experiment.commands:
            (line,) = command_lines(f"```bash\n{command}\n```")
            words = line.split()
            if words[0] == "python":
                script = next(word for word in words if word.endswith(".py"))
                assert (ROOT / script).is_file(), f"{name}: {script}"
            else:
                parse(line)


def test_every_experiment_is_named_in_its_documents():
    """A page of docs/ links the runs behind its figures, or the commands where none is recorded."""
    for name, experiment in results.experiments().items():
        recorded = (results.EXPERIMENTS / "records" / name).is_dir()
        link = f"](results.md#{name})" if recorded else f"[`{name}`](../experiments/"
        for document in experiment.documents:
            if document.startswith("docs/"):
                text = (ROOT / document).read_text(encoding="utf-8")
                assert link in text, f"{document} does not name {name}"


def test_records_belong_to_experiments_and_are_small_and_of_no_machine():
    known = results.experiments()
    for path in sorted((results.EXPERIMENTS / "records").glob("*/*")):
        assert path.parent.name in known, path
        text = path.read_text(encoding="utf-8")
        assert len(text) < 90 * KILOBYTE, path
        assert not re.search(r'[" ]/(?:tmp|root|home|work)/', text), path
        assert json.loads(text)["files"] or json.loads(text)["metrics"], path


def is_measured(table: str) -> bool:
    """Whether at least a quarter of a table's cells begin with a number."""
    cells = [cell.strip(" *") for row in table.splitlines()[2:] for cell in row.split("|")[1:-1]]
    numbers = [cell for cell in cells if re.match(r"[-+<]?\d", cell)]
    return len(cells) >= 4 and len(numbers) >= len(cells) / 4


def tables(text: str) -> list[tuple[str, str, str]]:
    """Return heading, section and text of every table of a document.

    A section ends at the next heading of its own level or above, so it holds those below it.
    """
    found = []
    heads = list(re.finditer(r"^(#+) (.*)$", text, re.MULTILINE))
    for match in re.finditer(r"(?:^\|.*\n)+", text, re.MULTILINE):
        above = [head for head in heads if head.start() < match.start()]
        section, name = text, ""
        if above:
            level = min(len(above[-1][1]), 2)
            first = [head for head in above if len(head[1]) <= level][-1]
            after = [h for h in heads if h.start() > match.start() and len(h[1]) <= level]
            section = text[first.start() : after[0].start() if after else len(text)]
            name = above[-1][2]
        found.append((name, section, match[0]))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_every_table_of_measurements_names_its_command(document):
    text = document.read_text(encoding="utf-8")
    nameless = [
        heading
        for heading, section, table in tables(text)
        if is_measured(table) and not SOURCES.search(section)
    ]
    assert nameless == [], "name the experiment, benchmark or command in the section"


def test_a_table_without_a_source_is_noticed():
    table = "| a | b |\n|---|---|\n| x | 1.5 |\n| y | 2 % |\n"
    text = f"# A\n`uv run x`\n## B\n{table}## C\nby benchmarks/x.py\n### D\n{table}"
    found = tables(text)
    assert [name for name, _, _ in found] == ["B", "D"]
    assert [bool(SOURCES.search(section)) for _, section, _ in found] == [False, True]
    assert all(is_measured(each) for _, _, each in found)
    assert not is_measured("| a | b |\n|---|---|\n| `x` | does 1 |\n| `y` | no |\n")


# The command


@pytest.fixture
def folder(tmp_path) -> Path:
    text = (
        "agent:\n  question: How much?\n  documents: [README.md]\n"
        "  commands: [uv run loom doctor]\n"
        "  tables:\n"
        '    - columns: {run: "@name", score: "evaluation/a.json mean :.1f"}\n'
        "      mean_over: [score]\n"
        '    - each: evaluation/a.json rows\n      where: {kind: "x"}\n'
        '      columns: {run: "@name", it: kind, well: ok, "a b": deep.1}\n'
    )
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "t.yaml").write_text(text)
    return tmp_path / "experiments"


def run_of(folder: Path, name: str, mean: float) -> Path:
    run = folder.parent / "runs" / name
    (run / "evaluation").mkdir(parents=True)
    facts = {"thread": "t", "seed": 3, "git": {"commit": "0123456789abcdef", "dirty": "x"}}
    facts["config"] = {"data": "/srv/somebody/data/lego", "long": list(range(1000))}
    (run / "run.json").write_text(json.dumps(facts))
    rows = [{"kind": "x", "ok": True, "deep": [1, 2.0]}, {"kind": "y", "ok": False, "deep": [3]}]
    content = {"mean": mean, "rows": rows, "frames": [mean] * 1000}
    (run / "evaluation" / "a.json").write_text(json.dumps(content))
    return run


def test_a_record_becomes_rows_and_their_mean_has_students_interval(folder):
    runs = [run_of(folder, f"s{i}", mean) for i, mean in enumerate((1.0, 2.0, 3.0))]
    paths = results.record("agent", runs, folder)
    assert [path.name for path in paths] == ["s0.json", "s1.json", "s2.json"]
    page = results.page(folder)
    assert "| s0 | 1.0 |\n| s1 | 2.0 |\n| s2 | 3.0 |\n" in page
    # Student's t of 2 degrees of freedom at 97.5 % is 4.3027; the standard error is 1 / sqrt(3).
    assert "| mean of 3 | 2.0 [-0.5, 4.5] |" in page
    assert "| s1 | x | yes | 2 |" in page
    assert "| y |" not in page
    assert "3 records; commit 0123456789 with changes" in page


def test_a_record_leaves_long_lists_and_the_folders_of_a_machine_out(folder):
    (path,) = results.record("agent", [run_of(folder, "s", 1 / 3)], folder)
    content = json.loads(path.read_text())
    assert content["config"] == {"data": "lego"}
    assert content["files"]["evaluation/a.json"]["mean"] == 0.3333333
    assert "frames" not in content["files"]["evaluation/a.json"]


def test_what_is_too_long_to_be_kept_is_named(folder):
    run = run_of(folder, "s", 1.0)
    large = run / "evaluation" / "large.json"
    rows = [{"steps": list(range(65))}] * 64  # 64 rows are not too many, 65 steps are
    large.write_text(json.dumps({"rows": rows, "frames": [0] * 70}))
    heard: list[str] = []
    results.record("agent", [run], folder, heard.append)
    assert heard == [
        "s: left out config.long (1000 numbers or rows of at most 64), "
        "evaluation/a.json.frames (1000 numbers or rows of at most 64), "
        "evaluation/large.json.rows.steps (65 numbers or rows of at most 64), "
        "evaluation/large.json.frames (70 numbers or rows of at most 64)"
    ]
    large.write_text(json.dumps({"text": "y" * 100_000}))
    (path,) = results.record("agent", [run], folder, heard.append)
    assert heard[1].endswith(", evaluation/large.json (100 kB of at most 75)")
    assert list(json.loads(path.read_text())["files"]) == ["evaluation/a.json"]


@pytest.mark.parametrize(
    "content",
    [{"mean": 1.0, "rows": [], "text": "y" * 100_000}, {"mean": [1.0, 3.0] * 40}],
    ids=["file", "list"],
)
def test_a_run_is_refused_if_a_table_shows_what_is_too_long_to_be_kept(folder, content):
    run = run_of(folder, "s", 1.0)
    (run / "evaluation" / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"evaluation/a\.json.* cannot be kept, .* score of it"):
        results.record("agent", [run_of(folder, "before", 1.0), run], folder)
    assert not (folder / "records").exists()


def test_two_runs_that_would_share_a_record_are_refused(folder):
    runs = [run_of(folder, f"{group}/a/seed-0", 1.0) for group in ("old", "new")]
    with pytest.raises(UserError, match="another run is called a-seed-0, too"):
        results.record("agent", runs, folder)


def test_a_record_that_replaces_one_of_other_settings_is_named(folder):
    heard: list[str] = []
    run = run_of(folder, "one/s", 1.0)
    facts = json.loads((run / "run.json").read_text())
    for _ in range(2):
        results.record("agent", [run], folder, heard.append)
    (run / "run.json").write_text(json.dumps(facts | {"config": {"data": "lego", "lr": 0.5}}))
    results.record("agent", [run], folder, heard.append)
    replaced = [notice for notice in heard if "replaces" in notice]
    assert replaced == ["s: replaces the record of other settings: lr: absent -> 0.5"]


def test_a_column_that_no_record_fills_is_named_and_a_mean_over_no_column_is_refused(folder):
    results.record("agent", [run_of(folder, "s", 1.0)], folder)
    path = folder / "t.yaml"
    text = path.read_text()
    heard: list[str] = []
    results.page(folder, heard.append)
    assert heard == []
    path.write_text(text.replace("a.json mean :.1f", "a.json means :.1f"))
    results.page(folder, heard.append)
    assert heard == ["agent: no record holds score (evaluation/a.json means :.1f)"]
    path.write_text(text.replace("mean_over: [score]", "mean_over: [scores]"))
    with pytest.raises(UserError, match=r"t\.yaml: agent\.tables\.0: .* no column: scores"):
        results.page(folder)


def test_runs_of_one_name_are_kept_apart_and_a_list_is_shown_as_its_mean(folder):
    path = folder / "t.yaml"
    path.write_text(path.read_text() + '    - columns: {seeds: "evaluation/a.json rows.0.deep"}\n')
    runs = [run_of(folder, f"{condition}/seed-0", 1.0) for condition in ("a", "b")]
    names = [path.name for path in results.record("agent", runs, folder)]
    assert names == ["a-seed-0.json", "b-seed-0.json"]
    # Of 1 and 2 the mean is 1.5, and t of one degree of freedom at 97.5 % is 12.706.
    assert "| 1.5 [-4.853, 7.853] |" in results.page(folder)
    assert results._shown([], "psnr_gain_db :.2f") == ""  # a reference has no gain


def test_what_is_no_experiment_and_no_run_is_refused(folder):
    with pytest.raises(UserError, match="nobody is no experiment"):
        results.record("nobody", [folder], folder)
    with pytest.raises(UserError, match="neither a run nor results"):
        results.record("agent", [folder], folder)
