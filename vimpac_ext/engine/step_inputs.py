"""What a micro-step gets: a batch on the device, and random numbers that depend on the step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StepInputs:
    """Brings micro-batches to the device, with what the task draws for them, without waiting.

    What decides the shape of a tensor, such as how many tokens are masked, is drawn on the host
    (the task's method ``prepare``): to learn it from a GPU would stall that in every step. It is
    also why masks are the same on every device.

    Args:
        task: what is trained.
        device: where the steps run.
        seed: of the run.

    Attributes:
        generator: for the training step, on the device.
    """

    def __init__(self, task: Any, device: torch.device, seed: int) -> None:
        self._prepare = getattr(task, "prepare", None)
        self._device = device
        self._seed = seed
        self.generator = torch.Generator(device)
        # On a CPU the step goes on with the numbers of one generator.
        self._on_host = self.generator if device.type == "cpu" else torch.Generator()

    def __call__(self, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The batch of micro-step ``step`` (counted over the run), on the device.

        Args:
            batch: from the loader, in main memory.
            step: decides what is drawn, so that it does not depend on where a run was resumed.
        """
        for generator in {self._on_host, self.generator}:
            generator.manual_seed(self._seed * 1_000_003 + step)
        drawn = self._prepare(batch, self._on_host) if self._prepare else {}
        if self._device.type == "cuda":  # from other memory copies are not asynchronous
            drawn = {name: value.pin_memory() for name, value in drawn.items()}
        return {
            name: value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in {**batch, **drawn}.items()
        }
