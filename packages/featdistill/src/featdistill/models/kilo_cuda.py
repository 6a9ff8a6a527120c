"""A student's picture on a CUDA device: one launch of `kilo_ray.cu`, and whether it may be trusted.

The function of one ray (`kilo_ray.h`) is also compiled for the CPU, and tests hold that form to the
float64 twin. What a device makes of it is not known before it has run there, so the first picture
of a process is preceded by a small one of a random student, drawn by the kernel and by the twin.
Where they differ, the twin draws the pictures and a notice says by how much they differed.
"""

from __future__ import annotations

import ctypes
import logging
import math
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from loom import native
from loom.errors import UserError
from torch import Tensor

from featdistill.cameras import Cameras, orbit_poses
from featdistill.models import kilo_torch, occupancy
from featdistill.models.kilo_layout import NetworkShape, Volume

CSRC = Path(__file__).parent.parent / "csrc"
BOUND = 2 / 255
"""How far a colour of the kernel may be from the twin's."""

_FIELDS = (
    ("box", ctypes.c_float * 6),
    ("voxels", ctypes.c_int32 * 3),
    ("cells", ctypes.c_int32 * 3),
    ("step", ctypes.c_float),
    ("hidden", ctypes.c_int32),
    ("position_frequencies", ctypes.c_int32),
    ("direction_frequencies", ctypes.c_int32),
    ("width", ctypes.c_int32),
    ("height", ctypes.c_int32),
    ("stop_transmittance", ctypes.c_float),
    ("rotation", ctypes.c_double * 9),
    ("centre", ctypes.c_double * 3),
    ("focal_px", ctypes.c_double),
    ("distance", ctypes.c_void_p),
    ("cell_index", ctypes.c_void_p),
    ("weights", ctypes.c_void_p),
    ("merged", ctypes.c_void_p),
    ("rgba", ctypes.c_void_p),
    ("depth", ctypes.c_void_p),
)


class PictureRequest(ctypes.Structure):
    """The struct of that name in `kilo_ray.h`."""

    _fields_ = _FIELDS


def library() -> native.Library | native.Unavailable:
    """Return the function of one ray for the CPU; its `cuda` is the kernel.

    Neither compiler may contract a product and a sum, so that both place the samples of the twin.
    """
    return native.library(
        "featdistill_kilo_ray",
        sources=[CSRC / "kilo_ray.cpp"],
        cuda=[CSRC / "kilo_ray.cu"],
        flags=["-ffp-contract=off"],
        cuda_flags=["-fmad=false"],
    )


def merge_layers(weights: Tensor, shape: NetworkShape) -> Tensor:
    """Return [cells, hidden + 1, hidden], the two linear layers from z to the colour branch as one.

    The last row is its bias.
    """
    net = shape.blocks(weights.detach())
    layers = torch.cat([net.feature, net.feature_bias[:, None]], dim=1).double()
    merged = layers @ net.colour_hidden[:, : shape.hidden].double()
    merged[:, -1] += net.colour_hidden_bias
    return merged.to(weights.dtype).contiguous()


class PictureKernel:
    """A student where a kernel can read it, ready for pictures.

    It holds what was there when it was made: after another update of the weights, make a new one.
    """

    def __init__(
        self, found: native.Library, weights: Tensor, shape: NetworkShape, volume: Volume
    ) -> None:
        """Take the weights [cells, P] and all that marching needs, on the device of the library."""
        self.device = weights.device
        self._error = found.function("kilo_ray_error", [ctypes.c_int], ctypes.c_char_p)
        arguments = [ctypes.POINTER(PictureRequest), ctypes.c_void_p]
        self._draw = found.function("kilo_ray_picture", arguments, ctypes.c_int)
        distance, index = volume.distance.contiguous(), volume.cell_index.contiguous()
        weights, merged = weights.detach(), merge_layers(weights, shape)
        self._kept = distance, index, weights, merged  # while the request points to them
        kind = self.device.type
        self.request = PictureRequest(
            box=tuple(volume.box.flatten().tolist()),
            voxels=tuple(volume.distance.shape),
            cells=tuple(index.shape),
            step=volume.step,
            hidden=shape.hidden,
            position_frequencies=shape.position_frequencies,
            direction_frequencies=shape.direction_frequencies,
            distance=native.pointer(distance, torch.uint8, kind),
            cell_index=native.pointer(index, torch.int32, kind),
            weights=native.pointer(weights, torch.float32, kind),
            merged=native.pointer(merged, torch.float32, kind),
        )

    def draw(self, camera: Cameras, stop_transmittance: float) -> tuple[Tensor, Tensor]:
        """Return premultiplied rgba [h, w, 4] and depth [h, w] of one view.

        On a CUDA device this returns when the kernel has been launched, on torch's stream.

        Raises:
            RuntimeError: The device refuses.
        """
        pose = camera.poses_world_from_camera[0].double().cpu()
        rgba = torch.empty(camera.height, camera.width, 4, device=self.device)
        depth = torch.empty(camera.height, camera.width, device=self.device)
        request = self.request
        request.width, request.height = camera.width, camera.height
        request.stop_transmittance = stop_transmittance
        request.rotation = tuple(pose[:3, :3].flatten().tolist())
        request.centre = tuple(pose[:3, 3].tolist())
        request.focal_px = camera.focal_px
        request.rgba = native.pointer(rgba, torch.float32, self.device.type)
        request.depth = native.pointer(depth, torch.float32, self.device.type)
        on_device = self.device.type == "cuda"
        with torch.cuda.device(self.device) if on_device else nullcontext():
            stream = native.stream(self.device) if on_device else None
            error = self._draw(ctypes.byref(request), stream)
        if error:
            raise RuntimeError(f"the CUDA kernel did not run: {self._error(error).decode()}")
        return rgba, depth


def choose(impl: str, shape: NetworkShape, device: torch.device) -> str:
    """Return what draws on a CUDA device: "cuda" if the kernel may be trusted there, else "torch".

    Raises:
        UserError: `impl` is "cuda", and there is no kernel or it draws another picture.
    """
    chosen = native.choose(impl, library(), device)
    if chosen != "cuda":
        return chosen
    found = kernel()
    objection = (
        found.reason if isinstance(found, native.Unavailable) else examine(found, shape, device)
    )
    if not objection:
        return "cuda"
    if impl == "cuda":
        raise UserError(f"impl=cuda: {objection}", hint="use impl=auto, which takes the torch twin")
    native.notice(f"the torch twin draws on {device}: {objection}", logging.WARNING)
    return "torch"


def kernel() -> native.Library | native.Unavailable:
    """Return the compiled kernel."""
    found = library()
    return found if isinstance(found, native.Unavailable) else found.cuda


@lru_cache(maxsize=64)
def examine(found: native.Library, shape: NetworkShape, device: torch.device) -> str:
    """Say why the kernel may not draw students of this shape on a device; "" if it may."""
    try:
        difference = disagreement(found, shape, device)
    except RuntimeError as error:  # of the kernel, or of torch on this device
        return str(error)
    if difference <= BOUND:
        return ""
    return (
        f"a test picture of the kernel {found.path} differs from the twin's "
        f"by {255 * difference:.1f}/255"
    )


def disagreement(found: native.Library, shape: NetworkShape, device: torch.device) -> float:
    """Return the largest colour difference between kernel and float64 twin on a random student.

    Its picture holds rays that miss, cells without a network, empty voxels, and nearly opaque
    places beside transparent ones. A value that is no number counts as infinite.
    """
    weights, volume = _random_student(shape, device)
    generator = torch.Generator().manual_seed(0)
    camera = Cameras(orbit_poses(1, 3.0, generator).double(), 44, 36, 60.0, ("test",))
    origins, directions = (part.float().to(device) for part in camera.image_rays(0))
    rgba, _ = PictureKernel(found, weights, shape, volume).draw(camera, 0.0)
    head = weights.new_zeros(len(weights), shape.head_parameters, dtype=torch.float64)
    middle = torch.full((len(origins),), 0.5, device=device)
    twin = kilo_torch.render(weights.double(), head, shape, volume, origins, directions, middle, 0)
    expected = torch.cat([twin.rgb, 1.0 - twin.transmittance[:, None]], dim=1)
    difference = (rgba.flatten(0, 1) - expected).abs().max().item()
    return math.inf if math.isnan(difference) else difference


def _random_student(shape: NetworkShape, device: torch.device) -> tuple[Tensor, Volume]:
    """Return the weights and the volume of a student of 4 x 3 x 2 cells, some of them empty."""
    generator = torch.Generator().manual_seed(0)
    box = torch.tensor([[-1.0, -0.75, -0.5], [1.0, 0.75, 0.5]])
    filled = (torch.rand(16, 12, 8, generator=generator) < 0.3).to(torch.uint8)
    filled[:5] = 0
    index = occupancy.touched_cells(filled, (4, 3, 2))
    weights = 0.18 * torch.randn(int(index.max()) + 1, shape.parameters, generator=generator)
    shape.blocks(weights).output_bias[:, 3] -= 1.0
    distance = occupancy.chebyshev_distance(filled)
    parts = (tensor.to(device) for tensor in (box, filled, distance, index))
    return weights.to(device), Volume(*parts, step=2.0 / 48)
