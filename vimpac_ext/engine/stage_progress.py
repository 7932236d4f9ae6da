"""How far a training in stages (TRAIN.STAGES) has come, by the checkpoints that it left."""

from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.config import LoadedConfig, stages_of
from vimpac_ext.engine.checkpoint_files import newest_checkpoint


def unfinished_stages(loaded: LoadedConfig) -> list[LoadedConfig]:
    """The stages that are still to be trained, the one under way included.

    A stage is finished when a later one has a checkpoint.
    """
    stages = stages_of(loaded)
    return stages[first_unfinished(stages) if loaded.cfg.TRAIN.AUTO_RESUME else 0 :]


def first_unfinished(stages: Sequence[LoadedConfig]) -> int:
    """Position of the first stage that is not finished."""
    begun = [i for i, stage in enumerate(stages) if has_checkpoint(stage.cfg.OUTPUT_DIR)]
    return begun[-1] if begun else 0


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a run in this folder has saved one."""
    return newest_checkpoint(Path(folder) / "checkpoints") is not None
