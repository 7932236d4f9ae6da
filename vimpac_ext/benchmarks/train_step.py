"""Speed and memory of whole training steps, against the floor of their matrix products."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.benchmarks.floor import MatrixProducts, wait_for
from vimpac_ext.benchmarks.result import Result
from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_task, token_grid
from vimpac_ext.engine.device_peaks import peak_of
from vimpac_ext.engine.memory import GIBIBYTE, peak_resident_bytes
from vimpac_ext.engine.optim import build_optimizer
from vimpac_ext.engine.step_inputs import StepInputs

_WARM_UP_STEPS = 2
_MEMORY_STEPS = 3


@dataclass(frozen=True)
class StepOptions:
    """What is measured; may be sent to another process.

    Attributes:
        path: configuration file. No data is needed: the clips are random.
        overrides: alternating keys and values.
        precision: "fp32", "bf16"; "" = TRAIN.PRECISION.
        compile: compile the backbone.
        videos: in a step; a pre-training takes two clips of each.
        device: "cpu" or "cuda".
        threads: of the CPU; 0 = as many as PyTorch takes.
    """

    path: str
    overrides: tuple[str, ...] = ()
    precision: str = ""
    compile: bool = False
    videos: int = 4
    device: str = "cpu"
    threads: int = 0

    def load(self) -> LoadedConfig:
        """Reads the configuration.

        Raises:
            ConfigError: for a wrong key or value in it.
        """
        precision = ["TRAIN.PRECISION", self.precision] if self.precision else []
        loaded = prepare(self.path, [*self.overrides, *precision])
        if loaded.cfg.TRAIN.PRECISION == "fp16":
            raise ConfigError(f"{self.path}: fp16 is not measured; take --precision fp32 or bf16")
        return loaded


class TrainStep:
    """A configured training step: masking, forward, losses, backward, clipping and update.

    Args:
        options: what it is.

    Attributes:
        loaded: the configuration.
        clip_shape: of a clip.
        num_clips: in a step.
    """

    def __init__(self, options: StepOptions) -> None:
        self.loaded = options.load()
        cfg = self.loaded.cfg
        self.device = torch.device(options.device)
        torch.set_float32_matmul_precision("high" if cfg.TRAIN.TF32 else "highest")
        torch.manual_seed(cfg.RNG_SEED)
        self.task: Any = build_task(cfg).to(self.device).train()
        if options.compile:
            self.task.backbone.compile()
        self.batch = random_batch(self.loaded, self.task, options.videos)
        if self.device.type == "cuda":  # as the loader's
            self.batch = {name: value.pin_memory() for name, value in self.batch.items()}
        self.num_clips = self.batch["clips"].shape[:2].numel()
        self.clip_shape = tuple(self.batch["clips"].shape[2:])
        self.optimizer = build_optimizer(self.task, cfg.SOLVER)
        self.max_norm = cfg.SOLVER.CLIP_GRAD_L2NORM
        self.inputs = StepInputs(self.task, self.device, seed=0)

    def seconds(self) -> float:
        """Wall-clock time of one step."""
        wait_for(self.device)
        started = time.perf_counter()
        self.gradients()
        if self.max_norm:
            nn.utils.clip_grad_norm_(self.task.parameters(), self.max_norm)
        self.optimizer.step()
        wait_for(self.device)
        return time.perf_counter() - started

    def gradients(self) -> None:
        """Forward and backward pass; the masks are the same every time."""
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.inputs(self.batch, step=0)
        enabled = self.loaded.cfg.TRAIN.PRECISION == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            loss = self.task.training_step(batch, self.inputs.generator)["loss"]
        loss.backward()


def random_batch(loaded: LoadedConfig, task: Any, videos: int) -> dict[str, Tensor]:
    """A batch as the configured training has it, of random tokens or pixels and random labels.

    Args:
        loaded: configuration.
        task: built from it.
        videos: number of items.
    """
    cfg = loaded.cfg
    grid = token_grid(cfg, cfg.DATA.TRAIN_CROP_SIZE)
    generator = torch.Generator().manual_seed(0)
    shape = (videos, 2 if task.clip_mode == "pair" else 1)
    if task.input_kind == "tokens":
        clips = torch.randint(cfg.DATA.VOCAB_SIZE, (*shape, *grid), generator=generator)
    else:
        side = cfg.DATA.TRAIN_CROP_SIZE
        clips = torch.rand((*shape, 3, grid.frames, side, side), generator=generator)
    classes = max(1, cfg.MODEL.NUM_CLASSES)
    return {"clips": clips, "label": torch.randint(classes, (videos,), generator=generator)}


def measure_training(candidates: Sequence[StepOptions], rounds: int = 5) -> list[Result]:
    """Steps, and the matrix products of each, all in turns.

    Args:
        candidates: at least one, all on one device.
        rounds: how often each has its turn.

    Returns:
        One for each; those after the first say how they stand to it.

    Raises:
        ConfigError: for a wrong key or value of a configuration.
    """
    for options in candidates:
        options.load()  # mistakes in any of them show at once
    peaks = [_memory_of_a_fresh_process(options) for options in candidates]
    if candidates[0].threads:
        torch.set_num_threads(candidates[0].threads)
    steps = [TrainStep(options) for options in candidates]
    # Products inside a compiled backbone cannot be seen: they are those of an uncompiled one.
    floors = [
        MatrixProducts(
            TrainStep(replace(options, compile=False)).gradients
            if options.compile
            else step.gradients
        )
        for options, step in zip(candidates, steps, strict=True)
    ]
    for step, floor in zip(steps, floors, strict=True):
        for _ in range(_WARM_UP_STEPS):
            step.seconds()
        floor.seconds()
    step_times: list[list[float]] = [[] for _ in steps]
    floor_times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for index, (step, floor) in enumerate(zip(steps, floors, strict=True)):
            step_times[index].append(step.seconds())
            floor_times[index].append(floor.seconds())
    results = [
        _result(*parts)
        for parts in zip(candidates, steps, floors, step_times, floor_times, peaks, strict=True)
    ]
    for result in results[1:]:
        _compare(result, results[0])
    return results


def _result(
    options: StepOptions,
    step: TrainStep,
    floor: MatrixProducts,
    step_times: Sequence[float],
    floor_times: Sequence[float],
    peak_bytes: int,
) -> Result:
    precision = step.loaded.cfg.TRAIN.PRECISION
    seconds, floor_seconds = statistics.median(step_times), statistics.median(floor_times)
    peak = peak_of(step.device, precision, step.loaded.cfg.TRAIN.TF32)
    source = "measured" if peak.source.startswith("measured") else "data sheet"
    kind = "allocated on the GPU" if step.device.type == "cuda" else "resident"
    title = [f"{Path(options.path).stem}, {step.num_clips} clips of {step.clip_shape}", precision]
    title += ["compiled"] if options.compile else []
    title += [f"{torch.get_num_threads()} threads" if step.device.type == "cpu" else "cuda"]
    title += [" ".join(options.overrides)] if options.overrides else []
    return Result(
        ", ".join(title),
        {
            "seconds per step, median": seconds,
            "seconds per step, min": min(step_times),
            "seconds per step, max": max(step_times),
            "clips/s": step.num_clips / seconds,
            f"peak memory, GiB ({kind})": peak_bytes / GIBIBYTE,
            "floor, seconds": floor_seconds,
            "step / floor": seconds / floor_seconds,
            "matrix products, TFLOP": floor.flops / 1e12,
            f"peak of the device, TFLOP/s ({source})": peak.flops_per_second / 1e12,
            "MFU": floor.flops / seconds / peak.flops_per_second,
        },
    )


def _compare(result: Result, first: Result) -> None:
    """Adds how a result stands to the first one."""
    speeds = [each.rows["clips/s"] for each in (result, first)]
    result.rows["clips/s, relative to the first"] = speeds[0] / speeds[1]
    memory = next(name for name in first.rows if name.startswith("peak memory"))
    result.rows["peak memory, relative to the first"] = result.rows[memory] / first.rows[memory]


def _memory_of_a_fresh_process(options: StepOptions) -> int:
    """Peak over some steps of a process that does nothing else.

    Raises:
        RuntimeError: if that process fails; its error stands above.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(options, sender))
    process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"measuring the memory of {options.path} failed, see above") from error
    finally:
        process.join()
    return peak


def _send_peak(options: StepOptions, sender: Any) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    step = TrainStep(options)
    for _ in range(_MEMORY_STEPS):
        step.seconds()
    on_gpu = step.device.type == "cuda"
    sender.send(torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes())
