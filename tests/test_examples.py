"""The Python examples of the documents run as they stand, one after the other in one folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from documents import ROOT
from typer.testing import CliRunner

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_examples(document: str, **replaced: str) -> dict:
    """Run every block of a document in one namespace, and return what it holds then."""
    names: dict = {"__name__": "example"}
    for block in _BLOCK.findall((ROOT / "docs" / document).read_text(encoding="utf-8")):
        for old, new in replaced.items():
            block = block.replace(old, new)
        exec(compile(block, document, "exec"), names)
    return names


def read(path: str) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_examples_of_the_core_do_what_they_say():
    names = run_examples("core.md")
    shown = CliRunner().invoke(names["app"], ["train", "--help"])
    assert "Train on something" in shown.output
    assert "lr: 0.02" in Path("runs/first/config.yaml").read_text(encoding="utf-8")
    assert read("runs/first/status.json")["state"] == "finished"
    assert names["result"].step == 200
    assert read("runs/second/gates.json")[0]["passed"] is True
    assert read("runs/second/status.json")["metrics"]["metric/error"] < 0.1
    x = torch.linspace(-3, 3, 17)
    for impl in ("auto", "torch"):
        assert torch.equal(names["square"](x, impl), x * x)
    assert read("runs/rates/status.json")["state"] == "finished"
    assert Path("runs/rates/logs/lr=0.3.log").read_text().splitlines()[-1] == "0.09"


def test_the_example_of_many_machines_runs_here_too():
    run_examples("scale.md", **{'"ray"': '"local"', "range(100)": "range(3)"})
    assert read("runs/views/status.json")["state"] == "finished"
    assert Path("runs/views/logs/view2.log").read_text().splitlines()[-1] == "render view 2"
