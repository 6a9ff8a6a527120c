"""Every command that a document prints runs, long ones at tiny sizes."""

import shlex

import pytest
from documents import DOCUMENTS, command_lines, shown
from printed import CHAINS, NOT_RUN
from printed.runner import Chain, Step, run_chain

LEFT_OUT = 39
"""How many printed commands are not run. A new one has to be run, or to be argued for here."""


def printed() -> dict[str, list[str]]:
    """Return every command of every document, and the documents that print it."""
    found: dict[str, list[str]] = {}
    for document in DOCUMENTS:
        for line in command_lines(document.read_text(encoding="utf-8")):
            found.setdefault(line, []).append(shown(document))
    return found


def stood_for() -> list[str]:
    return [line for chain in CHAINS for step in chain.steps for line in step.printed]


def test_every_printed_command_is_run_or_named_with_the_reason():
    known = {*stood_for(), *NOT_RUN}
    unknown = {line: places for line, places in printed().items() if line not in known}
    assert unknown == {}, "add them to a chain in tests/printed/"


def test_nothing_is_run_that_no_document_prints():
    assert sorted({*stood_for(), *NOT_RUN} - printed().keys()) == []
    assert len(stood_for()) == len(set(stood_for()))


def test_the_list_of_what_is_not_run_does_not_grow_silently():
    assert len(NOT_RUN) == LEFT_OUT
    assert all(len(reason.split()) >= 3 for reason in NOT_RUN.values())


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(chain, id=chain.name, marks=() if chain.quick else pytest.mark.slow)
        for chain in CHAINS
    ],
)
def test_printed_commands_run(chain, tmp_path):
    assert run_chain(chain, tmp_path) == []


def test_a_command_that_fails_is_noticed(tmp_path):
    chain = Chain("wrong", (Step(run="loom watch nowhere"), Step(run="loom runs .", code=2)))
    first, second = run_chain(chain, tmp_path)
    assert first.startswith("loom watch nowhere: exit code 2 instead of 0\nerror: ")
    assert second.startswith("loom runs .: exit code 0 instead of 2")
    assert shlex.split(Step(("loom watch RUN",), plus="--once").line)[-1] == "--once"
