"""Several processes as one: gradients averaged, decisions agreed, evaluation exact.

`torchrun` sets the environment and `init` joins the group. Without it there is one process and
every function here is the identity, so a training file reads the same in both cases. The loop
averages gradients itself instead of wrapping the model, so a model may be called in any way.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import distributed as dist

from loom.errors import UserError
from loom.sampling import Shard
from loom.sharded import is_sharded

_BUCKET_BYTES = 25 << 20


def init(backend: str | None = None) -> Shard:
    """Join the group that `torchrun` describes in the environment, once.

    Args:
        backend: `gloo` or `nccl`; by default nccl where there is a CUDA device for each process.

    Returns:
        This process's rank and the number of processes; `Shard(0, 1)` outside of `torchrun`.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return shard()
    if not dist.is_initialized():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        use_cuda = torch.cuda.device_count() >= local_world
        if use_cuda:
            torch.cuda.set_device(local_rank)
        try:
            dist.init_process_group(backend or ("nccl" if use_cuda else "gloo"))
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"the process group could not be joined: {error}",
                hint="start with torchrun, or unset RANK and WORLD_SIZE for a single process",
            ) from error
    return shard()


@contextmanager
def group(backend: str | None = None) -> Generator[Shard]:
    """Join the group for the duration of a block and leave it afterwards."""
    joined_before = dist.is_initialized()
    try:
        yield init(backend)
    finally:
        if dist.is_initialized() and not joined_before:
            dist.destroy_process_group()


def shard() -> Shard:
    """Return this process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return Shard(dist.get_rank(), dist.get_world_size())
    return Shard()


def is_main() -> bool:
    """Tell whether this process writes to the run directory."""
    return shard().rank == 0


def broadcast_(tensors: Iterable[torch.Tensor]) -> None:
    """Give every process the values of rank 0, in place; sharded tensors stay as they are."""
    if shard().world > 1:
        for tensor in tensors:
            if not is_sharded(tensor):
                dist.broadcast(tensor.detach(), src=0)


def average_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Replace each gradient by its mean over the processes.

    Gradients travel in buckets of 25 MiB in the order given. A parameter without a gradient counts
    as zero where another process has one, and stays without where none has. Gradients of sharded
    parameters are averaged already.
    """
    world = shard().world
    if world == 1:
        return
    learning = [p for p in parameters if p.requires_grad and not is_sharded(p)]
    if not learning:
        return
    present = torch.tensor([p.grad is not None for p in learning], dtype=torch.uint8)
    present = present.to(learning[0].device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, used in zip(learning, present.tolist(), strict=True):
        if used and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def agree(flag: int | bool) -> int:
    """Return the largest flag of all processes, on every one of them."""
    if shard().world == 1:
        return int(flag)
    shared = torch.tensor([int(flag)], device=_device())
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over the processes of a tensor that each one has."""
    world = shard().world
    if world == 1:
        return values
    shared = values.detach().clone().to(_device())
    dist.all_reduce(shared)
    return (shared / world).to(values.device)


def sharded_indices(count: int, part: Shard | None = None) -> range:
    """Return this process's part of an evaluation over `count` items: no padding, none twice."""
    return range(*(part or shard()).bounds(count))


def gather(values: torch.Tensor) -> torch.Tensor:
    """Join the processes' rows in rank order, so that `sharded_indices` are whole again.

    Args:
        values: `(rows, ...)`; rows may differ between processes, the rest may not.

    Returns:
        `(all rows, ...)` on every process.
    """
    world = shard().world
    if world == 1:
        return values
    device = _device()
    rows = torch.zeros(world, dtype=torch.int64, device=device)
    rows[shard().rank] = values.shape[0]
    dist.all_reduce(rows)
    counts = rows.tolist()
    padded = torch.zeros((max(counts), *values.shape[1:]), dtype=values.dtype, device=device)
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return joined.to(values.device)


def _device() -> torch.device:
    """Return where the backend wants its tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        same_kind = not bucket or (bucket[0].dtype, bucket[0].device) == (
            gradient.dtype,
            gradient.device,
        )
        if bucket and (not same_kind or size >= _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket
