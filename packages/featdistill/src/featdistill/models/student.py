"""The student: a KiloNeRF grid of tiny networks behind differentiable calls.

    outputs = render_rays(student, origins, directions, jitter=jitter, feature_rays=512)
    raw, _ = query(student, points, directions)     # for distillation in space
    rgba, depth = render_image(student, cameras[0]) # a whole picture, without gradients

Training losses live in torch on what a ray sees; everything between a ray and its colour is one
call of a native kernel (`kilo`) or its torch twin (`kilo_torch`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from loom import native
from torch import Tensor, nn

from featdistill.cameras import Cameras, Rays
from featdistill.models import kilo, kilo_cuda, kilo_torch, occupancy
from featdistill.models.kilo_layout import NetworkShape, RayOutputs, Volume
from featdistill.student_config import StudentConfig

INIT_GAIN = 0.7
"""Factor on He's uniform bound: at 1.0 the first pictures are saturated."""


TWIN_CHUNK = 8192


class Student(nn.Module):
    """Networks for the grid cells that the occupancy touches, and what distils features into them.

    Parameters are `weights` [cells, P] (see `NetworkShape`), the training-only `head`
    [cells, (hidden + 1) * 128] and `projector`, a Linear from 128 to the teacher's features.
    """

    box: Tensor
    occupancy: Tensor
    distance: Tensor
    cell_index: Tensor

    def __init__(
        self, config: StudentConfig, box: Tensor, occupied: Tensor, generator: torch.Generator
    ) -> None:
        """Allocate one network per touched cell; all start from the same random values.

        Args:
            config: Sizes.
            box: Corners (minimum, maximum) in world coordinates, [2, 3].
            occupied: 1 where a voxel may be filled, uint8 of `occupancy.voxel_shape`.
            generator: Where the random initial values come from.
        """
        super().__init__()
        expected = occupancy.voxel_shape(box, config.occupancy_resolution)
        if tuple(occupied.shape) != expected:
            raise ValueError(f"the occupancy is {list(occupied.shape)}, not {list(expected)}")
        self.config = config
        self.shape = NetworkShape(
            config.hidden_dim,
            config.position_frequencies,
            config.direction_frequencies,
            config.feature_dim,
        )
        extent = (box[1] - box[0]).max().item()
        self.step = extent / config.steps_per_axis
        self.register_buffer("box", box.float().clone())
        self.register_buffer("occupancy", occupied.to(torch.uint8).clone())
        self.register_buffer("distance", occupancy.chebyshev_distance(occupied), persistent=False)
        cell_index = occupancy.touched_cells(occupied, config.grid_shape)
        self.register_buffer("cell_index", cell_index)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh_distance())

        cells = int(cell_index.max()) + 1
        first, head = _initial_rows(self.shape, config.density_bias, generator)
        self.weights = nn.Parameter(first.repeat(cells, 1))
        self.head = nn.Parameter(head.repeat(cells, 1))
        self.projector = nn.Linear(config.feature_dim, config.teacher_feature_dim)
        bound = 1.0 / math.sqrt(config.feature_dim)
        with torch.no_grad():
            self.projector.weight.uniform_(-bound, bound, generator=generator)
            self.projector.bias.zero_()

    @classmethod
    def from_state(cls, config: StudentConfig, state: Mapping[str, Tensor]) -> Student:
        """Rebuild a student from its state dict: the cells that exist are part of it."""
        student = cls(config, state["box"], state["occupancy"], torch.Generator())
        cells = len(state["weights"])
        student.weights = nn.Parameter(state["weights"].new_empty(cells, student.shape.parameters))
        student.head = nn.Parameter(state["head"].new_empty(cells, student.shape.head_parameters))
        student.load_state_dict(dict(state))
        return student

    @property
    def volume(self) -> Volume:
        """What marching needs to know."""
        return Volume(self.box, self.occupancy, self.distance, self.cell_index, self.step)

    def refresh_distance(self) -> None:
        """Recompute what is derived from the occupancy."""
        self.distance.copy_(occupancy.chebyshev_distance(self.occupancy))

    def new_max_weight(self) -> Tensor:
        """Return zeros, one per voxel, for `render_rays` to collect rendered weights in."""
        return torch.zeros_like(self.occupancy, dtype=torch.float32)

    def prune(self, max_weight: Tensor, threshold: float) -> float:
        """Drop voxels whose rendered weight stayed below `threshold`; return the filled share.

        Networks stay allocated, so parameters and optimiser state keep their shapes.
        """
        self.occupancy.copy_(occupancy.prune(self.occupancy, max_weight, threshold))
        self.refresh_distance()
        return (self.occupancy > 0).float().mean().item()


def _initial_rows(
    shape: NetworkShape, density_bias: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one row of weights [1, P] and one of the head, He-uniform matrices and zero biases."""
    row = torch.zeros(1, shape.parameters)
    head = torch.zeros(1, shape.hidden + 1, shape.features)
    net = shape.blocks(row)
    fan_ins = (
        (net.position, shape.position_inputs),
        (net.trunk, shape.hidden),
        (net.density, shape.hidden),
        (net.feature, shape.hidden),
        (net.colour_hidden, shape.hidden + shape.direction_inputs),
        (net.colour, shape.hidden),
        (head[:, :-1], shape.hidden),
    )
    for block, fan_in in fan_ins:
        bound = INIT_GAIN * math.sqrt(6.0 / fan_in)
        block.uniform_(-bound, bound, generator=generator)
    net.output_bias[:, 3] = density_bias
    return row, head.flatten(1)


def render_rays(
    student: Student,
    origins: Tensor,
    directions: Tensor,
    *,
    jitter: Tensor | None = None,
    feature_rays: int = 0,
    max_weight: Tensor | None = None,
    impl: str = "auto",
) -> RayOutputs:
    """Render rays, differentiably in `weights` and `head`.

    Samples behind a transmittance of 1e-3 take part in the result but receive no gradient.

    Args:
        student: What is rendered.
        origins: [r, 3] in the world; inside the box is allowed.
        directions: Unit vectors, [r, 3]; a zero vector sees nothing.
        jitter: Offset of the samples of each ray in [0, 1) steps, [r]; None is 0.5.
        feature_rays: The first so many rays also return the composited 128-D vector.
        max_weight: From `Student.new_max_weight`: raised in place to the largest w = T alpha that
            a voxel's samples had.
        impl: "auto", "cpu" or "torch".
    """
    if not 0 <= feature_rays <= len(origins):
        raise ValueError(f"feature_rays={feature_rays} of {len(origins)} rays")
    if jitter is None:
        jitter = origins.new_full((len(origins),), 0.5)
    flat = None if max_weight is None else max_weight.view(-1)
    render = kilo.render if kilo.available(impl, student.weights.device) else kilo_torch.render
    return render(
        student.weights,
        student.head,
        student.shape,
        student.volume,
        origins,
        directions,
        jitter,
        feature_rays,
        flat,
    )


def query(
    student: Student, points: Tensor, directions: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Evaluate scattered points, differentiably in `weights`.

    Args:
        student: What is evaluated.
        points: World coordinates, [n, 3].
        directions: Unit view directions, [n, 3].
        impl: "auto", "cpu" or "torch".

    Returns:
        raw [n, 4] (red, green, blue, density before their activations; zeros in cells without a
        network) and a mask [n] of the points that have one. Colour is sigmoid(raw[:, :3]) and the
        opacity of one step is 1 - exp(-softplus(raw[:, 3])) = sigmoid(raw[:, 3]).
    """
    cell, _, local = kilo_torch.locate(student.volume, points)
    inside = ((points >= student.box[0]) & (points <= student.box[1])).all(dim=1) & (cell >= 0)
    if kilo.available(impl, student.weights.device):
        raw = kilo.network(student.weights, student.shape, cell[inside], local[inside],
                           directions[inside])  # fmt: skip
    else:
        raw, _ = kilo_torch.network(student.weights, student.shape, cell[inside], local[inside],
                                    directions[inside])  # fmt: skip
    if inside.all():
        return raw, inside
    whole = raw.new_zeros(len(points), 4)
    return whole.index_put((inside.nonzero()[:, 0],), raw), inside


def query_features(
    student: Student, points: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Evaluate the training head at scattered points, differentiably in `weights` and `head`.

    Args:
        student: What is evaluated.
        points: World coordinates, [n, 3].
        impl: "auto", "cpu" or "torch".

    Returns:
        Features [n, 128], zero where no network is, and a mask [n] of the points that have one.
    """
    cell, _, local = kilo_torch.locate(student.volume, points)
    inside = ((points >= student.box[0]) & (points <= student.box[1])).all(dim=1) & (cell >= 0)
    cell, local = cell[inside], local[inside]
    unseen = torch.zeros_like(local)  # the trunk does not know where it is seen from
    if kilo.available(impl, student.weights.device):
        z = kilo.trunk(student.weights, student.shape, cell, local, unseen)
    else:
        _, z = kilo_torch.network(student.weights, student.shape, cell, local, unseen)
    matrices = student.head[cell.long()].unflatten(1, (-1, student.shape.features))
    ones = torch.ones_like(z[:, :1])
    found = torch.bmm(torch.cat([z, ones], dim=1)[:, None], matrices)[:, 0]
    whole = found.new_zeros(len(points), found.shape[1])
    return whole.index_put((inside.nonzero()[:, 0],), found), inside


def render_image(
    student: Student,
    camera: Cameras,
    *,
    stop_transmittance: float = 0.01,
    chunk: int | None = None,
    impl: str = "auto",
    precision: Literal["auto", "float32"] = "auto",
) -> tuple[Tensor, Tensor]:
    """Render the picture of a single view without gradients.

    Args:
        student: What is rendered.
        camera: One view.
        stop_transmittance: A ray ends where less light than this passes; the rest of it counts as
            transmitted.
        chunk: Rays at a time, which bounds the memory; None is the whole view for the kernel and
            8,192 for its twin. A CUDA kernel has no use for it.
        impl: "auto", "cpu", "cuda" or "torch".
        precision: "auto" lets the kernel multiply in bfloat16 where the processor can, with sums in
            float32: twice the products per instruction, and colours that move by up to 2/255.

    Returns:
        Premultiplied RGBA [h, w, 4] and depth [h, w], the sum of w_k t_k along a ray, on the
        student's device.
    """
    if len(camera) != 1:
        raise ValueError(f"render_image takes one view, not {len(camera)}")
    device = student.weights.device
    if device.type == "cuda":
        impl = kilo_cuda.choose(impl, student.shape, device)
        if impl == "cuda":
            return picture_kernel(student).draw(camera, stop_transmittance)
    rays = Rays(*(part.to(device) for part in camera.image_rays(0)))
    size = (camera.height, camera.width)
    fast = kilo.available(impl, device)
    with torch.no_grad():
        parts = []
        for o, d in _blocks(rays, chunk or (len(rays.origins) if fast else TWIN_CHUNK)):
            if fast:
                part = kilo.render_image(
                    student.weights,
                    student.shape,
                    student.volume,
                    o,
                    d,
                    stop_transmittance,
                    width=camera.width if chunk is None else 0,
                    bfloat16=precision == "auto" and kilo.has_bfloat16(student.shape),
                )
            else:
                part = _render_by_twin(student, o, d)
            parts.append(part)
    rgba, depth = (torch.cat(column) for column in zip(*parts, strict=True))
    return rgba.reshape(*size, 4), depth.reshape(size)


def prepare_pictures(student: Student) -> None:
    """Compile what draws pictures of a student, and examine it, so that no picture waits for it."""
    device = student.weights.device
    if device.type != "cuda" or kilo_cuda.choose("auto", student.shape, device) != "cuda":
        kilo.available("auto", device)


def picture_kernel(student: Student) -> kilo_cuda.PictureKernel:
    """Return what draws many pictures of a student on a CUDA device, as its weights are now."""
    found = kilo_cuda.kernel()
    if isinstance(found, native.Unavailable):
        raise RuntimeError(found.reason)
    return kilo_cuda.PictureKernel(found, student.weights, student.shape, student.volume)


def _blocks(rays: Rays, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    pairs = zip(rays.origins.split(chunk), rays.directions.split(chunk), strict=True)
    return ((o.contiguous(), d.contiguous()) for o, d in pairs)


def _render_by_twin(student: Student, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Render all samples of some rays; no ray ends early."""
    out = render_rays(student, origins, directions, impl="torch")
    return torch.cat([out.rgb, 1.0 - out.transmittance[:, None]], dim=1), out.depth
