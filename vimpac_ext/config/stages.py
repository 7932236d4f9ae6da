"""Stages of one training, such as the paper's 90 epochs at 128 px and 10 at 256 px.

Each is an ordinary configuration: the common keys, those of TRAIN.STAGES[i], and what follows from
its place among the others.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from vimpac_ext.config.load import COMMAND_LINE, STAGES, ConfigError, LoadedConfig, overlaid
from vimpac_ext.config.trees import flat

# What holds for the whole run, or follows from the order of the stages.
_NOT_OF_A_STAGE = (
    "PLUGINS",
    "NUM_GPUS",
    "NUM_CPU_PROCESSES",
    "DIST_TIMEOUT",
    "OUTPUT_DIR",
    "REMOTE_DIR",
    "TRAIN.ENABLE",
    "TRAIN.STAGES",
    "TRAIN.AUTO_RESUME",
    "TRAIN.CHECKPOINT_FILE_PATH",
    "TEST.ENABLE",
    "TEST.CHECKPOINT_FILE_PATH",
)


def stages_of(loaded: LoadedConfig) -> list[LoadedConfig]:
    """The configuration of every stage; the given one alone if it has no TRAIN.STAGES.

    Unless a stage says otherwise, all share one learning-rate schedule: SCHEDULE_START_EPOCH is
    what the stages before it have trained and SCHEDULE_EPOCHS the epochs of all together. Stage i
    works in OUTPUT_DIR/stage_i, whose copy is REMOTE_DIR/stage_i. All but the first start from the
    last checkpoint of the one before, with its moments unless TRAIN.CHECKPOINT_OPTIMIZER is set
    False in the stage. Only the last is tested after its training.

    Raises:
        ConfigError: naming the stage, for an unknown key or value or one that it may not set.
    """
    names = [_name_of_stage(loaded, index) for index in range(len(loaded.cfg.TRAIN.STAGES))]
    merged = []
    for name, own in zip(names, loaded.cfg.TRAIN.STAGES, strict=True):
        _require_own_keys(own, name)
        merged.append(overlaid(loaded, {**own}, name))
    stages = [
        overlaid(stage, _place(loaded, merged, index), names[index])
        for index, stage in enumerate(merged)
    ]
    _check_moments(stages, names)
    # What the command line gives wins over the stages, see `load_config`.
    given = {key: source for key, source in loaded.sources.items() if source == COMMAND_LINE}
    return [replace(stage, sources={**stage.sources, **given}) for stage in stages] or [loaded]


def last_stage(loaded: LoadedConfig) -> LoadedConfig:
    """The configuration to test and to use the finished model with; the folders are the run's."""
    last = stages_of(loaded)[-1]
    cfg = last.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.REMOTE_DIR = loaded.cfg.OUTPUT_DIR, loaded.cfg.REMOTE_DIR
    cfg.freeze()
    return replace(last, cfg=cfg)


def folders_of(cfg: CfgNode) -> list[str]:
    """Where below OUTPUT_DIR each stage works; "" alone, the folder itself, without TRAIN.STAGES.

    Args:
        cfg: configuration of the run.
    """
    return [f"stage_{index}" for index in range(len(cfg.TRAIN.STAGES))] or [""]


def _name_of_stage(loaded: LoadedConfig, index: int) -> str:
    """For error messages: which stage, and of which file."""
    return f"{STAGES}[{index}] in {loaded.where(STAGES)}"


def _place(loaded: LoadedConfig, merged: list[LoadedConfig], index: int) -> dict[str, Any]:
    """The keys that follow from a stage's place among all."""
    cfg, own = merged[index].cfg, dict(flat(loaded.cfg.TRAIN.STAGES[index]))
    epochs = [stage.cfg.SOLVER.MAX_EPOCH for stage in merged]
    start = loaded.cfg.SOLVER.SCHEDULE_START_EPOCH
    solver: dict[str, Any] = {}
    train: dict[str, Any] = {"STAGES": []}
    if "SOLVER.SCHEDULE_START_EPOCH" not in own:
        solver["SCHEDULE_START_EPOCH"] = start + sum(epochs[:index])
    if not cfg.SOLVER.SCHEDULE_EPOCHS:
        solver["SCHEDULE_EPOCHS"] = start + sum(epochs)
    folder, names = Path(loaded.cfg.OUTPUT_DIR), folders_of(loaded.cfg)
    if index > 0:
        last = f"checkpoints/checkpoint_epoch_{epochs[index - 1]:05d}.pyth"
        train["CHECKPOINT_FILE_PATH"] = str(folder / names[index - 1] / last)
        if "TRAIN.CHECKPOINT_OPTIMIZER" not in own:
            train["CHECKPOINT_OPTIMIZER"] = True
    place = {"OUTPUT_DIR": str(folder / names[index]), "SOLVER": solver, "TRAIN": train}
    if loaded.cfg.REMOTE_DIR:
        place["REMOTE_DIR"] = f"{loaded.cfg.REMOTE_DIR.rstrip('/')}/{names[index]}"
    if index < len(merged) - 1 and not cfg.TRAIN.EVAL_PERIOD:
        place["TEST"] = {"ENABLE": False}
    return place


def _require_own_keys(own: Mapping[str, Any], name: str) -> None:
    for key, _ in flat(own):
        if key.startswith(tuple(f"{other}." for other in _NOT_OF_A_STAGE)) or (
            key in _NOT_OF_A_STAGE
        ):
            raise ConfigError(
                f"{key} in {name} cannot be set in a stage; set it for the whole run. The others "
                f"that cannot: {', '.join(other for other in _NOT_OF_A_STAGE if other != key)}"
            )


def _check_moments(stages: list[LoadedConfig], names: list[str]) -> None:
    for before, stage, name in zip(stages, stages[1:], names[1:], strict=False):
        methods = [s.cfg.SOLVER.OPTIMIZING_METHOD for s in (before, stage)]
        if stage.cfg.TRAIN.CHECKPOINT_OPTIMIZER and "sgd" in methods:
            raise ConfigError(
                f"{name} continues with the moments of Adam, but SOLVER.OPTIMIZING_METHOD is "
                f"{' and then '.join(methods)}; set TRAIN.CHECKPOINT_OPTIMIZER False in the stage"
            )
