"""Original, tokenized, masked and completed clips, one below the other (paper, Figure 8)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vimpac_ext.visualization.sheet import Block, Image, Images, Row, draw_sheet, enlarge

GREY = 128  # of hidden tokens


@dataclass(frozen=True)
class Reconstruction:
    """A clip, what its tokens keep of it, and what a model makes of the part that it sees.

    All images are uint8 (N, H, W, 3), where N < ``num_frames`` if the video is too short.

    Attributes:
        title: names the clip.
        num_frames: frames of a whole clip.
        original: the frames.
        tokenized: decoded from the tokens of the frames.
        masked: the frames with hidden tokens greyed out.
        completed: decoded from the tokens, with the model's predictions for the hidden ones.
        mask_ratio: share of the tokens that are hidden; padding is not counted.
        accuracy: share of the hidden tokens whose prediction is the right one, 0 without any.
    """

    title: str
    num_frames: int
    original: Images
    tokenized: Images
    masked: Images
    completed: Images
    mask_ratio: float
    accuracy: float

    @property
    def block(self) -> Block:
        """What is drawn, from top to bottom."""
        rows = (
            Row("original", self.original),
            Row("tokenizer's\nreconstruction", self.tokenized),
            Row(f"masked\n({self.mask_ratio:.0%} hidden)", self.masked),
            Row("model's\nreconstruction", self.completed),
        )
        return Block(self.title, self.num_frames, rows)


def to_images(frames: Tensor) -> Images:
    """Pixels for showing: float (N, 3, H, W) in [0, 1] -> uint8 (N, H, W, 3)."""
    pixels = (frames.float() * 255).round().clamp(0, 255).byte()
    images: Images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return np.ascontiguousarray(images)


def grey_out(images: Images, mask: Tensor) -> Images:
    """Covers the squares of hidden tokens.

    Args:
        images: uint8 (N, H, W, 3).
        mask: bool (N, h, w), True = hidden; h divides H, and w divides W.

    Returns:
        uint8 (N, H, W, 3), `GREY` where hidden.
    """
    height, width = (
        size // tokens for size, tokens in zip(images.shape[1:3], mask.shape[1:], strict=True)
    )
    hidden = enlarge(mask.cpu().numpy(), height, width)  # (N, H, W)
    assert hidden.shape == images.shape[:3], (mask.shape, images.shape)
    return np.where(hidden[..., None], np.uint8(GREY), images)


def fill_hidden(tokens: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
    """Puts predictions in the place of hidden tokens and keeps all others.

    Args:
        tokens: int64 (..., T, h, w).
        mask: bool, same shape, True = hidden.
        predicted: int64 (M,), in the order of ``tokens[mask]``.
    """
    return torch.masked_scatter(tokens, mask, predicted)


def draw_reconstructions(reconstructions: Sequence[Reconstruction]) -> Image:
    """Draws a block for each clip: a labelled row for each of its versions, a column a frame.

    Small frames are enlarged without smoothing. Frames that a short video lacks are left white.

    Args:
        reconstructions: clips, at least one.

    Returns:
        uint8 (H, W, 3).
    """
    return draw_sheet([reconstruction.block for reconstruction in reconstructions])
