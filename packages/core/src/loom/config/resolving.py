"""From a file, groups, overrides and flags to one checked config."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic

from loom import files
from loom.config import text
from loom.config.complaints import explain
from loom.config.layers import DEFAULT, Layers
from loom.config.model import Config, flatten, plain, sections, short
from loom.errors import UserError

C = TypeVar("C", bound=Config)

_MAX_FILES = 50
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_GROUP_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A checked config and where it came from.

    Attributes:
        config: The config itself.
        origins: Dotted path of every leaf -> `default`, `FILE:LINE`, `override ...` or `flag ...`.
        source: The file, or `defaults`.
        notices: Sentences worth printing: file values that were overridden, advice of the model.
        overridden: Those of them that only say what was asked for: a file's value was replaced.
    """

    config: C
    origins: dict[str, str]
    source: str
    notices: tuple[str, ...]
    overridden: tuple[str, ...] = ()


def parse_yaml(content: str, source: str) -> Any:
    """Parse one YAML 1.2 document to plain values; see `loom.config.text`."""
    return text.parse(content, source).value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty one."""
    return _read(Path(path)).value


def resolve(
    model: type[C],
    source: Path | None = None,
    overrides: Sequence[str] | None = (),
    *,
    groups: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Resolved[C]:
    """Lay all sources over the defaults of a model and check the result.

    Args:
        model: The config class.
        source: A YAML file, or a run directory whose `config.yaml` is meant; None for the defaults.
        overrides: `KEY=VALUE` arguments with dotted keys, and `group=name` selections.
        groups: The folder of the groups, by default `groups` beside the file. The group's content
            fills the field of the same name if there is one, else it is laid over the whole config.
        flags: Dotted path -> value of first-class command-line options; None means not given.

    Raises:
        UserError: Something is unknown, removed, missing, of a wrong type or out of range.
    """
    layers = Layers(model)
    remarks: list[str] = []
    if source is not None:
        source = _config_file(Path(source))
        for path, document in _chain(source, ()):
            _lay_file(layers, document, str(path), ())
            remarks += document.notices
        groups = groups or source.parent / "groups"
    assignments: list[tuple[str, Any, str]] = []
    for argument in overrides or ():
        key, value = _split(argument)
        if groups is not None and "." not in key and (groups / key).is_dir():
            _lay_group(layers, groups, key, value)
        else:
            assignments.append((key, _override_value(key, value), f"override {argument}"))
    for key, value in (flags or {}).items():
        if value is not None:
            option = key.split(".")[-1].replace("_", "-")
            plain_value = str(value) if isinstance(value, Path) else value
            assignments.append((key, plain_value, f"flag --{option}"))
    overridden = [note for each in assignments if (note := _assign(layers, *each))]
    label = str(source) if source is not None else "defaults"
    config = _validated(model, layers, label)
    origins = {
        path: layers.origins.get(_as_keys(path), DEFAULT) for path, _ in flatten(plain(config))
    }
    notices = (*remarks, *overridden, *_advice(config))
    return Resolved(config, origins, label, notices, tuple(overridden))


def completed(model: type[Config], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings with the keys that the model has gained since, at their defaults.

    Args:
        model: The config class as it is now.
        recorded: A config of it, as `plain` gave it then; keys that the model has lost are kept.
    """
    layers = Layers(model)
    layers.lay(dict(recorded), lambda _: "recorded")
    try:
        return plain(model.model_validate_json(json.dumps(layers.values)))
    except pydantic.ValidationError:  # a key is gone, or its type is another
        return layers.values


def show(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Write every value with its origin, one `KEY=VALUE  # origin` per line.

    Args:
        values: The config as plain values.
        origins: Dotted path -> origin, as in `Resolved.origins`.
    """
    leaves = dict(flatten(values))
    lines = [f"{path}={short(value, limit=10_000)}" for path, value in leaves.items()]
    width = min(max(map(len, lines), default=0), 60)
    return "\n".join(
        f"{line:<{width}}  # {origins.get(path, 'unknown')}"
        for line, path in zip(lines, leaves, strict=True)
    )


def _config_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path}: a folder without a config.yaml",
            hint="give a YAML file, or the directory of a run",
        )
    return path / "config.yaml"


def _read(path: Path) -> text.Text:
    document = text.parse(files.read_text(path), str(path))
    if document.value is None:
        return text.Text({}, {})
    if not isinstance(document.value, dict):
        raise UserError(
            f"{path}: a config is a mapping of keys, not {short(document.value)}",
            hint="write `key: value` lines",
        )
    return document


def _chain(path: Path, seen: tuple[Path, ...]) -> Iterator[tuple[Path, text.Text]]:
    """Yield the files that `path` extends, bases first, then the file itself."""
    real = path.resolve()
    if real in seen:
        circle = " -> ".join(each.name for each in (*seen[seen.index(real) :], real))
        raise UserError(f"{path}: `extends` runs in a circle: {circle}", hint="break the circle")
    if len(seen) >= _MAX_FILES:
        raise UserError(f"{path}: `extends` is deeper than {_MAX_FILES} files", hint="flatten it")
    document = _read(path)
    bases = document.value.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    line = document.lines.get(("extends",), 1)
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(
            f"{path}:{line}: `extends` is {short(bases)}, but should be a path or a list of paths",
            hint="write `extends: base.yaml`, relative to this file",
        )
    for base in bases:
        if not (path.parent / base).is_file():
            raise UserError(
                f"{path}:{line}: `extends` names {base}, but {path.parent / base} is not a file",
                hint="the path is relative to the file that extends",
            )
        yield from _chain(path.parent / base, (*seen, real))
    yield path, document


def _lay_file(layers: Layers, document: text.Text, label: str, at: text.Path) -> None:
    """Lay a document over the settings, below the key path `at`."""
    overlay: Any = document.value
    for key in reversed(at):
        overlay = {key: overlay}

    def origin(path: text.Path) -> str:
        line = document.lines.get(path[len(at) :])
        return label if line is None else f"{label}:{line}"

    layers.lay(overlay, origin)


def _lay_group(layers: Layers, groups: Path, group: str, name: str) -> None:
    path = groups / group / f"{name}.yaml"
    if not _GROUP_NAME.fullmatch(name) or not path.is_file():
        names = sorted(each.stem for each in (groups / group).glob("*.yaml"))
        close = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            f"the group `{group}` has no `{name}` (looked in {groups / group})",
            hint=f"did you mean `{group}={close[0]}`?" if close else f"it has: {', '.join(names)}",
        )
    at = (group,) if group in layers.model.model_fields else ()
    for base, document in _chain(path, ()):
        _lay_file(layers, document, f"{group}={name} ({base})", at)


def _split(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise UserError(
            f"{argument!r} is not an override", hint="write KEY=VALUE, such as train.lr=5e-4"
        )
    return key, value


def _override_value(key: str, value: str) -> Any:
    source = f"override {key}"
    try:
        return parse_yaml(value, source)
    except UserError as error:
        raise UserError(
            error.message.replace(f"{source}:1: ", f"{source}: ", 1),
            hint=f"to give this as text, put it in quotes: '{key}=\"...\"'",
        ) from error


def _assign(layers: Layers, key: str, value: Any, how: str) -> str | None:
    """Set one value; return a notice if it replaces another one that a file had given."""
    before = layers.origins.get(_as_keys(key), DEFAULT)
    was = layers.lay_at(key, value, how)
    if before == DEFAULT or isinstance(was, dict) or short(was) == short(value):
        return None
    return f"{key}: {short(was)} ({before}) -> {short(value)} ({how.split()[0]})"


def _as_keys(dotted: str) -> text.Path:
    return tuple(int(key) if key.isdecimal() else key for key in dotted.split("."))


def _validated(model: type[C], layers: Layers, source: str) -> C:
    """Validate through JSON, where a list may stand for a tuple and text for a path or an enum."""
    try:
        return model.model_validate_json(json.dumps(layers.values))
    except pydantic.ValidationError as error:
        raise explain(error, layers, source) from None


def _advice(config: Config) -> Iterator[str]:
    for place, section in sections(config):
        yield from (f"{place}: {note}" if place else note for note in section.notices())
