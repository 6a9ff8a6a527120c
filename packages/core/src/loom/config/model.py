"""The base class of every configuration, and what can be said of a finished one."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import pydantic

from loom.config import text


class Schedule(Protocol):
    """Anything with a value at each step; those of `loom.schedule` fit."""

    def at(self, step: int) -> float:
        """Return the value at a step."""
        ...


class Config(pydantic.BaseModel):
    """A frozen section of settings that knows exactly its own keys and takes no wrong type.

    Types are strict: text is never read as a number or a truth value, a float is never cut to an
    integer, true is not 1. An integer may stand for a float.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
    )

    removed_keys: ClassVar[Mapping[str, str]] = {}
    """Keys of this section that earlier versions had -> what to do instead, in one sentence."""

    free_on_resume: ClassVar[frozenset[str]] = frozenset()
    """Dotted keys, or sections, of the whole config that a resumed run may change."""

    def notices(self) -> Iterable[str]:
        """Return sentences for the user about settings that are legal but probably unwanted."""
        return ()

    def schedules(self) -> Mapping[str, Schedule]:
        """Return the values of this section that change over training, by name."""
        return {}


def sections(config: pydantic.BaseModel, place: str = "") -> Iterator[tuple[str, Config]]:
    """Yield (dotted path, section) for a config and every section inside it."""
    if isinstance(config, Config):
        yield place, config
    for name, value in config:
        path = f"{place}.{name}" if place else name
        if isinstance(value, pydantic.BaseModel):
            yield from sections(value, path)
        elif isinstance(value, tuple | list):
            for index, item in enumerate(value):
                if isinstance(item, pydantic.BaseModel):
                    yield from sections(item, f"{path}.{index}")


def plain(config: pydantic.BaseModel) -> dict[str, Any]:
    """Return a config as mappings, lists, text, numbers, booleans and None."""
    return config.model_dump(mode="json")


def to_yaml(config: pydantic.BaseModel) -> str:
    """Write every setting as YAML; reading it back gives an equal config."""
    return text.dump(plain(config))


def config_hash(config: pydantic.BaseModel) -> str:
    """Return the SHA-256 of a config's canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `("train.phases.0.lr", 0.1)` for every leaf; an empty list or mapping is a leaf."""
    if isinstance(value, Mapping) and value:
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and value:
        pairs = enumerate(value)
    else:
        yield prefix, value
        return
    for key, child in pairs:
        yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name every setting that differs, as `train.lr: 0.0005 -> 0.001`.

    Args:
        was: One config as plain values (`plain(config)` or a parsed config.yaml).
        now: The other one.
    """
    before, after = dict(flatten(was)), dict(flatten(now))
    paths = [*after, *(path for path in before if path not in after)]
    return [
        f"{path}: {_shown(before, path)} -> {_shown(after, path)}"
        for path in paths
        if path and not _same(before.get(path, _ABSENT), after.get(path, _ABSENT))
    ]


_ABSENT = object()


def _same(was: Any, now: Any) -> bool:
    """Compare two leaves: 1 is 1.0 and NaN is NaN, but 1 is not true."""
    if isinstance(was, bool) != isinstance(now, bool):
        return False
    return was == now or (was != was and now != now)


def _shown(leaves: Mapping[str, Any], path: str) -> str:
    return short(leaves[path]) if path in leaves else "absent"


def short(value: Any, limit: int = 60) -> str:
    """Write a value as it would stand in a config, cut to `limit` characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    line = json.dumps(value, ensure_ascii=False, default=str)
    return line if len(line) <= limit else line[: limit - 3] + "..."
