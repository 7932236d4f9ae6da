"""Whether a model takes the clips of the training and the test, asked before it is trained."""

from typing import Any

from fvcore.common.config import CfgNode

from vimpac_ext.config import ConfigError
from vimpac_ext.engine.distributed import world_size


def require_test_crop(cfg: CfgNode, backbone: Any, grid: tuple[int, int, int]) -> None:
    """Refuses a test crop that a model built for the training crop cannot take.

    Args:
        cfg: configuration.
        backbone: built for DATA.TRAIN_CROP_SIZE.
        grid: frames, height and width of a test clip in tokens.

    Raises:
        ValueError: naming the keys.
    """
    side, trained = cfg.DATA.TEST_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE
    is_tested = cfg.TEST.ENABLE and (cfg.TEST.DATASET.NAME or cfg.TEST.TOKEN_STORE)
    if side == trained or not is_tested:
        return
    advice = f"Set DATA.TEST_CROP_SIZE to DATA.TRAIN_CROP_SIZE ({trained})"
    if hasattr(backbone, "require_fit"):
        backbone.require_fit(advice, (cfg.DATA.NUM_FRAMES, side, side))
    elif getattr(backbone, "grid", grid) != grid:
        raise ConfigError(
            f"{type(backbone).__name__} was built for clips of {tuple(backbone.grid)} tokens; "
            f"those of DATA.TEST_CROP_SIZE {side} are {tuple(grid)}. {advice}"
        )


def require_partners(cfg: CfgNode, task: Any) -> None:
    """Refuses to mix clips where each process has one video at a time: they mix within a process.

    Args:
        cfg: configuration.
        task: that is going to be trained.

    Raises:
        ConfigError: naming the keys.
    """
    key = "MICRO_BATCH_SIZE" if cfg.TRAIN.MICRO_BATCH_SIZE else "BATCH_SIZE"
    size, processes = cfg.TRAIN[key], world_size()
    if getattr(task, "mix", None) is not None and size == processes:
        raise ConfigError(
            f"TASK.mixup and TASK.cutmix mix a clip with one of another video of the same process, "
            f"but TRAIN.{key} {size} gives each of {processes} process(es) one video. Set it to at "
            f"least {2 * processes}, or TASK.mixup and TASK.cutmix to 0"
        )
