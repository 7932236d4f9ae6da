"""Resolved configurations of rows, and what follows from them."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from paper_tables.spec import REPOSITORY, Overrides, TableError
from vimpac_ext.engine import prepare
from vimpac_ext.maskers import induced_mask_ratio, num_blocks_for_ratio


def resolve(config: str, overrides: Overrides) -> CfgNode:
    """The configuration that a command will see, but for paths.

    Raises:
        ValueError: if it is wrong.
    """
    return _resolve(config, tuple(words_of(overrides)))


@cache
def _resolve(config: str, words: tuple[str, ...]) -> CfgNode:
    return prepare(REPOSITORY / config, list(words)).cfg


def words_of(overrides: Overrides) -> list[str]:
    """Alternating keys and values as a command line takes them."""
    return [word for key, value in overrides.items() for word in (key, _word(value))]


def _word(value: Any) -> str:
    if isinstance(value, str) and (value == "" or yaml.safe_load(value) == value):
        return value
    return json.dumps(value)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        below = isinstance(value, Mapping) and value
        result.update(flat(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value})
    return result


def grid_of(cfg: CfgNode) -> tuple[int, int, int]:
    """Frames, height and width of a training clip in tokens."""
    side = cfg.DATA.TRAIN_CROP_SIZE // cfg.DATA.TOKEN_STRIDE
    return cfg.DATA.NUM_FRAMES, side, side


def hidden_share(cfg: CfgNode) -> float:
    """The share of tokens that the configured block masker hides.

    Raises:
        TableError: if the masker is another one.
    """
    if cfg.MASKER.NAME != "BlockMasker":
        raise TableError(f"a ratio to match is a BlockMasker's, found {cfg.MASKER.NAME!r}")
    blocks = cfg.MASKER.get("num_blocks")
    if blocks is None:
        blocks = num_blocks_for_ratio(grid_of(cfg), cfg.MASKER["ratio"])
    return induced_mask_ratio(grid_of(cfg), blocks)
