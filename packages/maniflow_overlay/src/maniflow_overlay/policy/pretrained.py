"""R3M's weights for the ResNet-18, from a local file; nothing is ever downloaded.

R3M (Nair et al. 2022) publishes `model.pt`, by default below `~/.r3m/r3m_18/`: a dictionary with
the key `r3m`, whose names are those of torchvision's ResNet-18 after `module.convnet.`, beside a
language encoder and reward heads that a policy does not need. All 120 tensors of the trunk must be
there in their shapes, and nothing else may claim to belong to it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from loom.errors import UserError
from loom.files import explained
from torch import Tensor

from maniflow_overlay.policy.resnet import ResNet18, widen_stem

_OTHER_PARTS = ("lang_enc.", "lang_rew.")
_HINT = "expected R3M's ResNet-18: {'r3m': {'module.convnet.conv1.weight': ..., ...}}"


def read_r3m(path: Path) -> dict[str, Tensor]:
    """Read the trunk of an R3M file, under torchvision's names.

    Returns:
        The tensors; not yet compared with a model.

    Raises:
        UserError: There is no such file, it holds something other than tensors and plain values, or
            no trunk is in it.
    """
    path = Path(path).expanduser()
    with explained(path):
        if not path.is_file():
            raise UserError(
                f"{path}: no such file of encoder weights",
                hint="copy R3M's r3m_18/model.pt there (~/.r3m by default), or leave out "
                "encoder_weights to begin at random",
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = (str(error) or "it ends early").splitlines()[0]
            raise UserError(
                f"{path} is refused by the safe loader: {reason}", hint=_HINT
            ) from error
    if isinstance(content, Mapping):
        content = content.get("r3m", content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, no weights", hint=_HINT)
    trunk: dict[str, Tensor] = {}
    for key, value in content.items():
        name = str(key).removeprefix("module.")
        if name.startswith(_OTHER_PARTS):
            continue
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {key} is a {type(value).__name__}, no tensor", hint=_HINT)
        trunk[name.removeprefix("convnet.")] = value
    if not trunk:
        raise UserError(f"{path} holds no tensors", hint=_HINT)
    return trunk


def load_r3m(model: ResNet18, path: Path) -> None:
    """Put R3M's weights into a trunk with batch normalisation.

    A stem of six channels takes them for its first three; the others begin at zero.

    Raises:
        UserError: A tensor is missing, has another shape, is not finite or does not belong there.
    """
    trunk = read_r3m(path)
    own = model.state_dict()
    stem = trunk.get("conv1.weight")
    channels = own["conv1.weight"].shape[1]
    if stem is not None and stem.ndim == 4 and stem.shape[1] == 3 and channels > 3:
        trunk["conv1.weight"] = widen_stem(stem, channels)
    require_fit(path, own, trunk, "a ResNet-18", hint=_HINT)
    model.load_state_dict(trunk)


def require_fit(
    path: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str, *, hint: str
) -> None:
    """Hold the tensors of a file against those of a network.

    Args:
        path: Named in the complaint.
        own: The network's; only names and shapes are looked at.
        found: The file's.
        what: The network, in words.
        hint: The remedy.

    Raises:
        UserError: A tensor is missing, has another shape, is not finite or does not belong there.
    """
    complaints = []
    for key in sorted(own.keys() | found.keys()):
        if key not in found:
            complaints.append(f"{key} is missing")
        elif key not in own:
            complaints.append(f"{key} does not belong there")
        elif own[key].shape != found[key].shape:
            complaints.append(
                f"{key} is {tuple(found[key].shape)}, expected {tuple(own[key].shape)}"
            )
        elif found[key].is_floating_point() and not bool(found[key].isfinite().all()):
            complaints.append(f"{key} is not finite")
    if complaints:
        shown = "; ".join(complaints[:3])
        more = f" and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise UserError(f"{path} does not fit {what}: {shown}{more}", hint=hint)
