"""A student file holds all that a renderer needs, and a damaged one is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from featdistill.models import kilo_torch
from featdistill.models.student import Student, render_image
from featdistill.orbit import Orbit, orbit_camera
from featdistill.restore import restore_student
from featdistill.student_file import read_student, write_student
from featdistill.student_onnx import write_onnx
from featdistill.viewer import Viewer
from loom.errors import UserError
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional


@pytest.fixture(scope="module")
def student(trained) -> Student:
    found = restore_student(trained.run).student
    weights = torch.zeros_like(found.occupancy, dtype=torch.float32)
    weights[:, : weights.shape[1] // 2] = 1.0  # half of the box has been pruned
    found.prune(weights, 0.5)
    return found


@pytest.fixture
def path(student, tmp_path) -> Path:
    return write_student(student, tmp_path / "student.safetensors").path


def test_a_file_renders_as_the_student_with_its_weights_rounded_to_half_precision(
    student, path, trained
):
    rounded = Student.from_state(student.config, student.state_dict())
    with torch.no_grad():
        rounded.weights.copy_(student.weights.half().float())
    viewer = Viewer(trained.run)
    camera = orbit_camera(viewer.start, viewer.target, viewer.cameras, 48)
    read = read_student(path)
    assert len(read.weights) < len(student.weights)  # emptied cells are left out
    assert torch.equal(render_image(read, camera)[0], render_image(rounded, camera)[0])
    assert render_image(read, camera)[0][..., 3].max() > 0.9


def test_another_program_reads_the_layout_as_documented(student, path):
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
    assert config["hidden_dim"] == student.config.hidden_dim
    voxels = tuple(tensors["voxels"].tolist())
    filled = np.unpackbits(tensors["occupancy"].numpy())[: np.prod(voxels)].reshape(voxels)
    assert (filled == student.occupancy.numpy()).all()
    for place in np.argwhere(tensors["cell_index"].numpy() >= 0):
        row = tensors["weights"][tensors["cell_index"][tuple(place)]]
        assert torch.equal(row, student.weights[student.cell_index[tuple(place)]].half())
    assert tensors["weights"].dtype == torch.float16


def test_every_damage_is_refused_by_name(path, tmp_path):
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    draw = np.random.default_rng(0)
    variants = [whole[: len(whole) * i // 16] for i in range(16)]
    for place in draw.integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        variants.append(bytes(flipped))
    for content in variants:
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged\.safetensors"):
            read_student(damaged)


def test_a_foreign_or_inconsistent_file_is_refused(path, tmp_path):
    from featdistill.student_file import _digest

    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())

    def refused(words: str, **changed: torch.Tensor) -> None:
        found = {**tensors, **changed}
        said = {**metadata, "sha256": _digest(found)}
        save_file(found, tmp_path / "x.safetensors", said)
        with pytest.raises(UserError, match=words):
            read_student(tmp_path / "x.safetensors")

    refused("no volume", box=tensors["box"].flip(0).contiguous())
    refused("do not belong", voxels=tensors["voxels"] * 1000)
    refused("cell_index does not belong", cell_index=tensors["cell_index"] + 1)
    refused("rows of weights", weights=tensors["weights"][1:].contiguous())
    refused("rows of weights", weights=torch.full_like(tensors["weights"], torch.nan))
    refused("weights are", weights=tensors["weights"][:, 1:].contiguous())
    refused("of rank", weights=tensors["weights"].float())
    save_file(tensors, tmp_path / "x.safetensors", {"format": "other"})
    with pytest.raises(UserError, match="format is 'other'"):
        read_student(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no such file"):
        read_student(tmp_path / "gone")


def test_weights_beyond_half_precision_are_refused(student, tmp_path):
    large = Student.from_state(student.config, student.state_dict())
    with torch.no_grad():
        large.weights[:, 0] = 1e6
    with pytest.raises(UserError, match="float16"):
        write_student(large, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_export_says_what_half_precision_costs(trained, command, tmp_path):
    done = command("export", trained.run, tmp_path / "new" / "s.safetensors")
    assert done.code == 0, done.err
    assert "MB" in done.out
    assert " dB against the student's own and moves a colour by at most " in done.out
    pytest.importorskip("onnx")
    done = command("export", trained.run, tmp_path / "new" / "s.onnx")
    assert done.code == 0, done.err
    assert "networks (" in done.out


def test_a_film_is_one_turn(trained, command, tmp_path):
    done = command(
        "render", "--checkpoint", trained.run, "--video", tmp_path / "a.webp", "--video-frames", 4
    )
    assert done.code == 0, done.err
    viewer = Viewer(trained.run)
    with Image.open(tmp_path / "a.webp") as film:
        assert film.n_frames == 4
        film.seek(1)
        shown = np.asarray(film.convert("RGB")).astype(int)
        assert film.info["duration"] == 1500  # four pictures, six seconds a turn
    width = shown.shape[1]
    errors = []
    for azimuth in range(0, 360, 30):
        place = Orbit(viewer.start.azimuth + azimuth, *viewer.start[1:])
        expected = viewer.frame(place, width).pixels[:, :width].astype(int)
        errors.append(np.abs(shown - expected).mean())
    assert int(np.argmin(errors)) == 3  # compressed, but nearer to its own place than to any other
    wrong = command("render", "--checkpoint", trained.run, "--video", tmp_path / "a.avi")
    wrong.holds("a.avi", ".webp or .gif or .mp4")


def test_the_onnx_graph_equals_the_networks_that_the_student_file_numbers(student, path, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    written = write_onnx(student, tmp_path / "s.onnx")
    assert written.dropped > 0  # by the pruning of the fixture
    noise = torch.Generator().manual_seed(0)
    rows = load_file(path)["cell_index"]
    places = (rows >= 0).nonzero()[torch.randint(written.cells, (9,), generator=noise)]
    cell = rows[tuple(places.T)].long()
    local = torch.rand(9, 11, 3, generator=noise) * 2 - 1
    directions = functional.normalize(torch.randn(9, 11, 3, generator=noise), dim=-1)
    session = runtime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    inputs = {"cell": cell, "local": local, "directions": directions}
    (found,) = session.run(["raw"], {name: value.numpy() for name, value in inputs.items()})
    own = student.cell_index[tuple(places.T)]
    assert not torch.equal(own, cell.int())
    expected, _ = kilo_torch.network(
        student.weights.detach().half().double(), student.shape, own.repeat_interleave(11),
        local.reshape(-1, 3).double(), directions.reshape(-1, 3).double(),
    )  # fmt: skip
    assert expected.abs().max() > 1
    torch.testing.assert_close(
        torch.from_numpy(found).reshape(-1, 4).double(), expected, atol=1e-4, rtol=1e-5
    )
    large = Student.from_state(student.config, student.state_dict())
    with torch.no_grad():
        large.weights[:, 0] = 1e6
    with pytest.raises(UserError, match="float16"):
        write_onnx(large, tmp_path / "x.onnx")


def test_a_name_that_ends_with_neither_format_is_refused(trained, command, tmp_path):
    for name in ("s.ply", "s", "."):
        command("export", trained.run, tmp_path / name).holds(".safetensors or .onnx")
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_package_says_what_to_install(trained, command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    command("export", trained.run, tmp_path / "s.onnx").holds("uv pip install onnx")


def test_a_checkpoint_without_a_run_is_named(command, tmp_path):
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    command("export", tmp_path / "gone", tmp_path / "x.safetensors").holds("gone")
