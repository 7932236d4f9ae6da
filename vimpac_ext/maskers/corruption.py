"""From a mask to the corrupted clip that the model sees."""

from typing import Literal, get_args

import torch
from torch import Tensor

from vimpac_ext.maskers.draws import integer_draws, uniform_draws
from vimpac_ext.structures import SpecialTokens

Noise = Literal["none", "token", "block"]

# BERT's shares of hidden, random and untouched tokens; the untouched ones are the rest.
HIDDEN_SHARE = 0.8
RANDOM_SHARE = 0.1


def corrupt(
    tokens: Tensor,
    mask: Tensor,
    special: SpecialTokens,
    noise: Noise = "none",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hides the masked tokens, except padding, which there is no point in predicting.

    With noise (BERT's) only 80 % of what is masked is hidden: 10 % is replaced by random tokens
    and 10 % is left as it is. All of it is to be predicted. The choice is made for each token
    ("token", as BERT and the paper) or for each block as a whole ("block", as the authors' code).

    Args:
        tokens: int64 (B, T, H, W).
        mask: bool, same shape, True = to be hidden; for noise "block" the single blocks,
            (B, blocks, T, H, W), where later ones write over earlier ones.
        special: ids of padding and of hidden tokens.
        noise: "none", "token" or "block".
        generator: source of the noise, on any device; None = torch's.

    Returns:
        The corrupted tokens, and the mask (of all blocks together) without padding. The targets
        are ``tokens[mask]`` with that mask.

    Raises:
        ValueError: for another noise, or if the mask's shape does not suit clips and noise.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"noise={noise!r} is not one of {', '.join(get_args(Noise))}")
    blocks = mask if noise == "block" else mask[:, None]
    if blocks.dim() != 5 or blocks.shape[0] != len(tokens) or blocks.shape[2:] != tokens.shape[1:]:
        wanted = "(B, blocks, T, H, W)" if noise == "block" else "(B, T, H, W)"
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} for tokens of shape {tuple(tokens.shape)}; "
            f"noise {noise!r} needs {wanted}"
        )
    mask = blocks.any(dim=1) & (tokens != special.pad)
    if noise == "none":
        return tokens.masked_fill(mask, special.mask), mask
    shape = (*blocks.shape[:2], 1, 1, 1) if noise == "block" else blocks.shape
    choice = uniform_draws(shape, tokens.device, generator)
    random_tokens = integer_draws(special.vocab_size, tokens.shape, tokens.device, generator)
    return replace_blocks(tokens, blocks, choice, random_tokens, special), mask


def replace_blocks(
    tokens: Tensor, blocks: Tensor, choice: Tensor, random_tokens: Tensor, special: SpecialTokens
) -> Tensor:
    """Writes hidden and random tokens block by block, later over earlier; padding stays.

    An untouched block writes nothing: what an earlier block wrote there remains.

    Args:
        tokens: int64 (B, T, H, W).
        blocks: bool (B, blocks, T, H, W).
        choice: float in [0, 1), broadcastable to the shape of `blocks`: below 0.8 = hidden, then
            random up to 0.9, then untouched.
        random_tokens: int64 (B, T, H, W), what random tokens there are.
        special: ids of padding and of hidden tokens.

    Returns:
        int64 (B, T, H, W).
    """
    written = tokens
    for block, draw in zip(blocks.unbind(1), choice.unbind(1), strict=True):
        hidden = block & (draw < HIDDEN_SHARE)
        random = block & (draw >= HIDDEN_SHARE) & (draw < HIDDEN_SHARE + RANDOM_SHARE)
        written = written.masked_fill(hidden, special.mask)
        written = torch.where(random, random_tokens, written)
    return torch.where(tokens == special.pad, tokens, written)
