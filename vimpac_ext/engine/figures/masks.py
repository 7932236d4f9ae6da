"""What each registered masker hides of a clip (paper, Figure 2)."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vimpac_ext.build import BuildError, build
from vimpac_ext.config import LoadedConfig
from vimpac_ext.engine.assembly import token_grid
from vimpac_ext.engine.figures.clips import frame_rate, read_clips
from vimpac_ext.registries import MASKERS
from vimpac_ext.structures import SpecialTokens, TokenGrid
from vimpac_ext.visualization import Block, Row, grey_out, save_figure, to_images

_logger = logging.getLogger(__name__)


def draw_masks(
    loaded: LoadedConfig, picture: Path, videos: Sequence[str] = (), seed: int = 0
) -> dict[str, float]:
    """Draws a mask of every registered masker on the middle clip of each video.

    The configured masker has the configuration's arguments, the others have their defaults.

    Args:
        loaded: configuration, from `vimpac_ext.engine.prepare`.
        picture: PNG, GIF or MP4 file to write.
        videos: files; none = the first video of TRAIN.DATASET.
        seed: of the masks.

    Returns:
        Name of each masker -> share of the tokens that it hid, over all videos; padding is not
        counted. A masker that cannot do without arguments is absent; the log says so.

    Raises:
        MissingInputError: if there is no data set to take a video of.
        VideoDecodeError: for a bad video.
    """
    cfg = loaded.cfg
    blocks = []
    hidden: dict[str, list[float]] = {}
    for clip in read_clips(loaded, videos):
        images = to_images(clip.frames)
        rows = [Row("original", images)]
        grid = token_grid(cfg, cfg.DATA.TRAIN_CROP_SIZE)
        # A model is given whole clips: where the video is too short they end in padding.
        tokens = torch.zeros((1, *grid), dtype=torch.int64, device=clip.frames.device)
        tokens[:, len(images) :] = SpecialTokens(cfg.DATA.VOCAB_SIZE).pad
        for name, masker in _maskers(loaded, grid):
            generator = torch.Generator(clip.frames.device).manual_seed(seed)
            mask = masker(tokens, generator)[0, : len(images)]
            share = mask.float().mean().item()
            hidden.setdefault(name, []).append(share)
            rows.append(Row(f"{name}\n({share:.0%} hidden)", grey_out(images, mask)))
        blocks.append(Block(clip.name, cfg.DATA.NUM_FRAMES, tuple(rows)))
    save_figure(picture, blocks, frame_rate(cfg))
    _logger.info("wrote %s", picture)
    return {name: sum(shares) / len(shares) for name, shares in hidden.items()}


def _maskers(loaded: LoadedConfig, grid: TokenGrid) -> Iterator[tuple[str, Any]]:
    for name in sorted(name for name, _ in MASKERS):
        section = {"NAME": name}
        if name == loaded.cfg.MASKER.NAME:
            section = dict(loaded.cfg.MASKER)
        try:
            masker = build(
                MASKERS, section, "MASKER", grid=grid, vocab_size=loaded.cfg.DATA.VOCAB_SIZE
            )
        except BuildError as error:
            _logger.warning("%s is not drawn: %s. Set MASKER.NAME and these", name, error)
            continue
        yield name, masker
