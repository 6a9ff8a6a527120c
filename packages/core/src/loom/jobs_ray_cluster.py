"""A Ray cluster as far as sweeps need it: to join it, and to know which of its machines live."""

from __future__ import annotations

import os
import time
from types import ModuleType
from typing import Any, NamedTuple

from loom.errors import UserError
from loom.processors import usable_processors

OBJECT_STORE_BYTES = 80 << 20  # nothing travels through it; Ray asks for 75 MB at least
AGE_S = 1.0


class Machine(NamedTuple):
    """A live machine of the cluster."""

    address: str
    slots: int


class Machines:
    """The live machines by their id in Ray, asked for once a second."""

    def __init__(self, gpus: bool) -> None:
        """Say whether a slot is a processor, or a processor and a GPU."""
        self._kinds = ("CPU", "GPU") if gpus else ("CPU",)
        self._known: dict[str, Machine] = {}
        self._asked_at = -AGE_S

    def alive(self) -> dict[str, Machine]:
        """Return those that live, as far as the cluster's head knows."""
        if time.monotonic() - self._asked_at >= AGE_S:
            self._known = {
                node["NodeID"]: Machine(
                    node["NodeManagerAddress"],
                    min(int(node["Resources"].get(kind, 0)) for kind in self._kinds),
                )
                for node in import_ray().nodes()
                if node["Alive"]
            }
            self._asked_at = time.monotonic()
        return self._known

    def room(self, machine: str, slots: int) -> str:
        """Say what a job asks for on a machine, and what the cluster has."""
        ray, here = import_ray(), self.alive().get(machine)
        if here is None:
            return "its machine went away"
        total, free = ray.cluster_resources(), ray.available_resources()
        asked = " and ".join(f"{slots} {kind}" for kind in self._kinds)
        left = " and ".join(
            f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}" for kind in self._kinds
        )
        return (
            f"it has not begun; it asks for {asked} of {here.address}, which holds {here.slots} "
            f"slots; free in the whole cluster: {left}"
        )


def connect(address: str | None, slots: int | None) -> None:
    """Join a cluster, or start one on this machine.

    Args:
        address: `HOST:PORT` of the head, or `local`. If None: that of `RAY_ADDRESS`, or the cluster
            that this machine belongs to, or else `local`.
        slots: Processors of a cluster that is started here; those of this machine, if None.

    Raises:
        UserError: There is no cluster, or none can be started.
    """
    ray = import_ray()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address != "local":
        try:
            ray.init(address or os.environ.get("RAY_ADDRESS", "auto"), **options)
            return
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address is not None or "RAY_ADDRESS" in os.environ:
                raise UserError(
                    f"no Ray cluster could be joined: {first_line(error)}",
                    hint="start one with `ray start --head`, with one RAY_AUTH_TOKEN for all",
                ) from error
    try:
        ray.init(
            "local",
            num_cpus=slots or usable_processors(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **options,
        )
    except Exception as error:  # Ray raises it as such
        raise UserError(
            f"Ray could not be started here: {first_line(error)}",
            hint="it gives itself 30 s, which a busy machine may not have; use --executor local",
        ) from error


def import_ray() -> ModuleType:
    """Import Ray with the settings that sweeps want.

    Raises:
        UserError: It is not installed.
    """
    # Nothing is reported to anybody, and workers are not started through `uv run`, which would
    # pack this folder and send it to them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise UserError(
            "the executor `ray` needs the library Ray, which is not installed",
            hint="uv pip install 'loom-core[ray]' on every machine, or use `sbatch` or `local`",
        ) from error
    return ray


def first_line(error: Exception) -> str:
    """Return the first line of an error, whose others are Ray's traces."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
