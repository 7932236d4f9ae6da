"""Size, cost, speed and memory of the models that configurations describe, on random clips."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.benchmarks.memory import PeakMemory
from vimpac_ext.config import LoadedConfig
from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_task, token_grid
from vimpac_ext.engine.optim import build_optimizer
from vimpac_ext.evaluation import multiply_adds, parameter_count
from vimpac_ext.tasks.objective import apply_heads

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_STEPS = 3


@dataclass(frozen=True)
class MeasureOptions:
    """How models are measured.

    Attributes:
        device: "cpu" or "cuda".
        batch_size: videos in a step; clips in a forward pass.
        seconds: of measuring, for each of training and inference.
        precision: "fp32", "bf16" or "fp16"; "" = as each configuration says.
        overrides: of every configuration, alternating keys and values.
        plugins: modules to import first.
    """

    device: str = "cpu"
    batch_size: int = 2
    seconds: float = 5.0
    precision: str = ""
    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelCost:
    """What was measured of one configuration; None = not measured.

    Attributes:
        name: of the file, without its suffix.
        backbone: registered name, and the model within it.
        parameters: millions, heads included.
        gflops: 10^9 multiply-adds of one test clip, backbone and heads; a tokenizer that makes the
            tokens is not counted.
        temporal_views: of a video in the test.
        spatial_crops: of each.
        clip: frames x height x width, in pixels or tokens, of the test.
        precision: of inference / of training.
        test_clips_per_second: inference.
        train_clips_per_second: forward, backward and update.
        test_peak_mb: 10^6 bytes during inference.
        train_peak_mb: the same during training.
        batch_size: videos in a step.
        top1: accuracy in percent, where one was given.
        error: why it was not measured, or empty.
    """

    name: str
    backbone: str = ""
    parameters: float | None = None
    gflops: float | None = None
    temporal_views: int | None = None
    spatial_crops: int | None = None
    clip: str = ""
    precision: str = ""
    test_clips_per_second: float | None = None
    train_clips_per_second: float | None = None
    test_peak_mb: float | None = None
    train_peak_mb: float | None = None
    batch_size: int | None = None
    top1: float | None = None
    error: str = ""

    @property
    def gflops_of_all_views(self) -> float | None:
        """GFLOPs of one video in the test."""
        if self.gflops is None or self.temporal_views is None or self.spatial_crops is None:
            return None
        return self.gflops * self.temporal_views * self.spatial_crops


def names_of(paths: Sequence[Path]) -> list[str]:
    """Names of configurations: of the files, without suffix; with their folders where two agree."""
    stems = [path.stem for path in paths]
    return [
        path.stem if stems.count(path.stem) == 1 else path.with_suffix("").as_posix()
        for path in paths
    ]


def measure_models(
    paths: Sequence[Path], options: MeasureOptions, accuracies: Mapping[str, float] | None = None
) -> Iterator[ModelCost]:
    """Measures one model after the other, each in a process of its own.

    A model that cannot be measured has an ``error``; the others are measured all the same.

    Args:
        paths: configurations.
        options: the same for all.
        accuracies: name (see `names_of`) -> top-1 in percent.
    """
    for path, name in zip(paths, names_of(paths), strict=True):
        top1 = (accuracies or {}).get(name)
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                cost = pool.submit(measure_model, path, options, top1).result()
            cost = replace(cost, name=name)
        except (ValueError, RuntimeError, ImportError, OSError) as error:
            # Also a process that was killed, e.g. for want of memory.
            cost = ModelCost(name, error=f"{type(error).__name__}: {error}", top1=top1)
        yield cost


def measure_model(path: Path, options: MeasureOptions, top1: float | None = None) -> ModelCost:
    """Measures one model in this process.

    Args:
        path: configuration.
        options: how.
        top1: passed on; None = that of the run's own test (``OUTPUT_DIR/test/result.json``), if
            there is one.

    Raises:
        ValueError: the configuration is wrong, or has no backbone.
    """
    loaded = prepare(path, options.overrides, options.plugins)
    cfg = loaded.cfg
    device = torch.device(options.device)
    memory = PeakMemory(device)
    task = build_task(cfg).to(device)
    if not hasattr(task, "backbone"):
        raise ValueError(f"{path}: {cfg.TASK.NAME} has no backbone to measure")
    test, train = (options.precision or cfg[part].PRECISION for part in ("TEST", "TRAIN"))
    clip = random_clips(loaded, task.backbone.input_kind, 1, device)
    gflops = multiply_adds(Classifier(task), clip) / 1e9

    memory.reset()
    # A task that predicts no classes is not tested: its backbone alone is timed.
    model = task if hasattr(task, "predict") else task.backbone
    predict = getattr(model, "predict", model)
    clips = random_clips(loaded, model.input_kind, options.batch_size, device)
    task.eval()
    with torch.inference_mode(), _autocast(device, test):
        seconds = _median_seconds(lambda: predict(clips), options.seconds, device)
    test_speed, test_peak = len(clips) / seconds, memory.peak_mb()

    memory.reset()
    step, num_clips = _training_step(loaded, task, options.batch_size, device, train)
    train_speed = num_clips / _median_seconds(step, options.seconds, device)
    return ModelCost(
        name=path.stem,
        backbone=_backbone_name(cfg.BACKBONE),
        parameters=parameter_count(task) / 1e6,
        gflops=gflops,
        temporal_views=cfg.TEST.NUM_ENSEMBLE_VIEWS,
        spatial_crops=cfg.TEST.NUM_SPATIAL_CROPS,
        clip=" x ".join(map(str, _clip_shape(loaded, task.backbone.input_kind)[-3:])),
        precision=f"{test} / {train}",
        test_clips_per_second=test_speed,
        train_clips_per_second=train_speed,
        test_peak_mb=test_peak,
        train_peak_mb=memory.peak_mb(),
        batch_size=options.batch_size,
        top1=_own_accuracy(Path(cfg.OUTPUT_DIR)) if top1 is None else top1,
    )


class Classifier(nn.Module):
    """Backbone and, where they classify, heads: what a test clip goes through.

    Args:
        task: with ``backbone``, and ``heads`` if it predicts classes.
    """

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.backbone = task.backbone
        self.heads = task.heads if hasattr(task, "predict") else nn.ModuleDict()

    def forward(self, clip: Tensor) -> Tensor:
        """Class logits (B, classes), or "cls" (B, D) of a task without classes."""
        outputs = apply_heads(self.heads, self.backbone(clip))
        return outputs["class_logits" if len(self.heads) else "cls"]


def _training_step(
    loaded: LoadedConfig, task: Any, batch_size: int, device: torch.device, precision: str
) -> tuple[Callable[[], None], int]:
    """A function that trains on the same random batch, and the clips in it."""
    per_video = 2 if task.clip_mode == "pair" else 1
    clips = random_clips(loaded, task.input_kind, batch_size * per_video, device, "TRAIN")
    labels = torch.randint(max(loaded.cfg.MODEL.NUM_CLASSES, 1), (batch_size,), device=device)
    batch = {"clips": clips.unflatten(0, (batch_size, per_video)), "label": labels}
    optimizer = build_optimizer(task, loaded.cfg.SOLVER)
    generator = torch.Generator(device)
    task.train()

    def step() -> None:
        with _autocast(device, precision):
            loss = task.training_step(batch, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, len(clips)


def _clip_shape(loaded: LoadedConfig, kind: str, phase: str = "TEST") -> tuple[int, ...]:
    side = loaded.cfg.DATA[f"{phase}_CROP_SIZE"]
    if kind == "tokens":
        return tuple(token_grid(loaded.cfg, side))
    return 3, loaded.cfg.DATA.NUM_FRAMES, side, side


def random_clips(
    loaded: LoadedConfig, kind: str, num_clips: int, device: torch.device, phase: str = "TEST"
) -> Tensor:
    """Random clips of a configuration's size.

    Args:
        loaded: the configuration.
        kind: "pixels" or "tokens".
        num_clips: B.
        device: of the clips.
        phase: "TEST" or "TRAIN", whose crop size counts.

    Returns:
        float (B, 3, T, H, W) in [0, 1], or int64 (B, T, h, w) token ids.
    """
    shape = (num_clips, *_clip_shape(loaded, kind, phase))
    if kind == "tokens":
        return torch.randint(loaded.cfg.DATA.VOCAB_SIZE, shape, device=device)
    return torch.rand(shape, device=device)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager:
    dtype = _DTYPES.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype, enabled=precision in _DTYPES)


def _median_seconds(step: Callable[[], Any], seconds: float, device: torch.device) -> float:
    """Median time of a step, after one to warm up."""
    times: list[float] = []
    step()
    while len(times) < _MIN_STEPS or sum(times) < seconds:
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - start)
    return median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _backbone_name(section: Mapping[str, Any]) -> str:
    model = section.get("model") or section.get("model_type") or ""
    return f"{section['NAME']} {model}".strip()


def _own_accuracy(folder: Path) -> float | None:
    path = folder / "test" / "result.json"
    return float(json.loads(path.read_text())["top1"]) if path.is_file() else None
