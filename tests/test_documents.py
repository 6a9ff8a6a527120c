"""What the documents print is there: commands parse, files that are linked exist."""

import re
import shlex

import pytest
from documents import DOCUMENTS, ROOT, applications, shown, written

_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def parse(command: str) -> None:
    """Parse a command as its application would, and run nothing.

    A word such as `[FOLDER]`, `...` or `KEY=VALUE` stands for what a user gives, `a|b` for either.
    """
    name, *words = shlex.split(command)
    words = [word.strip("[]").replace("...", "").split("|")[0] or "x" for word in words]
    current, context = applications()[name], None
    while hasattr(current, "get_command"):
        context = current.make_context(name, ["--help"], parent=context, resilient_parsing=True)
        if not words:
            return
        name = words.pop(0)
        below = current.get_command(context, name)
        assert below is not None, f"{command}: there is no command {name!r}"
        current = below
    options = {option for each in current.params for option in [*each.opts, *each.secondary_opts]}
    known = options | {"--help", "-h", "--debug", "--version"}
    normalised = getattr(context, "token_normalize_func", None) or str
    for word in words:
        if word.startswith("--"):
            option = normalised(word.split("=")[0])
            assert option in known, f"{command}: there is no option {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_every_command_that_is_printed_exists_with_its_options(document):
    for command in written(document.read_text(encoding="utf-8")):
        parse(command)


def test_commands_are_found_and_wrong_ones_are_noticed():
    text = (
        "`loom runs` and `runs/loom x`\n```python\nx = 1\n```\n"
        "```bash\nuv run loom doctor --json  # words\n"
        "LOOM_ISA=avx2 loom watch RUN && ls\n```\n"
    )
    assert written(text) == ["loom doctor --json", "loom watch RUN", "loom runs"]
    parse("loom ext build")
    with pytest.raises(AssertionError, match="no command 'fly'"):
        parse("loom fly")
    with pytest.raises(AssertionError, match="no option --wings"):
        parse("loom runs FOLDER --wings 2")


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_every_file_and_section_that_is_linked_exists(document):
    for target, section in _LINK.findall(document.read_text(encoding="utf-8")):
        if "://" not in target:
            place = document.parent / target if target else document
            assert place.exists(), f"{shown(document)}: {target} is not there"
            if section:
                assert section in anchors(place.read_text(encoding="utf-8")), f"{target}#{section}"


def anchors(text: str) -> list[str]:
    """Return what a link to each heading ends with, as GitHub makes it."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


def test_a_link_to_a_section_needs_its_heading():
    assert anchors("# A page\n## Where a `VTA` is, or not\n### lego-800\n") == [
        "a-page",
        "where-a-vta-is-or-not",
        "lego-800",
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_every_script_and_test_that_is_named_exists(document):
    text = document.read_text(encoding="utf-8")
    named = [ROOT / name for name in re.findall(r"\b((?:benchmarks|scripts)/\w+\.py)\b", text)]
    for name in re.findall(r"`([\w/]*tests/test_\w+\.py)`", text):
        places = [ROOT / name, ROOT / "packages" / name, document.parent / name]
        places += [ROOT / "packages" / document.stem / name]
        named.append(next((place for place in places if place.exists()), places[0]))
    assert [str(path) for path in named if not path.exists()] == []
