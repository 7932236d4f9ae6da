"""Assembles a trainer from a configuration and runs it."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode
from torch import nn

from vimpac_ext.data.loaders import UpdateSampler, train_loader
from vimpac_ext.engine.assembly import build_dataset, build_task, build_train_clips
from vimpac_ext.engine.checkpoint import (
    Checkpointer,
    find_checkpoint,
    initialise_moments,
    initialise_weights,
)
from vimpac_ext.engine.events import EventLog
from vimpac_ext.engine.knn_monitor import KnnMonitor
from vimpac_ext.engine.optim import build_optimizer
from vimpac_ext.engine.schedule import learning_rate
from vimpac_ext.engine.tester import Tester, require_labels
from vimpac_ext.engine.trainer import Trainer, TrainerOptions
from vimpac_ext.files import atomic_write

_logger = logging.getLogger(__name__)

# Keys that may differ between a run and its continuation without a word.
_FREE_KEYS = ("OUTPUT_DIR", "LOG_PERIOD", "TENSORBOARD", "NUM_GPUS", "DATA_LOADER", "TEST", "KNN")


def train(
    cfg: CfgNode, device: torch.device, folder: Path, tester: Tester | None
) -> tuple[Any, int]:
    """Trains the configured task, or continues its training.

    Args:
        cfg: configuration.
        device: where to train.
        folder: OUTPUT_DIR; written only after everything has been built and checked.
        tester: evaluates every TRAIN.EVAL_PERIOD epochs.

    Returns:
        The trained task, and the updates that it has had.

    Raises:
        CheckpointError: if the run's own checkpoint, or the one to start from, does not fit.
    """
    task = build_task(cfg).to(device)
    monitor = KnnMonitor(cfg, device, task) if cfg.KNN.ENABLE else None
    dataset = build_dataset(cfg, "TRAIN")
    if cfg.MODEL.NUM_CLASSES:
        require_labels(dataset.records, dataset.class_names, cfg.MODEL.NUM_CLASSES)
    clips = build_train_clips(cfg, task, dataset.records)
    missing = getattr(clips, "missing", [])
    if missing:
        _logger.warning(
            "%d of %d training videos are not in the token store and are left out (first: %s)",
            len(missing),
            len(dataset.records),
            missing[0].video_id,
        )
    optimizer = build_optimizer(task, cfg.SOLVER)
    checkpointer = Checkpointer(folder, cfg.dump(), _facts(clips))
    first_update = _start(cfg, task, optimizer, checkpointer)
    sampler = _sampler(cfg, len(clips), first_update)
    loading = cfg.DATA_LOADER
    loader = train_loader(clips, sampler, loading.NUM_WORKERS, loading.PIN_MEMORY)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.yaml") as file:
        file.write(cfg.dump())
    _logger.info(
        "training on %d videos, %d updates, %s parameters, from update %d",
        len(clips),
        sampler.num_updates,
        f"{sum(p.numel() for p in task.parameters()):,}",
        first_update,
    )
    with EventLog(folder, cfg.TENSORBOARD, first_update + 1) as events:
        Trainer(
            task,
            sampler,
            loader,
            optimizer,
            _schedule(cfg, sampler.updates_per_epoch),
            checkpointer,
            events,
            device,
            _options(cfg),
            evaluate=partial(_evaluate, tester, monitor, task, events)
            if tester or monitor
            else None,
        ).train()
    if hasattr(task, "export"):  # e.g. a tokenizer, whose weights are used elsewhere
        task.export(folder / "exported.safetensors")
        _logger.info("exported %s", folder / "exported.safetensors")
    return task, sampler.num_updates


def _start(
    cfg: CfgNode, task: nn.Module, optimizer: torch.optim.Optimizer, checkpointer: Checkpointer
) -> int:
    """Restores the run, or else initialises weights; returns the updates already done."""
    if cfg.TRAIN.AUTO_RESUME:
        checkpoint = checkpointer.restore(task, optimizer)
        if checkpoint is not None:
            _warn_of_changes(checkpoint["cfg"], checkpointer.config_text)
            return int(checkpoint["update"])
    if cfg.TRAIN.CHECKPOINT_FILE_PATH:
        path = find_checkpoint(Path(cfg.TRAIN.CHECKPOINT_FILE_PATH))
        report = initialise_weights(path, task, checkpointer.facts)
        _logger.info("weights from %s: %s", path, report)
        if cfg.TRAIN.CHECKPOINT_OPTIMIZER:
            initialise_moments(path, task, optimizer)
    return 0


def _sampler(cfg: CfgNode, num_items: int, first_update: int) -> UpdateSampler:
    return UpdateSampler(
        num_items,
        cfg.TRAIN.BATCH_SIZE,
        cfg.TRAIN.MICRO_BATCH_SIZE or cfg.TRAIN.BATCH_SIZE,
        cfg.SOLVER.MAX_EPOCH,
        cfg.RNG_SEED,
        first_update,
    )


def _schedule(cfg: CfgNode, updates_per_epoch: int) -> Callable[[int], float]:
    """Update of this run -> rate; the run may be one stage of a longer schedule."""
    solver = cfg.SOLVER
    span = solver.SCHEDULE_EPOCHS or solver.SCHEDULE_START_EPOCH + solver.MAX_EPOCH

    def rate(update: int) -> float:
        return learning_rate(
            solver.SCHEDULE_START_EPOCH * updates_per_epoch + update,
            span * updates_per_epoch,
            solver.BASE_LR,
            solver.WARMUP_RATIO,
            solver.LR_POLICY,
        )

    return rate


def _options(cfg: CfgNode) -> TrainerOptions:
    return TrainerOptions(
        clip_grad_norm=cfg.SOLVER.CLIP_GRAD_L2NORM,
        precision=cfg.TRAIN.PRECISION,
        log_period=cfg.LOG_PERIOD,
        checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
        eval_period=cfg.TRAIN.EVAL_PERIOD,
        seed=cfg.RNG_SEED,
    )


def _evaluate(
    tester: Tester | None,
    monitor: KnnMonitor | None,
    task: nn.Module,
    events: EventLog,
    update: int,
) -> None:
    if monitor is not None:
        events.write("knn_epoch", update, monitor.run(task, update))
    if tester is None:
        return
    result = tester.run(task)
    events.write(
        "val_epoch",
        update,
        {"top1_err": 100 - result.topk_accuracy(1), "top5_err": 100 - result.topk_accuracy(5)},
    )


def _facts(clips: Any) -> dict[str, str]:
    """What a checkpoint must remember of its data: weights mean nothing for other tokens."""
    store = getattr(clips, "store", None)
    return {"tokenizer_fingerprint": store.meta.tokenizer_fingerprint} if store else {}


def _warn_of_changes(stored: str, current: str) -> None:
    before, now = _flat(yaml.safe_load(stored)), _flat(yaml.safe_load(current))
    changed = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_FREE_KEYS)
    ]
    if changed:
        _logger.warning("resumed with other settings than before: %s", "; ".join(changed))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict)
                    else {f"{prefix}{key}": value})  # fmt: skip
    return flat
