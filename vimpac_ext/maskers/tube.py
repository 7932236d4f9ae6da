"""Tube masking: the same places in every frame, so that no frame gives a hidden token away."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from vimpac_ext.maskers.draws import uniform_draws
from vimpac_ext.registries import MASKERS


@MASKERS.register()
class TubeMasker:
    """Hides the same spatial positions in all frames of a clip; other positions in each clip.

    In every clip exactly ``ratio * H * W`` positions are hidden, rounded to the nearest whole
    number (halves up) but at least one; all choices of so many positions are equally likely.

    Args:
        ratio: share of the positions.

    Raises:
        ValueError: if it is not between 0 and 1.
    """

    ignores_tokens: ClassVar[bool] = True

    def __init__(self, ratio: float = 0.15) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio={ratio} must be between 0 and 1")
        self.ratio = ratio

    def __call__(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws a mask.

        Args:
            tokens: int64 (B, T, H, W); only its shape and device matter.
            generator: source of randomness, on any device; None = torch's.

        Returns:
            bool (B, T, H, W), True = hidden.
        """
        return self.mask_of(self.draw(tokens, generator), tokens)

    def draw(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The random numbers of each clip's mask, float32 (B, H * W)."""
        shape = (len(tokens), tokens.shape[2] * tokens.shape[3])
        return uniform_draws(shape, tokens.device, generator)

    def mask_of(self, drawn: Tensor, tokens: Tensor) -> Tensor:
        """The mask that follows from the numbers of `draw`, as that of a call."""
        num_clips, frames, height, width = tokens.shape
        num_hidden = max(1, math.floor(self.ratio * height * width + 0.5))
        hidden = drawn.argsort(dim=1)[:, :num_hidden]  # (B, hidden)
        mask = torch.zeros_like(drawn, dtype=torch.bool).scatter_(1, hidden, True)
        return mask.view(num_clips, 1, height, width).repeat(1, frames, 1, 1)
