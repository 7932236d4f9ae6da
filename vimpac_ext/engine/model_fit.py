"""Whether a model takes the clips of the test, asked before it is trained."""

from typing import Any

from fvcore.common.config import CfgNode

from vimpac_ext.config import ConfigError


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
