"""What the conditions of a sweep are: names, and the settings in which they differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loom.config import read_yaml
from loom.errors import UserError
from loom.jobs import NAME

Settings = Mapping[str, str | int | float | bool]
Conditions = Mapping[str, Settings]

_EARLIER: Settings = {
    "dynamics_type": "vta",
    "vta_at_read": "begin",
    "vta_abs_scale": 1.0,
    "vta_abs_input": "abstract",
    "vta_abs_stoch": 32,
    "vta_obs_stoch": 32,
    "vta_discrete": 0,
}
"""What the VTA of the first experiments had in common, where the defaults differ by now."""

BOUNDARY4: Conditions = {
    "pinpad_rssm": {"dynamics_type": "rssm"},
    "pinpad_vta_force0_t1": {
        **_EARLIER,
        "vta_max_seg_len": 30,
        "vta_boundary_force_scale": 0.0,
        "vta_boundary_temp": 1.0,
        "vta_boundary_rate": 0.0,
        "vta_boundary_scale": 0.0,
    },
    "pinpad_vta_force10_t1": {
        **_EARLIER,
        "vta_max_seg_len": 30,
        "vta_boundary_force_scale": 10.0,
        "vta_boundary_temp": 1.0,
        "vta_boundary_rate": 0.0,
        "vta_boundary_scale": 0.0,
    },
    "pinpad_vta_force0_t2_rate": {
        **_EARLIER,
        "vta_max_seg_len": 50,
        "vta_boundary_force_scale": 0.0,
        "vta_boundary_temp": 2.0,
        "vta_boundary_rate": 0.1,
        "vta_boundary_scale": 0.5,
    },
}
"""The four conditions of the first experiments."""

OWN_OPTIONS = {
    "name": "the conditions are the names",
    "seed": "give --seeds",
    "task": "give --task",
    "data": "give --data",
    "heldout": "the sweep records one set for all",
}
"""Settings that a sweep makes itself -> what to write instead."""


def read_conditions(path: Path) -> Conditions:
    """Read conditions from YAML: name -> settings.

    Raises:
        UserError: The file is no such mapping.
    """
    found = read_yaml(path)
    for name, settings in found.items():
        if not NAME.fullmatch(f"{name}_seed0"):
            raise UserError(f"{path}: condition {name!r} cannot be a file name", hint="rename it")
        if not isinstance(settings, dict) or not all(
            isinstance(value, str | int | float | bool) for value in settings.values()
        ):
            raise UserError(
                f"{path}: condition {name} is not a mapping of settings",
                hint="write NAME: {dynamics_type: vta, vta_max_seg_len: 30}",
            )
    if not found:
        raise UserError(f"{path}: no conditions", hint="write NAME: {dynamics_type: rssm}")
    return found


def without_rssm(conditions: Conditions) -> Conditions:
    """Return the conditions with boundaries.

    Raises:
        UserError: None is left.
    """
    left = {name: each for name, each in conditions.items() if each.get("dynamics_type") == "vta"}
    if not left:
        raise UserError("without the RSSM no condition is left", hint="drop --skip-rssm")
    return left


def require_disjoint(conditions: Conditions, overrides: Sequence[str]) -> None:
    """See that what is set for all conditions is set by none of them.

    Raises:
        UserError: A key is set in two places, or is the sweep's own.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+").strip()
        if key in OWN_OPTIONS:
            raise UserError(f"{key} cannot be set for a whole sweep", hint=OWN_OPTIONS[key])
        setters = [name for name, settings in conditions.items() if key in settings]
        if setters:
            raise UserError(
                f"{override}: {key} is what {', '.join(setters)} sets",
                hint="give conditions of your own with --conditions FILE",
            )
    for name, settings in conditions.items():
        for key in settings.keys() & OWN_OPTIONS.keys():
            raise UserError(f"condition {name} sets {key}", hint=OWN_OPTIONS[key])


def override_text(settings: Settings) -> list[str]:
    """Return settings as `KEY=VALUE` words of a command line."""
    return [f"{key}={_word(value)}" for key, value in settings.items()]


def _word(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
