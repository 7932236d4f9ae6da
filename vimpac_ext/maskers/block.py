"""Block masking (paper, Section 3.2 and Appendix B)."""

import logging
from typing import ClassVar

import torch
from torch import Tensor

from vimpac_ext.maskers.draws import uniform_draws
from vimpac_ext.maskers.induced_ratio import (
    induced_mask_ratio,
    longest_block,
    num_blocks_for_ratio,
)
from vimpac_ext.registries import MASKERS

_logger = logging.getLogger(__name__)
DEFAULT_NUM_BLOCKS = 5


@MASKERS.register()
class BlockMasker:
    """Hides the union of random boxes of tokens, drawn anew for each clip.

    Along the frames a box is 1 to floor(2T/3) long, along height and width 1 to half the grid
    (at least one token may be hidden on any grid); all lengths, then all positions, are equally
    likely. The paper's text rounds 2T/3 up, but its Table 10 belongs to rounding down.

    Args:
        num_blocks: boxes per clip; 5 where neither this nor `ratio` is given.
        ratio: instead of `num_blocks`, the share of tokens to hide: takes the number of boxes
            whose induced ratio (`induced_mask_ratio`) on `grid` is closest.
        grid: frames, height and width of the clips in tokens; needed by `ratio` only.

    Raises:
        ValueError: if there is less than one box, if `num_blocks` and `ratio` are both given, or
            if `ratio` is not between 0 and 1 or comes without a grid.
    """

    ignores_tokens: ClassVar[bool] = True

    def __init__(
        self,
        num_blocks: int | None = None,
        ratio: float | None = None,
        grid: tuple[int, int, int] | None = None,
    ) -> None:
        if ratio is not None:
            if num_blocks is not None:
                raise ValueError(
                    f"BlockMasker takes num_blocks={num_blocks} or ratio={ratio}, not both; set "
                    "the other to null"
                )
            num_blocks = _num_blocks(ratio, grid)
        elif num_blocks is None:
            num_blocks = DEFAULT_NUM_BLOCKS
        if num_blocks < 1:
            raise ValueError(f"num_blocks={num_blocks} must be at least 1")
        self.num_blocks = num_blocks

    def __call__(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws a mask.

        Args:
            tokens: int64 (B, T, H, W); only its shape and device matter.
            generator: source of randomness, on any device; None = torch's.

        Returns:
            bool (B, T, H, W), True = hidden.
        """
        return self.blocks(tokens, generator).any(dim=1)

    def blocks(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws the single blocks of a mask; the same ones as a call with the same generator.

        Args:
            tokens: int64 (B, T, H, W); only its shape and device matter.
            generator: source of randomness, on any device; None = torch's.

        Returns:
            bool (B, num_blocks, T, H, W), True = hidden by that block.
        """
        return self.blocks_of(self.draw(tokens, generator), tokens)

    def draw(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The random numbers of each clip's mask, float32 (B, 2, 3, num_blocks): sizes, places."""
        shape = (2, 3, len(tokens), self.num_blocks)
        return uniform_draws(shape, tokens.device, generator).movedim(2, 0)

    def mask_of(self, drawn: Tensor, tokens: Tensor) -> Tensor:
        """The mask that follows from the numbers of `draw`, as that of a call."""
        return self.blocks_of(drawn, tokens).any(dim=1)

    def blocks_of(self, drawn: Tensor, tokens: Tensor) -> Tensor:
        """The blocks that follow from the numbers of `draw`, as those of `blocks`."""
        grid = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
        lengths, starts = [], []
        for axis, (size, longest) in enumerate(zip(grid, longest_block(grid), strict=True)):
            lengths.append(1 + (drawn[:, 0, axis] * longest).long())  # (B, blocks)
            starts.append((drawn[:, 1, axis] * (size - lengths[-1] + 1)).long())
        return single_blocks(torch.stack(lengths, -1), torch.stack(starts, -1), grid)


def _num_blocks(ratio: float, grid: tuple[int, int, int] | None) -> int:
    if grid is None:
        raise ValueError(f"BlockMasker needs the grid to find the number of blocks for {ratio=}")
    num_blocks = num_blocks_for_ratio(grid, ratio)
    _logger.info(
        "BlockMasker: %d blocks hide %.1f %% of a grid of %s tokens (asked for: %.1f %%)",
        num_blocks,
        100 * induced_mask_ratio(grid, num_blocks),
        " x ".join(map(str, grid)),
        100 * ratio,
    )
    return num_blocks


def single_blocks(lengths: Tensor, starts: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Each box as a mask of its own.

    Args:
        lengths: int64 (B, blocks, 3), the boxes' size along frames, height and width.
        starts: int64 (B, blocks, 3), their first cells.
        grid: frames, height and width in tokens.

    Returns:
        bool (B, blocks, T, H, W).
    """
    frames, rows, columns = (
        _covers(lengths[..., axis], starts[..., axis], size) for axis, size in enumerate(grid)
    )  # (B, blocks, size)
    places = rows[..., :, None] & columns[..., None, :]  # (B, blocks, H, W)
    return frames[..., None, None] & places[:, :, None]


def blocks_to_mask(lengths: Tensor, starts: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The union of boxes: bool (B, T, H, W). Arguments as in `single_blocks`."""
    return single_blocks(lengths, starts, grid).any(dim=1)


def _covers(lengths: Tensor, starts: Tensor, size: int) -> Tensor:
    cells = torch.arange(size, device=lengths.device)
    return (cells >= starts[..., None]) & (cells < (starts + lengths)[..., None])
