"""What a training step costs, and how fast the steps are in terms of it."""

import datetime
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.engine.device_peaks import Peak
from vimpac_ext.engine.memory import GIBIBYTE, memory_columns
from vimpac_ext.engine.rng import kept_rng
from vimpac_ext.evaluation.step_recorder import StepRecorder

_logger = logging.getLogger(__name__)


class StepMeter:
    """Watches the first micro-step of a run; then turns seconds into rates.

    The first micro-step is the run's own, so that watching costs next to no time and changes
    nothing. It is not seen where the backbone is compiled: there the forward pass is tried once
    without compiling and without gradients, the backward pass is taken to cost twice as much, and
    the activations are not known.

    Args:
        task: what is trained.
        peak: of the device; None = no utilisation is logged.
        watching: whether to look at the cost of the first micro-step at all.
        tell: log the cost of a micro-step when it is known.
        compiled: whether a part of the task is compiled.
    """

    def __init__(
        self,
        task: Any,
        peak: Peak | None = None,
        watching: bool = False,
        tell: bool = False,
        compiled: bool = False,
    ) -> None:
        self._task = task
        self._peak = peak
        self._watching = watching
        self._tell = tell
        self._compiled = compiled
        self._seen = False
        self._recorder: StepRecorder | None = None
        self._clips_per_video = 0
        self._tokens_per_clip = 0
        self._activation_bytes: int | None = None
        self.flops: int | None = None  # of a micro-step of this process

    def watch(self, batch: Mapping[str, Any]) -> AbstractContextManager:
        """Around forward and backward pass of each micro-step.

        Args:
            batch: "clips" (B, clips of a video, ...) on the device; without, there are no rates.
        """
        if self._seen:
            return nullcontext()
        self._seen = True
        clips = batch.get("clips")
        if isinstance(clips, Tensor):
            self._clips_per_video = clips.shape[1]
            if not clips.is_floating_point():
                self._tokens_per_clip = clips.shape[2:].numel()
        if not self._watching:
            return nullcontext()
        if self._compiled:
            self.flops = _estimated_flops(self._task, batch)
            self._report(clips)
            return nullcontext()
        return self._recording(clips)

    def end_forward(self) -> None:
        """Between the forward and the backward pass."""
        if self._recorder is not None:
            # Sharded weights have been gathered meanwhile; some are until the end of the step.
            self._activation_bytes = self._recorder.live_bytes(self._task.parameters())

    def columns(
        self, timings: Mapping[str, float], micro_steps: int, updates_left: int
    ) -> dict[str, Any]:
        """What a log line says of time and memory.

        Args:
            timings: "dt", seconds of an update, "videos_per_second" of all processes, and more.
            micro_steps: of an update.
            updates_left: until the end.

        Returns:
            The timings; "clips_per_second" and "tokens_per_second" of all processes and "mfu", the
            share of the device's peak that the matrix products of this process use, each where it
            is known; "eta" (h:mm:ss); and the peak memory of this process, "gpu_mem" and "cpu_mem".
        """
        columns: dict[str, Any] = dict(timings)
        if self._clips_per_video:
            columns["clips_per_second"] = timings["videos_per_second"] * self._clips_per_video
        if self._tokens_per_clip:
            columns["tokens_per_second"] = columns["clips_per_second"] * self._tokens_per_clip
        if self._peak is not None and self.flops:
            peak_flops = self._peak.flops_per_second * timings["dt"]
            columns["mfu"] = self.flops * micro_steps / peak_flops
        columns["eta"] = str(datetime.timedelta(seconds=int(timings["dt"] * updates_left)))
        return columns | memory_columns()

    @contextmanager
    def _recording(self, clips: Any) -> Iterator[None]:
        own = chain(self._task.parameters(), self._task.buffers())
        with StepRecorder(own=own) as self._recorder:
            yield
        self.flops = self._recorder.flops
        repeated = self._recorder.repeated_flops
        self._recorder = None
        self._report(clips, repeated)

    def _report(self, clips: Any, repeated: int = 0) -> None:
        if not self._tell or self.flops is None:
            return
        number = clips.shape[:2].numel() if isinstance(clips, Tensor) else "?"
        again = f" (and repeats {repeated / 1e9:,.4g} for checkpointing)" if repeated else ""
        kept = "unknown, since it is compiled"
        if self._activation_bytes is not None:
            kept = f"{self._activation_bytes / GIBIBYTE:.3g} GiB"
        _logger.info(
            "a step on %s clips computes %s GFLOPs in matrix products%s; activations kept for the "
            "backward pass: %s",
            number,
            f"{self.flops / 1e9:,.4g}",
            again,
            kept,
        )
        if self._peak is not None:
            _logger.info(
                "mfu is the share of %s TFLOPs a second (%s)",
                f"{self._peak.flops_per_second / 1e12:,.4g}",
                self._peak.source,
            )


def _estimated_flops(task: nn.Module, batch: Mapping[str, Any]) -> int | None:
    """Three times the forward pass; None if a part is frozen, whose share is not known."""
    if not all(parameter.requires_grad for parameter in task.parameters()):
        return None
    training = task.training
    some = next(value for value in batch.values() if isinstance(value, Tensor))
    generator = torch.Generator(some.device).manual_seed(0)
    # In eval mode running means stay as they are.
    task.eval()
    with (
        kept_rng(),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        StepRecorder() as recorder,
    ):
        task.training_step(batch, generator)  # type: ignore[operator]
    task.train(training)
    return 3 * recorder.flops
