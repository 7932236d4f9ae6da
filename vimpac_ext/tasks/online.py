"""Tokens made within the training step, in place of a token store."""

from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.structures import SpecialTokens

UNKNOWN = -1  # in the place of a token that has not been made yet


class OnlineTokenizer:
    """Turns pixel clips into token clips with a frozen tokenizer.

    It is no module, so that the tokenizer is in no checkpoint and no optimizer; it moves the
    tokenizer to where the clips are.

    Args:
        tokenizer: as the registry's contract says.
        special: ids of the vocabulary.
    """

    def __init__(self, tokenizer: nn.Module, special: SpecialTokens) -> None:
        self.tokenizer: Any = tokenizer
        self.special = special
        self._device: torch.device | None = None

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Encodes clips.

        Args:
            clips: float (B, 3, T, H, W) in [0, 1]; frames of NaN are padding.

        Returns:
            int64 (B, T, h, w), [PAD] at padding frames.
        """
        if self._device != clips.device:
            self.tokenizer.to(clips.device)
            self._device = clips.device
        frames = clips.transpose(1, 2)  # (B, T, 3, H, W)
        tokens: Tensor = self.tokenizer.encode(frames.nan_to_num().flatten(0, 1))
        return self._padded(tokens.unflatten(0, frames.shape[:2]), clips)

    def unknown(self, clips: Tensor) -> Tensor:
        """What is known of the tokens before they are made: `UNKNOWN`, [PAD] at padding frames.

        Args:
            clips: as for a call.

        Returns:
            int64 (B, T, h, w).
        """
        batch, _, frames, *sizes = clips.shape
        grid = (size // self.tokenizer.stride for size in sizes)
        tokens = torch.full((batch, frames, *grid), UNKNOWN, device=clips.device)
        return self._padded(tokens, clips)

    def _padded(self, tokens: Tensor, clips: Tensor) -> Tensor:
        is_padding = clips[:, 0, :, 0, 0].isnan()  # (B, T)
        return tokens.masked_fill(is_padding[:, :, None, None], self.special.pad)
