"""One model in several processes, each with its part of every micro-batch."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vimpac_ext.engine.distributed import rank, world_size
from vimpac_ext.engine.sharding import exchange_gradients, is_sharded
from vimpac_ext.maskers import Noise, has_all, ignores_tokens
from vimpac_ext.structures import SpecialTokens

Corruption = Callable[..., tuple[Tensor, Tensor]]
Masker = Callable[[Tensor, torch.Generator | None], Tensor]


class Replica:
    """The training step of a task; with several processes, backward averages the gradients.

    Args:
        task: its parameters are on their device, and no longer change their number or shape. One
            that is sharded stays so; of others every process has all weights.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self._is_sharded = is_sharded(task)
        self._step: nn.Module = _Step(task)
        self._parallel: DistributedDataParallel | None = None
        if world_size() > 1 and not self._is_sharded:
            # Parameters that a step does not use (such as the last layer's CLS path without a
            # loss on it) are common here. Searching for them also keeps the buckets in one order,
            # which a resumed run needs in order to add up gradients in the order of an unbroken
            # one.
            self._parallel = DistributedDataParallel(
                self._step, find_unused_parameters=True, gradient_as_bucket_view=True
            )
            self._step = self._parallel

    def __call__(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Losses of this process's part of a micro-batch."""
        if self._is_sharded:
            share_buffers(self._task)  # as DistributedDataParallel does
        return self._step(batch, generator)

    def exchange(self, wanted: bool) -> AbstractContextManager:
        """Around forward and backward: whether this backward averages gradients.

        Those of steps inside ``exchange(False)`` are averaged by the next one that does.
        """
        if self._is_sharded:
            exchange_gradients(self._task, wanted)
        if wanted or self._parallel is None:
            return nullcontext()
        return self._parallel.no_sync()


class _Step(nn.Module):
    """`DistributedDataParallel` wants a module whose forward does the step."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        return self.task.training_step(batch, generator)


class GlobalMasker:
    """Draws the masks of all processes' clips and keeps those of this one.

    So a clip's mask does not depend on the number of processes.

    Args:
        masker: draws.
        clips_per_video: the clips come as [clip 1 of all videos; clip 2 of all videos; ...].
    """

    def __init__(self, masker: Masker, clips_per_video: int) -> None:
        self.masker = masker
        self.clips_per_video = clips_per_video
        self.ignores_tokens = ignores_tokens(masker)
        if hasattr(masker, "blocks"):
            self.blocks = partial(self._make, "blocks", "blocks_of")

    def __call__(self, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        """Masks of these clips, bool (B, T, H, W), from all processes' (B * processes)."""
        return self._make("__call__", "mask_of", tokens, generator)

    def _make(
        self, whole: str, second: str, tokens: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draws for all clips; what can follow in a second step is made of this process's alone."""
        if has_all(self.masker, "draw", second):
            masker: Any = self.masker
            everywhere = tokens[:1].expand(len(tokens) * world_size(), *tokens.shape[1:])
            drawn = masker.draw(everywhere, generator)
            made: Tensor = getattr(masker, second)(self._own(drawn), tokens)
            return made
        everywhere = _for_all_processes(tokens, self.clips_per_video)
        return self._own(getattr(self.masker, whole)(everywhere, generator))

    def _own(self, of_all: Tensor) -> Tensor:
        return _of_this_process(of_all, self.clips_per_video)


class GlobalNoise:
    """As `GlobalMasker`, for the corruption of masked clips.

    Args:
        corrupt: draws, see `vimpac_ext.maskers.corrupt`.
        clips_per_video: as for `GlobalMasker`.
    """

    def __init__(self, corrupt: Corruption, clips_per_video: int) -> None:
        self.corrupt = corrupt
        self.clips_per_video = clips_per_video

    def __call__(
        self,
        tokens: Tensor,
        mask: Tensor,
        special: SpecialTokens,
        noise: Noise = "none",
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The corrupted clips and their masks, as of all processes' clips together."""
        if noise == "none":  # nothing is drawn
            return self.corrupt(tokens, mask, special, noise, generator)
        clips = self.clips_per_video
        everywhere = (_for_all_processes(value, clips) for value in (tokens, mask))
        hidden, masks = self.corrupt(*everywhere, special, noise, generator)
        return _of_this_process(hidden, clips), _of_this_process(masks, clips)


def _for_all_processes(own: Tensor, clips_per_video: int) -> Tensor:
    """This process's clips, and copies of them in the places of the others', not known here."""
    grouped = own.unflatten(0, (clips_per_video, 1, -1))  # (clips, 1, videos, ...)
    return grouped.expand(-1, world_size(), *grouped.shape[2:]).flatten(0, 2)


def _of_this_process(everywhere: Tensor, clips_per_video: int) -> Tensor:
    grouped = everywhere.unflatten(0, (clips_per_video, world_size(), -1))
    return grouped[:, rank()].flatten(0, 1)


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the main one's buffers, such as running means.

    Between training steps they may differ; the next step would share them anyway.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
