"""Which policy a matrix has played, by its weights."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loom.checkpoint import Checkpoints
from loom.config import resolve, to_yaml
from loom.errors import UserError
from loom.run import Run
from maniflow_overlay.cli import app
from maniflow_overlay.config import TrainConfig
from maniflow_overlay.evaluation.config import MatrixConfig
from maniflow_overlay.evaluation.matrix import CELLS, read_cells
from maniflow_overlay.evaluation.page import FOLDER
from maniflow_overlay.evaluation.run import play_matrix
from maniflow_overlay.policy.runtime import Policy, PolicyRecord, load_policy
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from small_policy import shape, stirred

pytestmark = pytest.mark.usefixtures("one_thread")


def make_run(directory, model, **settings):
    """A training's directory with nothing in it but a policy."""
    directory.mkdir(parents=True, exist_ok=True)
    config = resolve(TrainConfig, flags={"num_inference_steps": 1, **settings}).config
    (directory / "config.yaml").write_text(to_yaml(config))
    state = {
        "model": model.state_dict(),
        "extras": {"policy": PolicyRecord(model.shape).state_dict()},
    }
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoints.save((checkpoints.steps() or [0])[-1] + 1, state)
    return directory


def play(folder, *runs, resume=False):
    flags = {
        "runs": [str(run) for run in runs],
        "checkpoint": "last",
        "baselines": [],
        "occluded": [False],
        "episodes": 2,
        "scene": "planar",
        "at_a_time": 2,
        "shown": 0,
    }
    resolved = resolve(MatrixConfig, flags=flags)
    with Run.open(
        "maniflow_overlay", MatrixConfig, resolved, directory=folder, resume=resume, quiet=True
    ) as run:
        play_matrix(run.config, run)
    return [cell.run for cell in read_cells(folder / FOLDER / CELLS)]


def blind(seed):
    return stirred(shape("none", observed=1), seed)


def test_a_matrix_refuses_a_policy_that_was_trained_again_under_the_same_settings(tmp_path):
    runs = [make_run(tmp_path / name, blind(seed)) for seed, name in enumerate(("one", "two"))]
    folder = tmp_path / "matrix"
    assert play(folder, *runs) == ["one", "two"]
    before = (folder / FOLDER / CELLS).read_bytes()
    make_run(runs[1], blind(7))
    third = make_run(tmp_path / "three", blind(3))
    with pytest.raises(UserError, match=r"two is not the policy any more .*weights have changed"):
        play(folder, *runs, third, resume=True)
    assert (folder / FOLDER / CELLS).read_bytes() == before
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    make_run(runs[1], blind(1))  # the same bits again, in another file
    assert play(folder, *runs, third, resume=True) == ["one", "two", "three"]


def test_a_policy_is_known_by_what_it_answers_with_and_not_by_its_files(tmp_path):
    model = blind(0)
    first = load_policy(make_run(tmp_path / "a", model))
    again = load_policy(make_run(tmp_path / "b", model, lr=0.5, val_every=3))
    assert first.digest == again.digest
    assert len(first.digest) == 64
    others = [
        load_policy(make_run(tmp_path / "c", model, num_inference_steps=2)).digest,
        Policy(stirred(shape("none", observed=1, fuse="concat6")), inference_steps=1).digest,
    ]
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.is_floating_point():
            with torch.no_grad():
                place = tensor.view(-1)[-1:]
                was = place.clone()
                place.copy_(torch.from_numpy(np.nextafter(was.numpy(), np.float32(np.inf))))
                others.append(Policy(model, inference_steps=1).digest)
                place.copy_(was)
            assert others[-1] not in others[:-1], name
    assert first.digest not in others
    assert Policy(model, inference_steps=1).digest == first.digest


def test_a_policy_that_is_not_there_is_named_before_the_matrix_takes_its_directory(tmp_path):
    named = ["eval", "matrix", "--policy", str(tmp_path / "none"), "--run-dir", str(tmp_path / "m")]
    done = CliRunner().invoke(app, named)
    assert done.exit_code == 2
    assert "none is no training: it has no config.yaml" in done.stderr
    assert not (tmp_path / "m").exists()
