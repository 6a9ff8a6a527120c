"""What is wrong with a config, in sentences: where, which key, its value, what was expected."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from loom.config import shape
from loom.config.layers import DEFAULT, Layers
from loom.config.model import short
from loom.config.text import Path
from loom.errors import UserError

_SHOWN = 3  # complaints spelled out in one message; the rest are counted

_EXPECTED = {
    "int_type": "should be an integer",
    "int_from_float": "should be an integer",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "path_type": "should be a path",
    "model_type": "should be a section (a mapping of keys)",
    "model_attributes_type": "should be a section (a mapping of keys)",
    "dict_type": "should be a mapping",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "set_type": "should be a list",
    "none_required": "should be null",
    "finite_number": "should be a finite number",
}

_REMEDY = {
    "int_type": "write a whole number without quotes or point; 1e5 is a float, 100000 an integer",
    "int_from_float": "write a whole number: 1e5 is a float, 100000 an integer",
    "float_type": "write a number without quotes, such as 5e-4",
    "bool_type": "write true or false; yes, no, on and off are text in YAML 1.2",
    "string_type": "put the value in quotes to make it text",
    "list_type": "write a list: [a, b], or lines that begin with `- `",
    "tuple_type": "write a list: [a, b], or lines that begin with `- `",
}


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong; those of a low rank are told first."""

    path: Path
    rank: int
    sentence: str
    hint: str


def explain(error: pydantic.ValidationError, layers: Layers, source: str) -> UserError:
    """Return the `UserError` that says what pydantic found, removed and unknown keys first."""
    complaints: dict[Path, Complaint] = {}
    for detail in error.errors(include_url=False):
        new = _complaint(detail, layers)
        old = complaints.get(new.path)
        if old is not None and old.rank == new.rank and old.sentence != new.sentence:
            new = _joined(old, new)
        if old is None or new.rank <= old.rank:
            complaints[new.path] = new
    inside = {path[:length] for path in complaints for length in range(len(path))}
    found = sorted(  # a union tried as a section complains inside, and that is the one to tell
        (each for path, each in complaints.items() if path not in inside), key=lambda c: c.rank
    )
    texts = [f"{_where(each.path, layers, source)}: {each.sentence}" for each in found]
    rest = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return UserError("; ".join(texts[:_SHOWN]) + rest, hint=found[0].hint)


def _joined(one: Complaint, other: Complaint) -> Complaint:
    """Join what two members of a union expect of the same value."""
    head, but, _ = one.sentence.partition(", but ")
    rest = other.sentence.removeprefix(head + but)
    return Complaint(one.path, one.rank, f"{one.sentence}, or {rest}", one.hint)


def _data_path(location: tuple[str | int, ...], values: Any, *, keep_last: bool) -> Path:
    """Drop from pydantic's location what is not in the data: tags and names of union members."""
    path: Path = ()
    for position, key in enumerate(location):
        inside = (isinstance(values, Mapping) and key in values) or (
            isinstance(values, list) and isinstance(key, int) and key < len(values)
        )
        if inside:
            values = values[key]
            path = (*path, key)
        elif keep_last and position == len(location) - 1:
            path = (*path, key)
    return path


def _complaint(detail: Any, layers: Layers) -> Complaint:
    """Put one of pydantic's errors into words."""
    kind = detail["type"]
    path = _data_path(detail["loc"], layers.values, keep_last=kind == "missing")
    dotted = _dotted(path)
    if kind == "extra_forbidden":
        return _unknown(path, layers)
    if kind == "missing":
        remedy = f"add it to the file, or give {dotted}=VALUE"
        return Complaint(path, 2, f"`{dotted}` is missing", remedy)
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return _wrong_variant(detail, path, layers)
    if kind in {"value_error", "assertion_error"}:
        cause = detail.get("ctx", {}).get("error", detail["msg"])
        remedy = "change the value, or the one it does not fit"
        return Complaint(path, 2, f"`{dotted}`: {cause}", remedy)
    if detail["loc"] and detail["loc"][-1] == "[key]":
        return Complaint(path, 2, f"the key of `{dotted}` {_expectation(detail)}", "change the key")
    sentence = f"`{dotted}` is {short(detail['input'])}, but {_expectation(detail)}"
    return Complaint(path, 2, sentence, _REMEDY.get(kind) or _about(path, layers))


def _expectation(detail: Any) -> str:
    message = detail["msg"].removeprefix("Input ")
    return _EXPECTED.get(detail["type"], message[0].lower() + message[1:])


def _unknown(path: Path, layers: Layers) -> Complaint:
    model, key, dotted = _model_at(path[:-1], layers), str(path[-1]), _dotted(path)
    if model is None:
        return Complaint(path, 1, f"unknown key `{dotted}`", "remove it")
    removed = getattr(model, "removed_keys", {})
    if key in removed:
        return Complaint(path, 0, f"the key `{dotted}` was removed", removed[key])
    known = list(model.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    tag = shape.discriminator(shape.sections(_annotation_at(path[:-1], layers)))
    elsewhere = [name for name in shape.every_key(layers.model) if name.split(".")[-1] == key]
    if close:
        hint = f"did you mean `{_dotted((*path[:-1], close[0]))}`?"
    elif tag:
        hint = f"with `{tag}: {shape.tags(model, tag)[0]}` it has: {', '.join(known)}"
    elif elsewhere:
        hint = f"did you mean `{elsewhere[0]}`?"
    else:
        hint = f"known here: {', '.join(known) or 'no keys'}"
    return Complaint(path, 1, f"unknown key `{dotted}`", hint)


def _wrong_variant(detail: Any, path: Path, layers: Layers) -> Complaint:
    name = detail["ctx"]["discriminator"].strip("'")
    models = shape.sections(_annotation_at(path, layers))
    choices = [str(tag) for model in models for tag in shape.tags(model, name)]
    listed = f"one of: {', '.join(choices)}"
    if detail["type"] == "union_tag_not_found":
        return Complaint(path, 2, f"`{_dotted(path)}` needs the key `{name}`", listed)
    tag, path = detail["ctx"]["tag"], (*path, name)
    close = difflib.get_close_matches(str(tag), choices, n=1)
    hint = f"did you mean {close[0]}? ({listed})" if close else listed
    sentence = f"`{_dotted(path)}` is {short(tag)}, which is none of its kinds"
    return Complaint(path, 2, sentence, hint)


def _about(path: Path, layers: Layers) -> str:
    """Return what the model says about a key, as a hint."""
    for length in range(len(path), 0, -1):
        model, key = _model_at(path[: length - 1], layers), str(path[length - 1])
        field = model.model_fields.get(key) if model is not None else None
        if field is not None and field.description:
            return f"{key}: {' '.join(field.description.split())}"
    return f"change it where it is set, or give {'.'.join(map(str, path)) or 'KEY'}=VALUE"


def _annotation_at(path: Path, layers: Layers) -> Any:
    annotation: Any = layers.model
    value: Any = layers.values
    for key in path:
        annotation = shape.part(annotation, value, key)
        value = value[key]
    return annotation


def _model_at(path: Path, layers: Layers) -> shape.Section | None:
    value: Any = layers.values
    for key in path:
        value = value[key]
    return shape.section_of(_annotation_at(path, layers), value)


def _where(path: Path, layers: Layers, source: str) -> str:
    """Return where a value was set; for a section of defaults, where its latest part was."""
    inside = [
        origin
        for known, origin in layers.origins.items()
        if known[: len(path)] == path and len(known) > len(path) and origin != DEFAULT
    ]
    for length in range(len(path), 0, -1):
        origin = layers.origins.get(path[:length])
        if origin == DEFAULT and inside:
            return inside[-1]
        if origin is not None:
            return origin
    return source


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the config"
