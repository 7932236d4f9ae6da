"""The floor of a training step: the time of its matrix products alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vimpac_ext.evaluation.step_recorder import MatrixCall, StepRecorder


@dataclass(frozen=True)
class TensorLike:
    """What decides how long a product takes with a tensor: its layout, not its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorLike":
        """That of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """Another tensor of this kind."""
        result = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        # Nothing is denormal or overflows; expanded tensors have fewer values than places.
        return result.fill_(0.5) if self.dtype.is_floating_point else result.zero_()


class MatrixProducts:
    """All matrix products, convolutions and attention of a step, to be repeated without the rest.

    Forward and backward; what activation checkpointing computes twice counts once, since no
    training needs it twice. Each product has inputs of its own only where their layout is of its
    own, so that the floor needs little memory.

    Args:
        step: runs a forward and a backward pass.

    Attributes:
        flops: of a step, a multiply-add counted as two.
        num_calls: products in a step.
    """

    def __init__(self, step: Callable[[], object]) -> None:
        calls: list[tuple[Any, Any, Any]] = []

        def note(call: MatrixCall) -> None:
            arguments, keywords = tree_map_only(
                Tensor, TensorLike.of, (call.arguments, dict(call.keywords))
            )
            calls.append((call.operator, arguments, keywords))

        with StepRecorder(on_call=note) as recorder:
            step()
        self.flops = recorder.flops
        self.num_calls = len(calls)
        made: dict[TensorLike, Tensor] = {}
        self._calls = [
            (operator, *tree_map_only(TensorLike, lambda like: _shared(like, made), inputs))
            for operator, *inputs in calls
        ]
        devices = {like.device for like in made}
        self._device = next(iter(devices)) if devices else torch.device("cpu")

    @torch.no_grad()
    def seconds(self) -> float:
        """Wall-clock time of all of them, one after the other."""
        wait_for(self._device)
        started = time.perf_counter()
        for operator, arguments, keywords in self._calls:
            operator(*arguments, **keywords)
        wait_for(self._device)
        return time.perf_counter() - started


def _shared(like: TensorLike, made: dict[TensorLike, Tensor]) -> Tensor:
    if like not in made:
        made[like] = like.make()
    return made[like]


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
