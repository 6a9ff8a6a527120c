"""Models on disk: what one is, how it is built again, and where its weights lie.

A run directory holds `model.json` beside its checkpoints; a file written by `--save-path` holds
both in one. Either can be driven, evaluated, exported or taken as the beginning of another
training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from loom.checkpoint import Checkpoints, newest_folder
from loom.config import Config, plain
from loom.errors import UserError
from loom.files import explained, read_json, write_json
from loom.run_directory import require_thread
from torch import Tensor, nn

from end2race.driving import Driving
from end2race.models.presets import PRESETS, preset
from end2race.models.student import CameraBEVStudent
from end2race.models.teacher import LiDARBEVTeacher

FILE = "model.json"
OUTPUT_LAYER = "policy.output_layer.*"
Row = tuple[float, float, float]


class CameraFile(Config):
    """The camera that a student was calibrated for."""

    intrinsic: tuple[Row, Row, Row]
    rotation: tuple[Row, Row, Row]
    translation: Row
    width: int = pydantic.Field(gt=0)
    height: int = pydantic.Field(gt=0)


@dataclass(frozen=True)
class Camera:
    """The same as arrays."""

    intrinsic: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    width: int
    height: int


class ModelFile(Config):
    """What is needed to build a model: the content of `model.json`."""

    format: Literal["end2race model"] = "end2race model"
    kind: Literal["teacher", "student"]
    preset: str
    seq_len: int = pydantic.Field(ge=1)
    target_shift: int = pydantic.Field(1, ge=1)
    view_transform: Literal["lift_splat", "identity"] = "lift_splat"
    camera: CameraFile | None = None
    lidar_beams: int | None = pydantic.Field(None, ge=1)
    """Those of the dataset that a teacher learned from, where it says."""


@dataclass(frozen=True)
class Restored:
    """A model with its weights, in evaluation mode.

    Attributes:
        model: Teacher or student.
        file: What it was built from.
        source: The checkpoint folder or the file.
    """

    model: Driving
    file: ModelFile
    source: Path

    def settings(self) -> dict[str, Any]:
        """Return what the answers depend on besides the weights, as plain values."""
        history = ("target_shift", "lidar_beams")
        return {k: v for k, v in plain(self.file).items() if k not in history}

    def other_lidar(self, beams: int | None, where: object) -> str | None:
        """Say that clouds have other beams than a teacher learned from; None if not or unknown."""
        if None in (self.file.lidar_beams, beams) or self.file.lidar_beams == beams:
            return None
        return (
            f"[lidar] the clouds of {where} have {beams} beams, the teacher learned from "
            f"{self.file.lidar_beams}"
        )


def camera_file(camera: Any) -> CameraFile:
    """Describe a calibration for `model.json`."""
    return CameraFile.model_validate_json(
        json.dumps(
            {
                "intrinsic": np.asarray(camera.intrinsic, float).tolist(),
                "rotation": np.asarray(camera.rotation, float).tolist(),
                "translation": np.asarray(camera.translation, float).tolist(),
                "width": camera.width,
                "height": camera.height,
            }
        )
    )


def build(file: ModelFile) -> Driving:
    """Build a model with new weights, drawn from torch's global generator."""
    if file.kind == "teacher":
        return LiDARBEVTeacher(preset(file.preset))
    if file.camera is None:
        raise UserError("a student without a camera", hint="give a dataset with a calibration")
    arrays = (np.array(getattr(file.camera, n)) for n in ("intrinsic", "rotation", "translation"))
    camera = Camera(*arrays, file.camera.width, file.camera.height)
    return CameraBEVStudent(preset(file.preset), camera, file.view_transform)


def write_model_file(directory: Path, file: ModelFile) -> None:
    """Write `model.json` into a run directory."""
    write_json(directory / FILE, plain(file))


def save_model(path: Path, model: Driving, file: ModelFile) -> None:
    """Write a model into one file."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        torch.save({"file": json.dumps(plain(file)), "model": model.state_dict()}, temporary)
        temporary.replace(path)


def restore(path: Path, kind: str | None = None) -> Restored:
    """Load a model from a run directory, one of its checkpoints, or a file of `save_model`.

    Args:
        path: Where it is; a run directory means its newest checkpoint.
        kind: `teacher` or `student`, if it has to be one of them.

    Raises:
        UserError: There is none, it is damaged, or of the other kind.
    """
    source, file, weights = _read(Path(path))
    if kind is not None and file.kind != kind:
        raise UserError(
            f"{path} holds a {file.kind}, not a {kind}", hint=f"give the run of a {kind}"
        )
    with torch.random.fork_rng([]):
        model = build(file)
    _fill(model, weights, source)
    return Restored(model.eval(), file, source)


def begin_from(
    model: nn.Module, path: Path, *, strict: bool = True, skip_output_layer: bool = False
) -> list[str]:
    """Start a model from the weights of another one, and take nothing else from it.

    Args:
        model: Receives the weights in place.
        path: As for `restore`; it may be of another kind or preset if `strict` is off.
        strict: Every weight has to fit; otherwise those that do not keep their present value.
        skip_output_layer: Leave the last layer as it is.

    Returns:
        The names of the weights that were left as they are.
    """
    source, _, weights = _read(Path(path))
    own = model.state_dict()
    skipped = sorted(key for key in own if skip_output_layer and fnmatch(key, OUTPUT_LAYER))
    weights = {key: value for key, value in weights.items() if key not in skipped}
    if not strict:
        weights = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
        if not weights:
            raise UserError(f"{source}: no weight fits this model", hint="take another run")
        skipped = sorted(own.keys() - weights.keys())
    _fill(model, {**{key: own[key] for key in skipped}, **weights}, source)
    return skipped


def _read(path: Path) -> tuple[Path, ModelFile, dict[str, Tensor]]:
    if path.is_file():
        return path, *_read_file(path)
    if not path.exists():
        raise UserError(f"{path} does not exist", hint="give a run directory or a model file")
    folder = newest_folder(path)
    state = Checkpoints(folder.parent).load(folder).state
    run = folder.parent.parent
    require_thread(run, "end2race")
    if not (run / FILE).is_file():
        raise UserError(
            f"{run}: no {FILE} beside the checkpoints",
            hint="give the run of `end2race train-teacher` or `train-student`",
        )
    return folder, _model_file(run / FILE, read_json(run / FILE)), state["ema"] or state["model"]


def _read_file(path: Path) -> tuple[ModelFile, dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        file, weights = json.loads(content["file"]), dict(content["model"])
    except Exception as error:  # whatever the unpickler says, the file is not one of ours
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: not a model of this program: {reason}",
            hint="give a run directory, or a file written with --save-path",
        ) from error
    return _model_file(path, file), weights


def _model_file(path: Path, content: Any) -> ModelFile:
    try:
        file = ModelFile.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {place}: {first['msg'].lower()}", hint="train the model again"
        ) from error
    if file.preset not in PRESETS:
        raise UserError(
            f"{path}: there is no preset {file.preset!r}", hint=f"known are {', '.join(PRESETS)}"
        )
    return file


def _fill(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    own = model.state_dict()
    problems = [f"{key} is not in the model" for key in weights if key not in own]
    for key, value in own.items():
        if key not in weights:
            problems.append(f"{key} is missing")
        elif weights[key].shape != value.shape:
            problems.append(f"{key} is {list(weights[key].shape)}, the model's {list(value.shape)}")
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source}: the weights do not fit the model: {'; '.join(problems[:3])}{rest}",
            hint="take the preset it was trained with; --no-init-strict takes what fits, "
            "--init-skip-output-layer leaves the last layer out",
        )
    model.load_state_dict(dict(weights))
