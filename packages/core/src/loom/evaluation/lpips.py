"""LPIPS v0.1 (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features", eq. 1).

    d(x, y) = sum_l mean_hw  w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2

with f_l the features of a classification network after five of its layers and w_l >= 0 a linear
head fitted to human judgements. The network is a few lines; the weights are the metric. They are
not ours to ship and not to be fetched in silence, so they come by file and are named by sha256:

    DIR/vgg16-*.pth    trunk, as torchvision stores it (keys "features.N.weight"); alexnet-*.pth
    DIR/vgg.pth        heads, as the `lpips` wheel stores them ("linK.model.1.weight"); alex.pth

`gather_weights` copies both into one folder from an installed `lpips` and torchvision's own cache
(filled by `torchvision.models.vgg16(weights="DEFAULT")` on a machine with a network). A single file
that holds both sets of keys is as good. Without files the metric is None: "not evaluated".
"""

import importlib.util
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from loom.errors import UserError
from loom.evaluation.images import PictureDistance

Net = Literal["vgg", "alex"]


@dataclass(frozen=True)
class _Trunk:
    """Where torchvision keeps a network's convolutions, and after which ReLUs features are read."""

    pattern: str
    heads: str
    convolutions: dict[int, tuple[int, int, int, int]]  # index -> (out, kernel, stride, padding)
    poolings: dict[int, tuple[int, int]]  # index -> (kernel, stride)
    taps: tuple[int, ...]  # indices of the five ReLUs


def _vgg16() -> _Trunk:
    convolutions, poolings, taps, index = {}, {}, [], 0
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for channels in block:
            convolutions[index] = (channels, 3, 1, 1)
            index += 2  # the convolution and its ReLU
        taps.append(index - 1)
        poolings[index] = (2, 2)
        index += 1
    return _Trunk("vgg16-*.pth", "vgg.pth", convolutions, poolings, tuple(taps))


_TRUNKS: dict[Net, _Trunk] = {
    "vgg": _vgg16(),
    "alex": _Trunk(
        pattern="alexnet-*.pth",
        heads="alex.pth",
        convolutions={
            0: (64, 11, 4, 2),
            3: (192, 5, 1, 2),
            6: (384, 3, 1, 1),
            8: (256, 3, 1, 1),
            10: (256, 3, 1, 1),
        },
        poolings={2: (3, 2), 5: (3, 2)},
        taps=(1, 4, 7, 9, 11),
    ),
}


class Lpips(nn.Module):
    """The distance; build it with `Lpips.from_files`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, weights: dict[str, Tensor], files: dict[str, str]) -> None:
        super().__init__()
        trunk = _TRUNKS[net]
        self.net: Net = net
        self.files = files  # file name -> sha256
        self.taps = trunk.taps
        self.layers = nn.ModuleList(
            _layer(trunk, weights, index) for index in range(trunk.taps[-1] + 1)
        )
        channels = [trunk.convolutions[tap - 1][0] for tap in trunk.taps]
        self.heads = nn.ParameterList(
            _taken(weights, f"lin{number}.model.1.weight", (1, count, 1, 1))
            for number, count in enumerate(channels)
        )
        # The authors' normalisation of pictures in [-1, 1] to the statistics of ImageNet.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def from_files(cls, path: Path, net: Net = "vgg") -> "Lpips":
        """Load the metric from a folder or from one file (layout: see the module).

        Raises:
            UserError: If a file is missing, damaged, or of another network.
        """
        weights: dict[str, Tensor] = {}
        files: dict[str, str] = {}
        for file in _weight_files(Path(path), net):
            weights |= _load(file)
            files[file.name] = sha256(file.read_bytes()).hexdigest()
        try:
            return cls(net, weights, files)
        except KeyError as error:
            raise UserError(
                f"{path}: LPIPS weights for {net}: {error.args[0]}",
                hint="the trunk is torchvision's state_dict, the heads are the lpips wheel's v0.1",
            ) from error

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of pictures; differentiable.

        Args:
            image: (batch, 3, height, width) with values in [0, 1].
            reference: Same shape.

        Returns:
            (batch,)
        """
        both = torch.cat([image, reference])
        features = (both * 2 - 1 - self.shift) / self.scale
        distance = torch.zeros(len(image), dtype=both.dtype, device=both.device)
        heads = iter(self.heads)
        for index, layer in enumerate(self.layers):
            features = layer(features)
            if index in self.taps:
                unit = features / (features.norm(dim=1, keepdim=True) + 1e-10)
                x, y = unit.chunk(2)
                distance = distance + conv2d((x - y) ** 2, next(heads)).mean(dim=(1, 2, 3))
        return distance

    @torch.no_grad()
    def distance(self, image: np.ndarray, reference: np.ndarray) -> float:
        """Return the distance of two (height, width, 3) uint8 pictures."""
        device = self.shift.device
        x, y = (
            torch.from_numpy(np.ascontiguousarray(picture)).to(device).permute(2, 0, 1)[None] / 255
            for picture in (image, reference)
        )
        return float(self(x, y))

    def as_metric(self) -> PictureDistance:
        """Return what `evaluate_pairs` takes."""
        return PictureDistance(self.distance, self.files)


def gather_weights(directory: Path, net: Net = "vgg") -> list[Path]:
    """Copy the weights found on this machine into one folder; nothing is downloaded.

    Raises:
        UserError: If the `lpips` wheel or torchvision's cached trunk is not there.
    """
    trunk = _TRUNKS[net]
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise UserError("the lpips package is not installed", hint="uv pip install lpips")
    heads = Path(package.origin).parent / "weights" / "v0.1" / trunk.heads
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    trunks = sorted(cache.glob(trunk.pattern))
    if not trunks:
        raise UserError(
            f"{cache}: no {trunk.pattern}",
            hint=f"fetch torchvision's {trunk.pattern.split('-')[0]} weights on a machine with a "
            "network and copy the file there",
        )
    directory.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(file, directory)) for file in (trunks[-1], heads)]


def _weight_files(path: Path, net: Net) -> list[Path]:
    """Return the files to read: the one given, or the trunk and the heads of a folder."""
    if path.is_file():
        return [path]
    trunk = _TRUNKS[net]
    trunks = sorted(path.glob(trunk.pattern))
    heads = path / trunk.heads
    if len(trunks) != 1 or not heads.is_file():
        raise UserError(
            f"{path}: LPIPS ({net}) needs one {trunk.pattern} and {trunk.heads}, found "
            f"{len(trunks)} and {int(heads.is_file())}",
            hint="loom.evaluation.lpips.gather_weights makes such a folder",
        )
    return [trunks[0], heads]


def _load(file: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read as weights ({type(error).__name__})",
            hint="copy the file again; only plain state_dicts are loaded",
        ) from error
    if not isinstance(weights, dict):
        raise UserError(f"{file}: holds no state_dict", hint="see loom.evaluation.lpips")
    return {str(key): value for key, value in weights.items() if isinstance(value, Tensor)}


def _layer(trunk: _Trunk, weights: dict[str, Tensor], index: int) -> nn.Module:
    """Return layer `index` of torchvision's `features`."""
    if index in trunk.poolings:
        kernel, stride = trunk.poolings[index]
        return nn.MaxPool2d(kernel, stride)
    if index not in trunk.convolutions:
        return nn.ReLU()
    channels, kernel, stride, padding = trunk.convolutions[index]
    before = [i for i in trunk.convolutions if i < index]
    incoming = trunk.convolutions[max(before)][0] if before else 3
    layer = nn.Conv2d(incoming, channels, kernel, stride, padding)
    shape = (channels, incoming, kernel, kernel)
    layer.weight = nn.Parameter(_taken(weights, f"features.{index}.weight", shape))
    layer.bias = nn.Parameter(_taken(weights, f"features.{index}.bias", (channels,)))
    return layer


def _taken(weights: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in weights:
        raise KeyError(f"no {key}")
    if tuple(weights[key].shape) != shape:
        raise KeyError(f"{key} is {tuple(weights[key].shape)}, expected {shape}")
    return weights[key].float()
