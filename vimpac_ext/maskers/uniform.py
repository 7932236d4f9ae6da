"""Independent masking of single tokens (paper, Section 5.2)."""

from typing import ClassVar

import torch
from torch import Tensor

from vimpac_ext.maskers.draws import uniform_draws
from vimpac_ext.registries import MASKERS


@MASKERS.register()
class UniformMasker:
    """Hides each token with the same probability, independently.

    Args:
        ratio: the probability.

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
        """The random numbers of each clip's mask, float32 (B, T, H, W)."""
        return uniform_draws(tokens.shape, tokens.device, generator)

    def mask_of(self, drawn: Tensor, tokens: Tensor) -> Tensor:
        """The mask that follows from the numbers of `draw`, as that of a call."""
        return drawn < self.ratio
