"""What two packages need the same way stands in the core: no block of logic is written twice.

Two measures. Lines: a run of more than ten lines that are equal but for white space. Shape: a
function of more than ten lines whose syntax tree is that of another one but for names, strings and
numbers. Imports, comments, docstrings and lone brackets do not count.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 10
SUFFIXES = (".py", ".cpp", ".cu", ".h", ".js", ".html", ".css")


class Line(NamedTuple):
    """A line of logic: its text, and where it stands."""

    text: str
    package: str
    path: str
    number: int


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "packages").parts[0]


def sources(*suffixes: str) -> list[Path]:
    return [
        path
        for path in sorted(ROOT.glob("packages/*/src/**/*"))
        if path.suffix in suffixes and "__pycache__" not in path.parts
    ]


def without_words(text: str) -> str:
    """Blank the comments, docstrings and imports of a Python module, keeping its lines."""
    lines = text.splitlines()
    blank = set()
    for node in ast.walk(ast.parse(text)):
        words = (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
        if words or isinstance(node, ast.Import | ast.ImportFrom):
            blank.update(range(node.lineno - 1, (node.end_lineno or node.lineno)))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join("" if number in blank else line for number, line in enumerate(lines))


def logic(text: str, path: str, package: str) -> list[Line]:
    """Return the lines of a file that do something, white space folded."""
    if path.endswith(".py"):
        text = without_words(text)
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        folded = " ".join(line.split())
        if re.search(r"\w", folded) and not folded.startswith(("//", "#include")):
            found.append(Line(folded, package, path, number))
    return found


def shared_runs(files: list[list[Line]], most: int) -> list[str]:
    """Return every run of more than `most` lines that stands in two packages, in words."""
    windows: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for which, lines in enumerate(files):
        for start in range(len(lines) - most):
            window = tuple(line.text for line in lines[start : start + most + 1])
            windows[window].append((which, start))
    found = set()
    for places in windows.values():
        firsts = {files[which][start].package: (which, start) for which, start in places}
        for one, other in pairwise(sorted(firsts.values())):
            a, b = files[one[0]][one[1]], files[other[0]][other[1]]
            found.add(f"{a.path}:{a.number} ~ {b.path}:{b.number}: {a.text}")
    return sorted(found)


def shape(function: ast.FunctionDef) -> str:
    """Return a function's syntax tree without names, strings, numbers and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    text = ";".join(ast.dump(node) for node in body)
    return re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?<=value=)[\w.+-]+", "_", text)


def same_functions(trees: list[tuple[str, str, str]], most: int) -> list[str]:
    """Return functions of more than `most` lines with one shape in two packages.

    Args:
        trees: Package, path and text of each module.
        most: Lines of a function that is too short to count.
    """
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for package, path, text in trees:
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > most:
                known[shape(node)][package] = f"{path}:{node.lineno} {node.name}"
    return sorted(" ~ ".join(places.values()) for places in known.values() if len(places) > 1)


def test_no_two_packages_share_more_than_ten_lines():
    files = [
        logic(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)), package_of(path))
        for path in sources(*SUFFIXES)
    ]
    assert len(files) > 250
    assert shared_runs(files, MOST_LINES) == []


def test_no_two_packages_have_one_function_under_two_names():
    trees = [
        (package_of(path), str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
        for path in sources(".py")
    ]
    assert same_functions(trees, MOST_LINES) == []


@pytest.mark.parametrize(("count", "found"), [(11, 1), (10, 0)])
def test_a_shared_block_is_found_whatever_stands_between_its_lines(count, found):
    one = "".join(f"x{i} = {i}\n" for i in range(count))
    other = '"""Words."""\n' + "".join(f"\n# why\nx{i}  =  {i}  # and how\n" for i in range(count))
    files = [logic(one, "a.py", "a"), logic(other, "b.py", "b")]
    assert len(shared_runs(files, MOST_LINES)) == found
    assert shared_runs([files[0], logic(other, "c.py", "a")], MOST_LINES) == []


def test_a_function_with_other_names_is_found():
    one = "def f(a):\n" + "".join(f"    b{i} = a.left[{i}] + 1\n" for i in range(11))
    other = one.replace("f(a)", "g(c)").replace("a.left", "c.right").replace("+ 1", "+ 2.5")
    different = other.replace("+ 2.5", "- 2.5")
    assert len(same_functions([("a", "a.py", one), ("b", "b.py", other)], MOST_LINES)) == 1
    assert same_functions([("a", "a.py", one), ("b", "b.py", different)], MOST_LINES) == []
