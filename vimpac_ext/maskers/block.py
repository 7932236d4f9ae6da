"""Block masking (paper, Section 3.2 and Appendix B)."""

import torch
from torch import Tensor

from vimpac_ext.registries import MASKERS


@MASKERS.register()
class BlockMasker:
    """Hides the union of random boxes of tokens, drawn anew for each clip.

    Along the frames a box is 1 to floor(2T/3) long, along height and width 1 to half the grid
    (at least one token may be hidden on any grid); all lengths, then all positions, are equally
    likely. The paper's text rounds 2T/3 up, but its Table 10 belongs to rounding down.

    Args:
        num_blocks: boxes per clip.

    Raises:
        ValueError: if there is less than one box.
    """

    def __init__(self, num_blocks: int = 5) -> None:
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
        _, frames, height, width = tokens.shape
        device = tokens.device if generator is None else generator.device
        # In [0, 1): even in float32, floor(draw * n) is at most n-1.
        draws = torch.rand(
            (2, 3, len(tokens), self.num_blocks), generator=generator, device=device
        ).to(tokens.device)
        lengths, starts = [], []
        for axis, (size, longest) in enumerate(
            ((frames, 2 * frames // 3), (height, height // 2), (width, width // 2))
        ):
            lengths.append(1 + (draws[0, axis] * max(1, longest)).long())  # (B, blocks)
            starts.append((draws[1, axis] * (size - lengths[-1] + 1)).long())
        return blocks_to_mask(
            torch.stack(lengths, -1), torch.stack(starts, -1), (frames, height, width)
        )


def blocks_to_mask(lengths: Tensor, starts: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The union of boxes.

    Args:
        lengths: int64 (B, blocks, 3), the boxes' size along frames, height and width.
        starts: int64 (B, blocks, 3), their first cells.
        grid: frames, height and width in tokens.

    Returns:
        bool (B, T, H, W).
    """
    frames, rows, columns = (
        _covers(lengths[..., axis], starts[..., axis], size) for axis, size in enumerate(grid)
    )  # (B, blocks, size)
    places = rows[..., :, None] & columns[..., None, :]  # (B, blocks, H, W)
    return (frames[..., None, None] & places[:, :, None]).any(dim=1)


def _covers(lengths: Tensor, starts: Tensor, size: int) -> Tensor:
    cells = torch.arange(size, device=lengths.device)
    return (cells >= starts[..., None]) & (cells < (starts + lengths)[..., None])
