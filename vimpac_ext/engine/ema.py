"""Averaged weights: an exponential moving average over the updates."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vimpac_ext.engine.sharding import copy_into, local


class Ema:
    """average <- decay * average + (1 - decay) * weights after every update; buffers are copied.

    Args:
        model: whose weights are averaged.
        decay: of the average, per update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._averaged = [name for name, _ in model.named_parameters() if name in self.state]
        self._copied = [name for name in self.state if name not in set(self._averaged)]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights after an update."""
        current = model.state_dict()
        torch._foreach_lerp_(
            [local(self.state[name]) for name in self._averaged],
            [local(current[name]) for name in self._averaged],
            1 - self.decay,
        )
        for name in self._copied:
            self.state[name].copy_(current[name])

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continues with the average of a checkpoint."""
        for name, value in self.state.items():
            copy_into(value, state[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside, its own again outside."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
