"""What the training loop remembers between two log lines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vimpac_ext.engine.distributed import rank, world_size


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite, or exploded; names the update and its videos."""


class Window:
    """Losses, videos and times since the last log line.

    Args:
        name_video: index of a record -> its name.
    """

    def __init__(self, name_video: Callable[[int], str] = str) -> None:
        self._name_video = name_video
        self.reset()

    def reset(self) -> None:
        """Begins anew, after a log line."""
        self.started = time.perf_counter()
        self.data_seconds = 0.0
        self._losses: list[tuple[Tensor, list[int]]] = []
        self._norms: list[Tensor] = []

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """The time inside is not that of the updates."""
        started = time.perf_counter()
        yield
        self.started += time.perf_counter() - started

    def add_loss(self, loss: Tensor, videos: list[int]) -> None:
        """Remembers an update's loss and the indices of its videos."""
        self._losses.append((loss, videos))

    def add_norm(self, norm: Tensor) -> None:
        """Remembers an update's gradient norm, where one that is not finite is an error."""
        self._norms.append(norm)

    def require_finite(self, update: int) -> None:
        """Raises NonFiniteLossError unless all numbers up to ``update`` (0-based) are finite."""
        first = update + 2 - len(self._losses)  # 1-based
        for number, (loss, _) in enumerate(self._losses):
            if not torch.isfinite(loss):
                self._fail(f"loss of update {first + number} is {loss.item()}", number)
        for number, norm in enumerate(self._norms):
            if not torch.isfinite(norm):
                if world_size() > 1:
                    time.sleep(1.0)  # the process whose loss it was shall speak first
                self._fail(f"gradient norm of update {first + number} is {norm.item()}", number)

    def require_calm(self, update: int, loss: float, before: float | None, factor: float) -> None:
        """Raises NonFiniteLossError if the loss is ``factor`` times the one logged before."""
        if factor and before is not None and loss > factor * before > 0:
            what = f"loss of update {update + 1} is {loss:.4g}, before it was {before:.4g}"
            self._fail(f"{what} (TRAIN.KILL_LOSS_EXPLOSION_FACTOR {factor:g})", -1)

    def _fail(self, what: str, number: int) -> None:
        videos = ", ".join(self._name_video(index) for index in self._losses[number][1])
        where = f" in process {rank()}" if world_size() > 1 else ""
        raise NonFiniteLossError(
            f"the {what}{where}; its videos are {videos}. Lower SOLVER.BASE_LR, or TRAIN.PRECISION "
            "fp32"
        )

    def timings(self, batch_size: int) -> dict[str, float]:
        """Seconds per update: whole, waiting for data, the rest; and videos per second."""
        num_updates = max(1, len(self._losses))
        seconds = (time.perf_counter() - self.started) / num_updates
        data_seconds = self.data_seconds / num_updates
        return {
            "dt": seconds,
            "dt_data": data_seconds,
            "dt_net": seconds - data_seconds,
            "videos_per_second": batch_size / seconds,
        }
