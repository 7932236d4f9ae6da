"""Training in stages (TRAIN.STAGES): each is one training, in its own folder below OUTPUT_DIR."""

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from vimpac_ext.config import ConfigError, LoadedConfig, stages_of
from vimpac_ext.engine.assembly import build_task, data_facts
from vimpac_ext.engine.checkpoint import take_weights
from vimpac_ext.engine.checkpoint_files import require_same_facts
from vimpac_ext.engine.devices import allow_tf32
from vimpac_ext.engine.distributed import from_main, is_main
from vimpac_ext.engine.environment import write_config
from vimpac_ext.engine.knn_monitor import KnnMonitor
from vimpac_ext.engine.remote import mirror_of
from vimpac_ext.engine.rng import seed_rng
from vimpac_ext.engine.stage_progress import first_unfinished, has_checkpoint
from vimpac_ext.engine.tester import Tester
from vimpac_ext.engine.training import train, training_clips, update_sampler

_logger = logging.getLogger(__name__)


def begin(cfg: CfgNode, device: torch.device) -> Tester | None:
    """What comes before every training or test: seeds, precision, and the tester if there is one.

    Args:
        cfg: configuration of the training (of the stage).
        device: where the tester runs.

    Raises:
        ValueError: as `Tester`.
    """
    seed_rng(cfg.RNG_SEED)  # the same in all processes, so that they build the same model
    allow_tf32(cfg.TRAIN.TF32)
    return Tester(cfg, device) if _can_test(cfg) else None


def train_stages(loaded: LoadedConfig, device: torch.device) -> tuple[Any, int, Tester | None]:
    """Trains all stages that are not finished; the whole training if there are no stages.

    With a process group, every process calls this.

    Args:
        loaded: configuration.
        device: where to train.

    Returns:
        The trained task, the updates of its last stage, and that stage's tester.

    Raises:
        ConfigError: before anything is trained, if a later stage cannot be trained as configured or
            OUTPUT_DIR holds another run.
        CheckpointError: as `train`.
        TrainingStopped: as `train`.
    """
    stages = stages_of(loaded)
    first = 0
    if loaded.cfg.TRAIN.STAGES:
        first = from_main(_first_stage(loaded, stages) if is_main() else 0)
        if len(stages) - first > 1:
            _rehearse(stages, first, device)
        if is_main():
            write_config(Path(loaded.cfg.OUTPUT_DIR), loaded.cfg, device)
    result: tuple[Any, int] | None = None
    for index in range(first, len(stages)):
        result = None  # the model of the stage before makes room for this one's
        gc.collect()
        cfg = stages[index].cfg
        if loaded.cfg.TRAIN.STAGES:
            _logger.info("stage %d (of 0 to %d) in %s", index, len(stages) - 1, cfg.OUTPUT_DIR)
        tester = begin(cfg, device)
        result = train(cfg, device, Path(cfg.OUTPUT_DIR), tester, mirror_of(loaded.cfg))
    assert result is not None
    return *result, tester


def _first_stage(loaded: LoadedConfig, stages: Sequence[LoadedConfig]) -> int:
    """Where to begin or continue; refuses a folder in which that would not be clear."""
    folder = loaded.cfg.OUTPUT_DIR
    if has_checkpoint(folder):
        raise ConfigError(
            f"OUTPUT_DIR {folder!r} has checkpoints of a run without TRAIN.STAGES; choose another"
        )
    first = first_unfinished(stages)
    if not loaded.cfg.TRAIN.AUTO_RESUME and has_checkpoint(stages[first].cfg.OUTPUT_DIR):
        raise ConfigError(
            f"TRAIN.AUTO_RESUME is False, but {stages[first].cfg.OUTPUT_DIR!r} has checkpoints, "
            "from which a later stage could start by mistake; remove them, or choose another "
            "OUTPUT_DIR"
        )
    return first


def _can_test(cfg: CfgNode) -> bool:
    return bool(cfg.TEST.ENABLE and (cfg.TEST.DATASET.NAME or cfg.TEST.TOKEN_STORE))


def _rehearse(stages: Sequence[LoadedConfig], first: int, device: torch.device) -> None:
    """Builds every stage and passes weights on, so that the last cannot fail after days.

    Raises:
        ConfigError: naming the stage.
    """
    before: tuple[Any, dict[str, str]] | None = None
    for index in range(first, len(stages)):
        cfg = stages[index].cfg
        try:
            task = build_task(cfg)
            clips = training_clips(cfg, task)
            update_sampler(cfg, len(clips), 0)
            if cfg.KNN.ENABLE:
                KnnMonitor(cfg, device, task)
            if _can_test(cfg):
                Tester(cfg, device)
            facts = data_facts(cfg, clips)
            if before is not None:
                _pass_on(*before, index, task, facts, cfg)
        except ValueError as error:
            raise ConfigError(f"TRAIN.STAGES[{index}]: {error}") from error
        before = task, facts


def _pass_on(
    other: Any,
    other_facts: dict[str, str],
    index: int,
    task: Any,
    facts: dict[str, str],
    cfg: CfgNode,
) -> None:
    source = Path(f"stage_{index - 1}")
    if not hasattr(task, "backbone"):
        raise ConfigError(f"{type(task).__name__} has no backbone to train in stages")
    require_same_facts(source, other_facts, facts)
    report = take_weights(source, other.state_dict(), task)
    before, now = (
        {name for name, parameter in one.named_parameters() if parameter.requires_grad}
        for one in (other, task)
    )
    differing = (before ^ now) | (now - {*report.loaded, *report.resized})
    if cfg.TRAIN.CHECKPOINT_OPTIMIZER and differing:
        raise ConfigError(
            f"it trains other parameters than the stage before (e.g. {min(differing)}), whose "
            "moments it takes; set TRAIN.CHECKPOINT_OPTIMIZER False in it"
        )
