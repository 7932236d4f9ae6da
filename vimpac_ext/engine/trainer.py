"""The training loop: data, step, accumulate, clip, update, log, evaluate, save."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vimpac_ext.data.loaders import UpdateSampler
from vimpac_ext.engine.checkpoint import Checkpointer
from vimpac_ext.engine.events import EventLog


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the update and its videos."""


@dataclass(frozen=True)
class TrainerOptions:
    """Numbers of the loop.

    Attributes:
        clip_grad_norm: upper bound of the gradient's L2 norm; 0 = off.
        precision: "fp32", or "bf16" for autocast.
        log_period: updates between log lines.
        checkpoint_period: epochs between checkpoints.
        eval_period: epochs between evaluations; 0 = never.
        seed: of the masks.
    """

    clip_grad_norm: float
    precision: str
    log_period: int
    checkpoint_period: int
    eval_period: int
    seed: int


class Trainer:
    """Runs the updates of a task from ``first_update`` to the end.

    Args:
        task: gives the losses of a micro-batch.
        sampler: decides what is in each update.
        loader: loads it.
        optimizer: updates the task's parameters.
        schedule: update -> learning rate.
        checkpointer: saves.
        events: logs.
        device: where the step runs.
        options: numbers of the loop.
        evaluate: called with the update after every ``eval_period`` epochs.
    """

    def __init__(
        self,
        task: Any,
        sampler: UpdateSampler,
        loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        checkpointer: Checkpointer,
        events: EventLog,
        device: torch.device,
        options: TrainerOptions,
        evaluate: Callable[[int], None] | None = None,
    ) -> None:
        self.task = task
        self.sampler = sampler
        self.loader = loader
        self.optimizer = optimizer
        self.schedule = schedule
        self.checkpointer = checkpointer
        self.events = events
        self.device = device
        self.options = options
        self.evaluate = evaluate
        self.accumulation = sampler.batch_size // sampler.micro_batch_size
        self.generator = torch.Generator(device)

    def train(self) -> None:
        """Trains to the end; logs, evaluates and saves on the way.

        Raises:
            NonFiniteLossError: if a loss is not finite; nothing is saved after that.
        """
        per_epoch = self.sampler.updates_per_epoch
        num_updates = self.sampler.num_updates
        window = _Window()
        self.task.train()
        batches = iter(self.loader)
        updates = range(self.sampler.first_update, num_updates)
        for update in tqdm(updates, "train", num_updates, initial=updates.start, disable=None):
            lr = self.schedule(update)
            scalars = self._update(update, lr, batches, window)
            done = update + 1
            if done % self.options.log_period == 0 or done % per_epoch == 0:
                window.require_finite(update)
                self._log(done, lr, scalars, window)
            if done % per_epoch == 0:
                self._end_epoch(done // per_epoch, done)

    def _update(
        self, update: int, lr: float, batches: Iterator[Mapping[str, Any]], window: "_Window"
    ) -> dict[str, Tensor]:
        """One parameter update over all its micro-batches; returns the mean of their scalars."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        videos = []
        for micro_step in range(self.accumulation):
            started = time.perf_counter()
            batch = next(batches)
            videos += batch["video_index"].tolist()  # here, where it costs no synchronisation
            batch = _to_device(batch, self.device)
            window.data_seconds += time.perf_counter() - started
            # A seed for each micro-step: masks do not depend on where a run was resumed.
            step = update * self.accumulation + micro_step
            self.generator.manual_seed(self.options.seed * 1_000_003 + step)
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"
            ):
                scalars = self.task.training_step(batch, self.generator)
            (scalars["loss"] / self.accumulation).backward()
            for name, value in scalars.items():
                total[name] = total.get(name, 0.0) + value.detach().float() / self.accumulation
        window.add(total["loss"], videos)
        if self.device.type == "cpu":  # no synchronisation to pay for: stop before the update
            window.require_finite(update)
        max_norm = self.options.clip_grad_norm or math.inf
        total["grad_norm"] = nn.utils.clip_grad_norm_(self.task.parameters(), max_norm)
        self.optimizer.step()
        return total

    def _log(self, done: int, lr: float, scalars: Mapping[str, Tensor], window: "_Window") -> None:
        per_epoch = self.sampler.updates_per_epoch
        epoch = (done - 1) // per_epoch + 1
        self.events.write(
            "train_iter",
            done,
            {
                "epoch": f"{epoch}/{self.sampler.num_epochs}",
                "iter": f"{done - (epoch - 1) * per_epoch}/{per_epoch}",
                "lr": lr,
                **{name: value.item() for name, value in scalars.items()},
                **window.timings(self.sampler.batch_size),
                "gpu_mem": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}G"
                if self.device.type == "cuda"
                else "0.00G",
            },
        )
        window.reset()

    def _end_epoch(self, epoch: int, done: int) -> None:
        last = epoch == self.sampler.num_epochs
        if last or epoch % self.options.checkpoint_period == 0:
            self.checkpointer.save(self.task, self.optimizer, epoch, done)
        period = self.options.eval_period
        if self.evaluate is not None and period and (last or epoch % period == 0):
            self.evaluate(done)
            self.task.train()


class _Window:
    """What happened since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.started = time.perf_counter()
        self.data_seconds = 0.0
        self.losses: list[tuple[Tensor, list[int]]] = []

    def add(self, loss: Tensor, videos: list[int]) -> None:
        self.losses.append((loss, videos))

    def require_finite(self, update: int) -> None:
        for back, (loss, videos) in enumerate(reversed(self.losses)):
            if not torch.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss of update {update - back + 1} is {loss.item()}; its videos are "
                    f"records {videos}. Lower SOLVER.BASE_LR, or TRAIN.PRECISION fp32"
                )

    def timings(self, batch_size: int) -> dict[str, float]:
        num_updates = max(1, len(self.losses))
        seconds = (time.perf_counter() - self.started) / num_updates
        data_seconds = self.data_seconds / num_updates
        return {
            "dt": seconds,
            "dt_data": data_seconds,
            "dt_net": seconds - data_seconds,
            "videos_per_second": batch_size / seconds,
        }


def _to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
