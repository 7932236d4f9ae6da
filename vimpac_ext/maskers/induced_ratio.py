"""How much a number of random blocks hides, in closed form (paper, Appendix B, Table 10)."""

import itertools

import torch
from torch import Tensor


def longest_block(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Largest size of a block along frames, height and width: floor(2T/3), half of H and of W.

    At least 1, so that there are blocks on any grid; the authors' code fails for one frame.
    """
    frames, height, width = grid
    return max(1, 2 * frames // 3), max(1, height // 2), max(1, width // 2)


def induced_mask_ratio(grid: tuple[int, int, int], num_blocks: int) -> float:
    """Expected share of hidden tokens under `BlockMasker`: mean of 1 - (1 - pT pH pW)^n.

    The mean is over all positions, n is the number of blocks, and p is the probability that one
    block covers the position's frame, row or column.

    Args:
        grid: frames, height and width in tokens.
        num_blocks: blocks per clip.

    Returns:
        Share between 0 and 1, padding not considered.

    Raises:
        ValueError: if a size of the grid or the number of blocks is below 1.
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks={num_blocks} must be at least 1")
    return _expected_share(_cover_probability(grid), num_blocks)


def num_blocks_for_ratio(grid: tuple[int, int, int], ratio: float) -> int:
    """The number of blocks whose induced ratio is closest to ``ratio``, as the paper chooses it.

    Args:
        grid: frames, height and width in tokens.
        ratio: wanted share of hidden tokens.

    Raises:
        ValueError: if a size of the grid is below 1 or `ratio` is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} must be between 0 and 1")
    covered = _cover_probability(grid)
    below = 0.0
    for num_blocks in itertools.count(1):  # ends: every position can be covered
        share = _expected_share(covered, num_blocks)
        if share >= ratio:
            return (
                num_blocks if num_blocks == 1 or share - ratio <= ratio - below else num_blocks - 1
            )
        below = share
    raise AssertionError("unreachable")


def _expected_share(covered: Tensor, num_blocks: int) -> float:
    return float((1 - (1 - covered) ** num_blocks).mean())


def _cover_probability(grid: tuple[int, int, int]) -> Tensor:
    """P(one block covers a position), float64 (T, H, W)."""
    if min(grid) < 1:
        raise ValueError(f"all sizes of grid={tuple(grid)} must be at least 1")
    frames, rows, columns = (
        _axis_probability(size, longest)
        for size, longest in zip(grid, longest_block(grid), strict=True)
    )
    return frames[:, None, None] * rows[:, None] * columns


def _axis_probability(size: int, longest: int) -> Tensor:
    """P(one block covers a position along one axis), float64 (size,)."""
    position = torch.arange(size)
    length = torch.arange(1, longest + 1)[:, None]  # all equally likely, as are the starts of each
    first = (position - length + 1).clamp(min=0)
    last = position.minimum(size - length)
    return ((last - first + 1).double() / (size - length + 1)).mean(dim=0)
