"""What tokenizers share: checks of what they are given, and the fingerprint of their weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vimpac_ext.files import sha256_of


def check_frames(frames: Tensor, stride: int) -> None:
    """Refuses frames that a tokenizer cannot cut into whole tokens.

    Args:
        frames: float (N, 3, H, W).
        stride: pixels per token along each side.

    Raises:
        ValueError: wrong number of axes or channels, integer frames, or H or W not divisible.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
        raise ValueError(
            "expected float frames in [0, 1] of shape (N, 3, H, W), "
            f"found {frames.dtype} {tuple(frames.shape)}"
        )
    height, width = frames.shape[2:]
    if height % stride or width % stride:
        raise ValueError(
            f"frames of {height} x {width} pixels (height x width) cannot be tokenized: "
            f"both sides must be divisible by {stride}"
        )


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Refuses what cannot be decoded, such as [MASK] and [PAD].

    Args:
        tokens: int64 (N, h, w).
        vocab_size: number of codes.

    Raises:
        ValueError: wrong number of axes, or a token outside the vocabulary.
    """
    if tokens.ndim != 3:
        raise ValueError(f"expected tokens of shape (N, h, w), found {tuple(tokens.shape)}")
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(
            f"tokens must be in 0..{vocab_size - 1}, found {int(tokens.min())}..{int(tokens.max())}"
            "; special tokens (mask, pad) have no picture"
        )


def full_precision(device: torch.device) -> torch.autocast:
    """Switches autocast off: the same frames give the same tokens, whoever calls."""
    return torch.autocast(device.type, enabled=False)


def encoding_precision(device: torch.device, precision: str) -> torch.autocast:
    """Arithmetic of `encode`, whoever calls and with whatever autocast.

    Args:
        device: of the weights.
        precision: "fp32" or "bf16".
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def weights_fingerprint(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Names a tokenizer and its weights, equally in every process.

    Args:
        name: of the tokenizer class.
        tensors: the weights that decide the tokens.

    Returns:
        ``name:`` and 16 hexadecimal digits.
    """
    parts = []
    for key in sorted(tensors):
        array = tensors[key].detach().cpu().contiguous().numpy()
        parts.append(f"{key} {array.dtype.str} {array.shape}")
        parts.append(sha256_of(array.tobytes(), length=64))
    return f"{name}:{sha256_of(*parts)}"
