"""Random numbers that follow a generator on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_draws(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draws from [0, 1): even in float32, floor(draw * n) is at most n-1 for n below 2^24.

    Args:
        shape: of the result.
        device: of the result.
        generator: source of randomness, on any device; None = torch's.

    Returns:
        float32 of that shape.
    """
    draws = torch.rand(tuple(shape), generator=generator, device=_source(device, generator))
    return draws.to(device)


def integer_draws(
    high: int, shape: Sequence[int], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draws from 0 to ``high`` - 1, int64; the other arguments as in `uniform_draws`."""
    source = _source(device, generator)
    return torch.randint(high, tuple(shape), generator=generator, device=source).to(device)


def _source(device: torch.device, generator: torch.Generator | None) -> torch.device:
    return device if generator is None else generator.device
