"""The training loop: data, step, accumulate, clip, update, log, save, evaluate."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from vimpac_ext.data.loaders import UpdateSampler
from vimpac_ext.engine.checkpoint import Checkpointer
from vimpac_ext.engine.distributed import from_main, gather, is_main, mean_
from vimpac_ext.engine.ema import Ema
from vimpac_ext.engine.events import EventLog
from vimpac_ext.engine.parallel import Replica, share_buffers
from vimpac_ext.engine.rng import kept_rng, rng_state, set_rng_state
from vimpac_ext.engine.sharding import clip_gradients, whole_state
from vimpac_ext.engine.step_inputs import StepInputs
from vimpac_ext.engine.step_meter import StepMeter
from vimpac_ext.engine.stopping import StopRequest, TrainingStopped
from vimpac_ext.engine.window import NonFiniteLossError, Window

# A loss scale below this has been halved 30 times in a row: no scale is small enough.
_SMALLEST_LOSS_SCALE = 2.0**-14


@dataclass(frozen=True)
class TrainerOptions:
    """Numbers of the loop.

    Attributes:
        clip_grad_norm: upper bound of the gradient's L2 norm; 0 = off.
        precision: "fp32", or "bf16" or "fp16" for autocast; fp16 also scales the loss.
        log_period: updates between log lines.
        checkpoint_period: epochs between checkpoints.
        eval_period: epochs between evaluations; 0 = never.
        seed: of the masks.
        checkpoint_period_steps: updates between further checkpoints; 0 = none.
        ema_decay: of averaged weights; 0 = none.
        picture_period: epochs between pictures; 0 = never.
        explosion_factor: stop when the loss is so many times the one logged before; 0 = never.
    """

    clip_grad_norm: float
    precision: str
    log_period: int
    checkpoint_period: int
    eval_period: int
    seed: int
    checkpoint_period_steps: int = 0
    ema_decay: float = 0.0
    explosion_factor: float = 0.0
    picture_period: int = 0


class Trainer:
    """Runs the updates of a task from ``first_update`` to the end.

    With a process group, every process has a trainer; each takes its part of every micro-batch,
    and only the main one writes.

    Args:
        task: gives the losses of a micro-batch.
        sampler: decides what is in each update.
        loader: loads it.
        optimizer: updates the task's parameters. A group's "lr_scale" multiplies its rate.
        schedule: update -> learning rate.
        checkpointer: saves.
        events: logs.
        device: where the step runs.
        options: numbers of the loop.
        evaluate: called with the update after every ``eval_period`` epochs, in every process.
        name_video: "video_index" of a batch -> name, for errors.
        meter: watches the steps; None = one that knows no peak.
        draw: called with the update after every ``picture_period`` epochs, in every process.
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
        name_video: Callable[[int], str] = str,
        meter: StepMeter | None = None,
        draw: Callable[[int], None] | None = None,
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
        self.inputs = StepInputs(task, device, options.seed)
        self.replica = Replica(task)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
        self.ema = Ema(task, options.ema_decay) if options.ema_decay else None
        self.window = Window(name_video)
        self.meter = meter or StepMeter(task)
        self.draw = draw
        self._rng: dict[str, Any] | None = None
        self._last_loss: float | None = None

    def restore(self, checkpoint: Mapping[str, Any]) -> bool:
        """Takes from a checkpoint what is neither the model's nor the optimizer's.

        Returns:
            Whether it has this process's random state; else there is none.
        """
        if checkpoint["scaler_state"]:  # else the run had another precision so far
            self.scaler.load_state_dict(checkpoint["scaler_state"])
        if self.ema is not None:
            self.ema.load(checkpoint["ema_state"] or checkpoint["model_state"])
        self._rng = self.checkpointer.rng_state_of_process(checkpoint)
        self._last_loss = checkpoint.get("last_loss")  # an explosion is told from it
        return self._rng is not None

    def train(self) -> None:
        """Trains to the end; logs, saves and evaluates on the way.

        Raises:
            NonFiniteLossError: if a loss is not finite; nothing is saved after that.
            TrainingStopped: after a signal, when a checkpoint is saved.
        """
        self.task.train()
        with StopRequest() as stop:
            self._evaluate_what_was_missed()
            batches = iter(self.loader)
            updates = range(self.sampler.first_update, self.sampler.num_updates)
            bar = {"initial": updates.start, "disable": None if is_main() else True}
            if self._rng is not None:  # as late as possible: nothing before may draw from it
                set_rng_state(self._rng)
            self.window.reset()
            for update in tqdm(updates, "train", updates.stop, **bar):
                lr = self.schedule(update)
                scalars = self._update(update, lr, batches)
                done = update + 1
                if done % self.options.log_period == 0 or self._is_epoch_end(done):
                    self._log(done, lr, scalars)
                stop_signal = stop.agreed()
                if stop_signal or self._checkpoint_is_due(done):
                    path = self._save(done)
                if stop_signal:
                    raise TrainingStopped(stop_signal, done, path)
                if self._evaluation_is_due(done):
                    self._evaluate(done)
                if self._is_due(done, self.options.picture_period):
                    self._look(self.draw, done)

    def _update(self, update: int, lr: float, batches: Iterator[Mapping]) -> dict[str, Tensor]:
        """One parameter update over all its micro-batches; returns the mean of their scalars."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        videos = []
        for micro_step in range(self.accumulation):
            batch = self._next(batches, update * self.accumulation + micro_step)
            videos += batch.pop("videos")
            # Gradients of several micro-batches are averaged over the processes once.
            is_last = micro_step == self.accumulation - 1
            with self.replica.exchange(is_last), self.meter.watch(batch):
                with self._autocast():
                    scalars = self.replica(batch, self.inputs.generator)
                self.meter.end_forward()
                self.scaler.scale(scalars["loss"] / self.accumulation).backward()
            for name, value in scalars.items():
                total[name] = total.get(name, 0.0) + value.detach().float() / self.accumulation
        self.window.add_loss(total["loss"], videos)
        self.scaler.unscale_(self.optimizer)
        max_norm = self.options.clip_grad_norm or math.inf
        total["grad_norm"] = clip_gradients(self.task.parameters(), max_norm)
        if not self.scaler.is_enabled():  # the scaler skips updates with infinite gradients
            self.window.add_norm(total["grad_norm"])
        if self.device.type == "cpu":  # no synchronisation to pay for: stop before the update
            self.window.require_finite(update)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.task)
        return total

    def _next(self, batches: Iterator[Mapping[str, Any]], step: int) -> dict[str, Any]:
        started = time.perf_counter()
        batch = next(batches)
        videos = batch["video_index"].tolist()  # here, where it costs no synchronisation
        on_device = self.inputs(batch, step)
        self.window.data_seconds += time.perf_counter() - started
        return {**on_device, "videos": videos}

    def _autocast(self) -> torch.autocast:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.options.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _log(self, done: int, lr: float, scalars: Mapping[str, Tensor]) -> None:
        self.window.require_finite(done - 1)
        means = mean_(torch.stack([scalars[name] for name in sorted(scalars)])).tolist()
        values = dict(zip(sorted(scalars), means, strict=True))
        self.window.require_calm(
            done - 1, values["loss"], self._last_loss, self.options.explosion_factor
        )
        self._last_loss = values["loss"]
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
            if values["loss_scale"] < _SMALLEST_LOSS_SCALE:
                raise NonFiniteLossError(
                    f"float16 gradients overflow at every loss scale (now {values['loss_scale']}, "
                    f"update {done}). Use TRAIN.PRECISION bf16 or fp32"
                )
        per_epoch = self.sampler.updates_per_epoch
        epoch = (done - 1) // per_epoch + 1
        timings = self.window.timings(self.sampler.batch_size)
        left = self.sampler.num_updates - done
        self.events.write(
            "train_iter",
            done,
            {
                "epoch": f"{epoch}/{self.sampler.num_epochs}",
                "iter": f"{done - (epoch - 1) * per_epoch}/{per_epoch}",
                "lr": lr,
                **values,
                **self.meter.columns(timings, self.accumulation, left),
            },
        )
        self.window.reset()

    def _save(self, done: int) -> str:
        """Every process is here; none leaves before the file is on disk."""
        self.window.require_finite(done - 1)
        states = gather(rng_state())
        more = {
            "scaler_state": self.scaler.state_dict(),
            "ema_state": whole_state(self.ema.state) if self.ema else None,
            "rng_states": states,
            "last_loss": self._last_loss,
        }
        epoch, inside = divmod(done, self.sampler.updates_per_epoch)
        path = self.checkpointer.save(
            self.task, self.optimizer, epoch, done, inside_epoch=inside > 0, more=more
        )
        return from_main(str(path))

    def _evaluate(self, done: int) -> None:
        self._look(self.evaluate, done)

    def _look(self, function: Callable[[int], None] | None, done: int) -> None:
        """Calls what looks at the weights, and may do so in eval mode."""
        assert function is not None
        averaged = self.ema.applied_to(self.task) if self.ema else nullcontext()
        with self.window.not_counted():
            with kept_rng(), averaged:
                share_buffers(self.task)  # inside: each process's average has its own, too
                function(done)
            self.task.train()

    def _evaluate_what_was_missed(self) -> None:
        """The run that saved the checkpoint may have been killed before it evaluated."""
        done = self.sampler.first_update
        if done and self._evaluation_is_due(done) and not from_main(self.events.evaluated(done)):
            self._evaluate(done)

    def _is_epoch_end(self, done: int) -> bool:
        return done % self.sampler.updates_per_epoch == 0

    def _checkpoint_is_due(self, done: int) -> bool:
        steps = self.options.checkpoint_period_steps
        if steps and done % steps == 0:
            return True
        epoch = done // self.sampler.updates_per_epoch
        last = done == self.sampler.num_updates
        return self._is_epoch_end(done) and (last or epoch % self.options.checkpoint_period == 0)

    def _evaluation_is_due(self, done: int) -> bool:
        return self.evaluate is not None and self._is_due(done, self.options.eval_period)

    def _is_due(self, done: int, period: int) -> bool:
        """Whether ``done`` ends an epoch that counts: every ``period``-th, and the last."""
        if not period or not self._is_epoch_end(done):
            return False
        epoch = done // self.sampler.updates_per_epoch
        return done == self.sampler.num_updates or epoch % period == 0
