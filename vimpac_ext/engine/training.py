"""Assembles a trainer from a configuration and runs it."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vimpac_ext.config import ConfigError
from vimpac_ext.data.bad_videos import read_bad_videos
from vimpac_ext.data.loaders import UpdateSampler, train_loader
from vimpac_ext.engine.assembly import build_dataset, build_task, build_train_clips, data_facts
from vimpac_ext.engine.checkpoint import (
    Checkpointer,
    find_checkpoint,
    initialise_moments,
    initialise_weights,
)
from vimpac_ext.engine.config_changes import config_changes
from vimpac_ext.engine.distributed import is_main, rank, world_size
from vimpac_ext.engine.environment import write_config
from vimpac_ext.engine.events import EventLog, open_events
from vimpac_ext.engine.knn_monitor import KnnMonitor
from vimpac_ext.engine.memory_format import match_memory_formats
from vimpac_ext.engine.model_info import log_model_info, step_meter
from vimpac_ext.engine.optim import build_optimizer
from vimpac_ext.engine.parallel import GlobalMasker, GlobalNoise, share_buffers
from vimpac_ext.engine.remote import Mirror
from vimpac_ext.engine.rng import part_ways
from vimpac_ext.engine.schedule import build_schedule
from vimpac_ext.engine.sharding import layers_of, shard, whole
from vimpac_ext.engine.tester import Tester, require_labels
from vimpac_ext.engine.trainer import Trainer, TrainerOptions
from vimpac_ext.engine.training_pictures import TrainingPictures
from vimpac_ext.engine.wandb_log import wandb_options

_logger = logging.getLogger(__name__)

# Keys that may differ between a run and its continuation without a word.
_FREE_KEYS = (
    "OUTPUT_DIR",
    "REMOTE_DIR",
    "LOG_PERIOD",
    "LOG_MODEL_INFO",
    "LOG_MFU",
    "TENSORBOARD",
    "TENSORBOARD_PICTURES_PERIOD",
    "WANDB",
    "NUM_GPUS",
    "NUM_CPU_PROCESSES",
    "DIST_TIMEOUT",
    "DATA_LOADER",
    "TEST",
    "KNN",
    "TRAIN.CHECKPOINT_PERIOD",
    "TRAIN.KEEP_CHECKPOINTS",
)


def train(
    cfg: CfgNode, device: torch.device, folder: Path, tester: Tester | None, mirror: Mirror | None
) -> tuple[Any, int]:
    """Trains the configured task, or continues its training.

    With a process group, every process calls this.

    Args:
        cfg: configuration.
        device: where to train.
        folder: OUTPUT_DIR; written only after everything has been built and checked.
        tester: evaluates every TRAIN.EVAL_PERIOD epochs.
        mirror: remote copy of the run, of which this training may be a stage.

    Returns:
        The trained task (with averaged weights if TRAIN.EMA_DECAY is set), and the updates that it
        has had.

    Raises:
        CheckpointError: if the run's own checkpoint, or the one to start from, does not fit.
        ConfigError: if the task cannot be trained as configured.
        OSError: if another process's checkpoint is needed and not in the mirror.
        TrainingStopped: after a signal, when a checkpoint is saved.
    """
    task = _build(cfg, device)
    monitor = KnnMonitor(cfg, device, task) if cfg.KNN.ENABLE else None
    clips = training_clips(cfg, task)
    draws = cfg.TENSORBOARD_PICTURES_PERIOD > 0
    pictures = TrainingPictures(cfg, device, task, clips) if draws else None
    optimizer = build_optimizer(task, cfg.SOLVER)
    checkpointer = _checkpointer(cfg, folder, clips, mirror)
    checkpoint = _start(cfg, task, optimizer, checkpointer)
    match_memory_formats(optimizer)
    if cfg.LOG_MODEL_INFO:
        log_model_info(cfg, task)
    if _shards(cfg):
        shard(task, optimizer, cfg.TRAIN.PRECISION, device)
    sampler = update_sampler(cfg, len(clips), checkpoint["update"] if checkpoint else 0)
    bad, loading = folder / "bad_videos.jsonl", cfg.DATA_LOADER
    loader = train_loader(clips, sampler, loading.NUM_WORKERS, loading.PIN_MEMORY, bad)
    if checkpoint is None:
        checkpointer.begin_anew()
    if is_main():
        write_config(folder, cfg, device)
    _announce(task, len(clips), sampler)
    first_update = sampler.first_update + 1
    with open_events(folder, cfg.TENSORBOARD, first_update, wandb_options(cfg)) as events:
        trainer = Trainer(
            task,
            sampler,
            loader,
            optimizer,
            build_schedule(cfg.SOLVER, sampler.updates_per_epoch),
            checkpointer,
            events,
            device,
            _options(cfg),
            evaluate=partial(_evaluate, tester, monitor, task, events, sampler)
            if tester or monitor
            else None,
            name_video=lambda index: repr(clips.records[index].video_id),
            meter=step_meter(cfg, task, device),
            draw=partial(_draw, pictures, task, events) if pictures else None,
        )
        if not (checkpoint and trainer.restore(checkpoint)):
            part_ways(cfg.RNG_SEED, sampler.first_update)
        trainer.train()
    _count_bad_videos(bad, len(clips))
    return _finish(task, trainer, folder), sampler.num_updates


def _announce(task: nn.Module, num_videos: int, sampler: UpdateSampler) -> None:
    _logger.info(
        "training on %d videos, %d updates, %s parameters, from update %d, in %d process(es)",
        num_videos,
        sampler.num_updates,
        f"{sum(p.numel() for p in task.parameters()):,}",
        sampler.first_update,
        world_size(),
    )


def _count_bad_videos(file: Path, num_videos: int) -> None:
    number = len(read_bad_videos(file)) if is_main() else 0
    if number:
        text = "%d of %d training videos could not be decoded; others took their places: see %s"
        _logger.warning(text, number, num_videos, file)


def _finish(task: Any, trainer: Trainer, folder: Path) -> Any:
    """The trained task, with all weights in every process, the averaged ones if there are."""
    if trainer.ema is not None:
        task.load_state_dict(trainer.ema.state)
    share_buffers(task)  # so that what is tested is what the checkpoint has
    task = whole(task)
    if hasattr(task, "export") and is_main():  # e.g. a tokenizer, whose weights are used elsewhere
        task.export(folder / "exported.safetensors")
        _logger.info("exported %s", folder / "exported.safetensors")
    return task


def _build(cfg: CfgNode, device: torch.device) -> Any:
    # What is to be sharded must not have to fit on one device.
    task = build_task(cfg).to("cpu" if _shards(cfg) else device)
    if world_size() > 1:
        if not getattr(task, "multi_process", True):
            raise ConfigError(
                f"{type(task).__name__} trains in one process, found {world_size()}; set NUM_GPUS "
                "to 0 or 1 and NUM_CPU_PROCESSES to 1"
            )
        if getattr(task, "masker", None) is not None:
            clips = 2 if task.clip_mode == "pair" else 1
            # Past nn.Module's registration: the names in the state dict stay as they are.
            object.__setattr__(task, "masker", GlobalMasker(task.masker, clips))
            if hasattr(task, "corrupt"):
                object.__setattr__(task, "corrupt", GlobalNoise(task.corrupt, clips))
    if cfg.TRAIN.COMPILE:
        if not hasattr(task, "backbone"):
            raise ConfigError(f"TRAIN.COMPILE: {type(task).__name__} has no backbone to compile")
        # Around sharded layers their weights are gathered, which cannot be compiled.
        for module in layers_of(task) if _shards(cfg) else [task.backbone]:
            module.compile()
    return task


def _shards(cfg: CfgNode) -> bool:
    return cfg.TRAIN.PARALLEL == "fsdp" and world_size() > 1


def training_clips(cfg: CfgNode, task: Any) -> Any:
    """The data set of clips that TRAIN describes, as the task wants them.

    Raises:
        ValueError: if it, its labels or its token store are not what the configuration says.
    """
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
    return clips


def _checkpointer(cfg: CfgNode, folder: Path, clips: Any, mirror: Mirror | None) -> Checkpointer:
    order = {
        "number of training videos": len(clips),
        "TRAIN.BATCH_SIZE": cfg.TRAIN.BATCH_SIZE,
        "RNG_SEED": cfg.RNG_SEED,
    }
    facts, keep = data_facts(cfg, clips), cfg.TRAIN.KEEP_CHECKPOINTS
    return Checkpointer(folder, cfg.dump(), facts, keep, order, mirror)


def _start(
    cfg: CfgNode, task: nn.Module, optimizer: torch.optim.Optimizer, checkpointer: Checkpointer
) -> dict[str, Any] | None:
    """Restores the run and returns its checkpoint, or else initialises weights."""
    if cfg.TRAIN.AUTO_RESUME:
        checkpoint = checkpointer.restore(task, optimizer)
        if checkpoint is not None:
            changes = config_changes(checkpoint["cfg"], checkpointer.config_text, _FREE_KEYS)
            if changes:
                _logger.warning("resumed with other settings than before: %s", "; ".join(changes))
            return checkpoint
    if cfg.TRAIN.CHECKPOINT_FILE_PATH:
        checkpointer.share(Path(cfg.TRAIN.CHECKPOINT_FILE_PATH))
        path = find_checkpoint(cfg.TRAIN.CHECKPOINT_FILE_PATH)
        with_moments = cfg.TRAIN.CHECKPOINT_OPTIMIZER
        report = initialise_weights(path, task, checkpointer.facts, raw=with_moments)
        _logger.info("weights from %s: %s", path, report)
        if with_moments:
            initialise_moments(path, task, optimizer)
    return None


def update_sampler(cfg: CfgNode, num_items: int, first_update: int) -> UpdateSampler:
    """The order of the videos in this process, from an update on."""
    return UpdateSampler(
        num_items,
        cfg.TRAIN.BATCH_SIZE,
        cfg.TRAIN.MICRO_BATCH_SIZE or cfg.TRAIN.BATCH_SIZE,
        cfg.SOLVER.MAX_EPOCH,
        cfg.RNG_SEED,
        first_update,
        rank(),
        world_size(),
    )


def _options(cfg: CfgNode) -> TrainerOptions:
    return TrainerOptions(
        clip_grad_norm=cfg.SOLVER.CLIP_GRAD_L2NORM,
        precision=cfg.TRAIN.PRECISION,
        log_period=cfg.LOG_PERIOD,
        checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
        eval_period=cfg.TRAIN.EVAL_PERIOD,
        seed=cfg.RNG_SEED,
        checkpoint_period_steps=cfg.TRAIN.CHECKPOINT_PERIOD_STEPS,
        ema_decay=cfg.TRAIN.EMA_DECAY,
        explosion_factor=cfg.TRAIN.KILL_LOSS_EXPLOSION_FACTOR,
        picture_period=cfg.TENSORBOARD_PICTURES_PERIOD,
    )


def _evaluate(
    tester: Tester | None,
    monitor: KnnMonitor | None,
    task: nn.Module,
    events: EventLog,
    sampler: UpdateSampler,
    update: int,
) -> None:
    task = whole(task)
    epoch = {"epoch": f"{update // sampler.updates_per_epoch}/{sampler.num_epochs}"}
    lines = {}  # written at the end, since a run that is killed here makes up for all or nothing
    if monitor is not None and is_main():  # the others wait for it in the next step
        lines["knn_epoch"] = monitor.run(task, update)
    if tester is not None:
        accuracy = tester.run(task).topk_accuracy
        lines["val_epoch"] = errors = {f"top{k}_err": 100 - accuracy(k) for k in (1, 5)}
        errors |= {f"min_{name}": events.least("val_epoch", name, e) for name, e in errors.items()}
    for kind in lines:
        events.write(kind, update, epoch | lines[kind])


def _draw(pictures: TrainingPictures, task: nn.Module, events: EventLog, update: int) -> None:
    task = whole(task)  # in every process, since the weights may be spread over them
    if is_main():  # the others wait for it in the next step
        events.write_image("masked_and_completed", update, pictures.draw(task))
