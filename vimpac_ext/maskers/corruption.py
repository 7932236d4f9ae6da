"""From a mask to the corrupted clip that the model sees."""

from torch import Tensor

from vimpac_ext.structures import SpecialTokens


def corrupt(tokens: Tensor, mask: Tensor, special: SpecialTokens) -> tuple[Tensor, Tensor]:
    """Hides the masked tokens, except padding, which there is no point in predicting.

    Args:
        tokens: int64 (B, T, H, W).
        mask: bool, same shape, True = to be hidden.
        special: ids of padding and of hidden tokens.

    Returns:
        The corrupted tokens, and the mask without padding. The targets are ``tokens[mask]`` with
        that mask.
    """
    mask = mask & (tokens != special.pad)
    return tokens.masked_fill(mask, special.mask), mask
