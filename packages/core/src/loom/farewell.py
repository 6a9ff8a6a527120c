"""Processes that fail together: nobody leaves before process 0 has.

`torchrun` ends every process as soon as one has failed. A missed gate or a value that is not finite
fails all of them within a millisecond, but process 0 has more to do: the state of the run, pictures
of what was learned, a page. So the others wait at their end until it is at its own. A process that
fails alone, while process 0 works on, hears nothing of it and leaves after `HEARING_S`.

They meet in the key-value store of torchrun's agent, which outlives the process group.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Generator
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore

HEARING_S = 10.0
_PATIENCE_S = 1800.0
_announced = False


@contextlib.contextmanager
def together() -> Generator[None]:
    """Announce an error that leaves the block."""
    try:
        yield
    except BaseException:
        announce()
        raise


def announce() -> None:
    """Say that this process is about to fail; in process 0 for the others, which wait to hear it.

    Does nothing outside of `torchrun`, in a single process, or the second time.
    """
    global _announced
    store = None if _announced else _store()
    _announced = True
    if store is None:
        return
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    leaving, left = f"loom/leaving/{attempt}", f"loom/left/{attempt}"
    if os.environ["RANK"] == "0":
        store.set(leaving, "yes")
        atexit.register(_say_left, store, left)
    elif _heard(store, leaving, HEARING_S):
        atexit.register(_heard, store, left, _PATIENCE_S)


def _store() -> "TCPStore | None":
    """Connect to the agent's store; None where there is none, or nobody else."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or "torch" not in sys.modules or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from torch.distributed import TCPStore

    with contextlib.suppress(RuntimeError, KeyError, ValueError):  # the agent may have gone
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=HEARING_S),
        )
    return None


def _say_left(store: "TCPStore", key: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(RuntimeError):
        store.set(key, "yes")


def _heard(store: "TCPStore", key: str, within_s: float) -> bool:
    with contextlib.suppress(RuntimeError):  # torch's word for a time that is up, too
        store.wait([key], timedelta(seconds=within_s))
        return True
    return False
