"""How far hidden tokens can be guessed by copying their neighbours (paper, Figures 4 and 7)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimpac_ext.config import LoadedConfig
from vimpac_ext.engine.figures.clips import (
    NamedClip,
    drawing_tokenizer,
    frame_rate,
    read_clips,
)
from vimpac_ext.maskers import BlockMasker, UniformMasker
from vimpac_ext.visualization import (
    Block,
    Row,
    grey_out,
    nearest_visible,
    save_figure,
    to_images,
)

_logger = logging.getLogger(__name__)

RATIOS = (0.15, 0.45)  # of the paper
_FRAMES_WIDTH = 640  # of the fourteen rows that the paper's ratios need


@dataclass(frozen=True)
class CopyResult:
    """How well copies do against one kind of mask; means over videos and masks.

    Attributes:
        masker: "uniform" or "block".
        ratio: share of the tokens that was asked for.
        hidden: share that was hidden.
        space: share of the hidden tokens whose nearest visible one in the frame is equal.
        space_time: likewise with the nearest one over all frames.
        num_masks: over how many masks, of all videos together.
    """

    masker: str
    ratio: float
    hidden: float
    space: float
    space_time: float
    num_masks: int


def draw_copies(
    loaded: LoadedConfig,
    picture: Path,
    videos: Sequence[str] = (),
    seed: int = 0,
    ratios: Sequence[float] = RATIOS,
    num_masks: int = 20,
) -> list[CopyResult]:
    """Draws what copy-paste makes of uniformly and block-masked tokens, decoded by the tokenizer.

    Args:
        loaded: configuration with a tokenizer, from `vimpac_ext.engine.prepare`.
        picture: PNG, GIF or MP4 file to write.
        videos: files; none = the first video of TRAIN.DATASET.
        seed: of the masks.
        ratios: shares of tokens to hide.
        num_masks: of each kind and video, for the numbers; the first one is drawn.

    Returns:
        One result for each ratio and masker.

    Raises:
        ConfigError: if the tokenizer cannot draw.
        ValueError: if a ratio is not between 0 and 1, or there is no mask.
        MissingInputError: if there is no data set to take a video of.
        VideoDecodeError: for a bad video.
    """
    if num_masks < 1:
        raise ValueError(f"num_masks={num_masks} must be at least 1")
    tokenizer = drawing_tokenizer(loaded)
    blocks = []
    trials: dict[tuple[str, float], list[Tensor]] = {}
    for clip in read_clips(loaded, videos):
        with torch.inference_mode():
            tokens = tokenizer.encode(clip.frames)  # (N, h, w)
            images = to_images(tokenizer.decode(tokens))
        rows = [Row("original", to_images(clip.frames)), Row("tokenizer's\nreconstruction", images)]
        for ratio in ratios:
            for kind, masker in copy_maskers(ratio, tokens).items():
                generator = torch.Generator(tokens.device).manual_seed(seed)
                masks = usable_masks(masker(tokens.expand(num_masks, *tokens.shape), generator))
                trials.setdefault((kind, ratio), []).append(copy_shares(tokens, masks))
                rows += _rows(clip, tokens, masks[0], f"{kind} {ratio:.0%}", tokenizer)
        blocks.append(Block(clip.name, loaded.cfg.DATA.NUM_FRAMES, tuple(rows)))
    save_figure(picture, blocks, frame_rate(loaded.cfg), _FRAMES_WIDTH)
    results = [_result(*key, torch.cat(shares)) for key, shares in trials.items()]
    for result in results:
        _logger.info(
            "%s %.0f %%: %.1f %% hidden; of these the copy in space is right for %.1f %%, in space "
            "and time for %.1f %% (means over %d masks)",
            result.masker,
            *(100 * share for share in (result.ratio, result.hidden)),
            *(100 * share for share in (result.space, result.space_time)),
            result.num_masks,
        )
    _logger.info("wrote %s", picture)
    return results


def copy_shares(tokens: Tensor, masks: Tensor) -> Tensor:
    """Share of hidden tokens, and how many of these are copied right.

    Args:
        tokens: int64 (T, h, w).
        masks: bool (K, T, h, w), each hiding something, but not everything.

    Returns:
        float64 (K, 3): share hidden; share of these right by a copy in space, and in space-time.
    """
    shares = []
    for mask in masks:
        right = [
            (nearest_visible(tokens, mask, spatial)[mask] == tokens[mask]).double().mean().item()
            for spatial in (True, False)
        ]
        shares.append([mask.double().mean().item(), *right])
    return torch.tensor(shares, dtype=torch.float64)


def picture_errors(picture: Tensor, original: Tensor, mask: Tensor) -> tuple[float, float]:
    """Squared errors in the hidden part: a picture's, and those of one colour, the original's mean.

    Args:
        picture: float (T, 3, H, W).
        original: likewise.
        mask: bool (T, h, w), True = hidden; h divides H, and w divides W.

    Returns:
        Two sums over the hidden pixels and colour channels.
    """
    height, width = (
        size // cells for size, cells in zip(original.shape[2:], mask.shape[1:], strict=True)
    )
    where = mask.repeat_interleave(height, 1).repeat_interleave(width, 2)[:, None]
    where = where.expand_as(original)
    mean = original.mean((0, 2, 3), keepdim=True)
    wrong, blank = (
        (other - original)[where].double().square().sum().item() for other in (picture, mean)
    )
    return wrong, blank


def relative_error(wrong: float, blank: float) -> float:
    """0 = the same picture, 1 = no better than one colour; also 1 for any error of one colour."""
    return wrong / blank if blank else float(wrong > 0)


def usable_masks(masks: Tensor) -> Tensor:
    """Those that hide something, but not everything: with others there is nothing to copy."""
    hidden = masks.flatten(1)
    usable = masks[hidden.any(1) & ~hidden.all(1)]
    if not len(usable):
        raise ValueError(
            f"none of {len(masks)} masks on a grid of {tuple(masks.shape[1:])} tokens hides a part "
            "of them; take a larger DATA.TRAIN_CROP_SIZE or another ratio"
        )
    return usable


def copy_maskers(ratio: float, tokens: Tensor) -> dict[str, Any]:
    """The two maskers that are compared, hiding about this share of a clip's tokens (T, h, w)."""
    return _maskers_for(ratio, (tokens.shape[0], tokens.shape[1], tokens.shape[2]))


@cache
def _maskers_for(ratio: float, grid: tuple[int, int, int]) -> dict[str, Any]:
    return {"uniform": UniformMasker(ratio), "block": BlockMasker(ratio=ratio, grid=grid)}


def _rows(clip: NamedClip, tokens: Tensor, mask: Tensor, label: str, tokenizer: Any) -> list[Row]:
    images = to_images(clip.frames)
    with torch.inference_mode():
        original = tokenizer.decode(tokens)
    rows = [Row(f"{label}\n({mask.float().mean():.0%} hidden)", grey_out(images, mask))]
    for spatial, name in ((True, "in space"), (False, "in space-time")):
        copied = nearest_visible(tokens, mask, spatial)
        right = (copied[mask] == tokens[mask]).float().mean().item()
        with torch.inference_mode():
            decoded = tokenizer.decode(copied)
        error = relative_error(*picture_errors(decoded, original, mask))
        label = f"copy {name}\n{right:.0%} right\n{error:.0%} error"
        rows.append(Row(label, to_images(decoded)))
    return rows


def _result(masker: str, ratio: float, shares: Tensor) -> CopyResult:
    hidden, space, space_time = shares.mean(dim=0).tolist()
    return CopyResult(masker, ratio, hidden, space, space_time, len(shares))
