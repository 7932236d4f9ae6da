"""Channels-last convolutions: the same numbers, in another order in memory."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

_WEIGHTS = ("weight", "w")  # of PyTorch's convolutions, and of DALL-E's
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by axes of a weight


def channels_last(module: Module, wanted: bool = True) -> Module:
    """Puts the channels of all convolutions' weights last in memory.

    Their outputs follow where PyTorch can do so. Shapes, names and values stay. Which format is
    faster depends on the device and the sizes.

    Args:
        module: changed in place.
        wanted: else nothing is done.

    Returns:
        The module.
    """
    if wanted:
        for name, parameter in module.named_parameters():
            # By name: position tables, say, may have as many axes.
            is_weight = name.rsplit(".", 1)[-1] in _WEIGHTS
            if is_weight and parameter.ndim in _FORMATS:
                memory_format = _FORMATS[parameter.ndim]
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return module


def match_memory_formats(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments the memory format of their parameters, which fused optimizers rely on.

    Those of a checkpoint have the format of the run that wrote it.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if same_shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
