"""Rows of all processes, with the exact gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Of the process group; 1 without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def sum_over_processes(values: Tensor) -> None:
    """Replaces a tensor by its sum over all processes; not for gradients."""
    if num_processes() > 1:
        dist.all_reduce(values)


def sizes_of_processes(size: int, device: torch.device) -> list[int]:
    """The ``size`` that each process gives, in rank order; one entry without a process group.

    No GPU is waited for where the processes can talk past theirs, as those of the trainer can.

    Args:
        size: what this process gives.
        device: one that the process group can communicate from.
    """
    if num_processes() == 1:
        return [size]
    own = torch.tensor([size], device="cpu" if _reaches_main_memory() else device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    return torch.cat(sizes).tolist()


def _reaches_main_memory() -> bool:
    return "cpu:" in dist.get_backend_config()


def gather(rows: Tensor) -> Tensor:
    """The tensors of all processes, stacked in rank order.

    Its gradient is that of the sum of all processes' losses, which is what every process needs
    when DistributedDataParallel averages the parameters' gradients afterwards.

    Args:
        rows: any shape, but the same shape and dtype in every process (other shapes would hang or
            give garbage).

    Returns:
        (processes, *shape of rows).
    """
    gathered: Tensor = _AllGather.apply(rows)
    return gathered


class _AllGather(torch.autograd.Function):
    """all_gather whose backward sums the gradients that all processes have for a rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Not reduce_scatter, which not every gloo has; the rows are few.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]
