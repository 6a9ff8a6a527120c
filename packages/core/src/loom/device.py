"""Which device a setting means."""

import torch

from loom.errors import UserError

NAMES = ("auto", "cpu", "cuda")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a setting; `auto` is CUDA where torch finds it, and else the CPU.

    Raises:
        UserError: The name is unknown, or CUDA is asked for and there is none.
    """
    if name not in NAMES:
        raise UserError(f"device {name!r}", hint=f"take one of {', '.join(NAMES)}")
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise UserError("device cuda, but torch finds no CUDA device", hint="take auto or cpu")
    return torch.device("cuda" if found and name != "cpu" else "cpu")
