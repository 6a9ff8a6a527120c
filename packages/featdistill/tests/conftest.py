"""A tiny scene, its teacher and a student of it, made once for all tests that run commands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from featdistill import supervision
from featdistill.cli import app
from featdistill.data.bricks import BrickScene, build_model, write_scene
from featdistill.data.ply import write_ply
from featdistill.gaussians import Gaussians
from featdistill.models import occupancy
from featdistill.models.student import Student
from featdistill.student_config import StudentConfig
from torch.nn import functional
from typer.testing import CliRunner

GAUSSIANS = 4000
SH_CONSTANT = 0.28209479177387814  # Y_0^0: a colour c is stored as (c - 1/2) / Y_0^0

SETTINGS = (
    "name=tiny",
    "student.grid_resolution=[3,3,3]",
    "student.steps_per_axis=48",
    "student.occupancy_resolution=32",
    "train.max_steps=120",
    "train.phases=[{name: predistillation, end_step: 8, optimize: [student], target: volume,"
    " lr: 4e-3}, {name: joint_training, end_step: 120, optimize: [student, projector]}]",
    "train.rays=256",
    "train.points=1024",
    "feature_pipeline.rays=32",
    "data.extra_poses=2",
    "evaluation.frames=2",
    "prune.window=10",
    "log_interval=20",
)
"""A training of a CPU-second with everything in it: both targets, pruning, features."""

LEARNING = (
    "train.max_steps=300",
    "train.rays=512",
    "train.lr=1e-2",
    "data.extra_poses=40",
    # At 28 pixels the rasteriser's blur reaches beyond the box that is derived from the centres.
    "student.bbox=[[-1.1,-0.95,-0.8],[1.1,0.95,0.9]]",
)
"""What makes it learn: 19 dB above an empty picture."""


@dataclass(frozen=True)
class Tiny:
    """Where the tiny scene and its teacher are."""

    scene: Path
    teacher: Path

    @property
    def settings(self) -> tuple[str, ...]:
        """A short training on them."""
        return (*SETTINGS, *self.data)

    @property
    def data(self) -> tuple[str, ...]:
        """The settings that name them."""
        return (f"data.scene={self.scene}", f"data.teacher={self.teacher}")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def holds(self, *words: str) -> None:
        """Require a user's error: code 2, one line with the words, and a hint."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.err.startswith("error: "), self.err
        assert "\nhint: " in self.err, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, (word, self.err)


Command = Callable[..., Outcome]


def featdistill(*arguments: str | Path) -> Outcome:
    """Run the command line in this process."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Outcome(done.exit_code, done.stdout, done.stderr)


def tree(*places: Path) -> dict[str, str]:
    """Return the digest of every file below some places, to see that nothing has changed."""
    files = (file for place in places for file in sorted(place.rglob("*")) if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def surface_gaussians(count: int = GAUSSIANS, seed: int = 0) -> Gaussians:
    """Opaque blobs spread over the faces of the bricks, in the bricks' colours, nothing fitted."""
    draw = np.random.default_rng(seed)
    boxes = build_model(0).boxes
    size = boxes.high - boxes.low
    faces = np.stack([size[:, 1] * size[:, 2], size[:, 0] * size[:, 2], size[:, 0] * size[:, 1]], 1)
    share = np.repeat(faces, 2, axis=1).ravel()
    chosen = draw.choice(share.size, count, p=share / share.sum())
    box, face = np.divmod(chosen, 6)
    place = draw.random((count, 3))
    place[np.arange(count), face // 2] = face % 2
    means = boxes.low[box] + place * size[box]
    sh = np.zeros((count, 16, 3))
    sh[:, 0] = (boxes.colour[box] - 0.5) / SH_CONSTANT
    sh[:, 1:] = draw.normal(0, 0.02, (count, 15, 3))  # no feature may be constant
    scales = np.log(0.022) + draw.normal(0, 0.1, (count, 3))
    arrays = means, scales, draw.normal(size=(count, 4)), draw.normal(4, 0.2, count), sh
    return Gaussians(*(torch.from_numpy(array).float() for array in arrays))


@pytest.fixture(scope="session", autouse=True)
def small() -> Iterator[None]:
    """One core, as bit-equality holds for a fixed number of threads, and a small pool of points."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervision, "POINT_POOL", 20_000)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    write_scene(folder / "scene", BrickScene(width=28, train=8, test=4))
    write_ply(folder / "point_cloud.ply", surface_gaussians())
    return Tiny(folder / "scene", folder / "point_cloud.ply")


@pytest.fixture(scope="session")
def command() -> Command:
    return featdistill


@pytest.fixture(scope="session")
def files_in() -> Callable[..., dict[str, str]]:
    return tree


@dataclass(frozen=True)
class Trained:
    """A run that went well, and what its command said."""

    run: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Read only: a student that has learnt. Tests that write work on a copy."""
    run = tmp_path_factory.mktemp("trained") / "run"
    return Trained(run, featdistill("train", *tiny.settings, *LEARNING, "--run-dir", run))


BOX = torch.tensor([[-1.0, -0.5, -0.75], [1.0, 0.5, 0.75]])


def small_student(
    hidden: int = 32, frequencies: tuple[int, int] = (4, 2), filled: float = 0.3
) -> Student:
    """A student of 5 x 3 x 2 cells with random weights; `filled` is the share of its voxels."""
    config = StudentConfig(
        grid_resolution=(5, 3, 2),
        hidden_dim=hidden,
        position_frequencies=frequencies[0],
        direction_frequencies=frequencies[1],
        steps_per_axis=48,
        occupancy_resolution=16,
    )
    noise = torch.Generator().manual_seed(1)
    shape = occupancy.voxel_shape(BOX, 16)
    occupied = (torch.rand(shape, generator=noise) < filled).to(torch.uint8)
    occupied[:4] = 0  # empty space to skip, and cells without a network
    student = Student(config, BOX, occupied, torch.Generator().manual_seed(0))
    with torch.no_grad():
        student.weights.add_(torch.randn(student.weights.shape, generator=noise), alpha=0.1)
        student.head.add_(torch.randn(student.head.shape, generator=noise), alpha=0.1)
    return student


def rays_to_the_box(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rays from a sphere of radius 3 towards the box, some of which miss, and special ones."""
    generator = torch.Generator().manual_seed(0)
    origins = functional.normalize(torch.randn(n, 3, generator=generator), dim=1) * 3.0
    targets = (torch.rand(n, 3, generator=generator) - 0.5) * 1.8
    directions = functional.normalize(targets - origins, dim=1)
    origins[0], directions[0] = torch.tensor([0.1, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    origins[1], directions[1] = torch.tensor([0.3, 0.1, 2.0]), torch.tensor([0.0, 0.0, -1.0])
    origins[2], directions[2] = torch.tensor([3.0, 0.5, 0.0]), torch.tensor([-1.0, 0.0, 0.0])
    origins[3], directions[3] = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    origins[4], directions[4] = torch.zeros(3), torch.zeros(3)
    jitter = torch.rand(n, generator=generator)
    return origins, directions, jitter


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Student]:
    return small_student


@pytest.fixture(scope="session")
def random_rays() -> Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return rays_to_the_box
