"""Ways to compute the attention of short rows with CLS, and what they are checked against.

All take and give what `attend_rows` does, which is the one that the backbone uses. Dropout is left
out; padding is not.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_ext.backbones.vimpac.axis_attention import (
    Pattern,
    attend_rows,
    grid_to_rows,
    rows_to_grid,
)

RowAttention = Callable[
    [Sequence[Tensor], Sequence[Tensor], Tensor, Pattern], tuple[Tensor, Tensor]
]
PACKED_LENGTH = 128  # vectors of a packed row, at most


def _rows(tokens: Tensor, pattern: Pattern) -> Tensor:
    """(B, T, H, W, h, e) -> (B, R, h, n, e)."""
    rows = grid_to_rows(tokens, pattern)
    return rows.reshape(len(rows), -1, *rows.shape[-3:])


def reference(
    cls: Sequence[Tensor], tokens: Sequence[Tensor], key_bias: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """Row by row, as the formula is written; slow. See `attend_rows`."""
    grid = tokens[0].shape[1:4]
    rows = zip(*(_rows(part, pattern).unbind(1) for part in tokens), strict=True)
    of_rows, of_cls = [], []
    for number, row in enumerate(rows):
        query, key, value = (
            torch.cat([one[:, :, None], part], dim=2) for one, part in zip(cls, row, strict=True)
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1]) + key_bias[:, number]
        result = scores.softmax(dim=-1) @ value
        of_cls.append(result[:, :, 0])
        of_rows.append(result[:, :, 1:])
    tokens_out = rows_to_grid(torch.stack(of_rows, dim=1), grid, pattern)
    return torch.stack(of_cls).mean(dim=0), tokens_out


def one_call(
    cls: Sequence[Tensor], tokens: Sequence[Tensor], key_bias: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """PyTorch's fused attention, each row [CLS; row] a sequence of its own."""
    return _fused(cls, tokens, key_bias, pattern, 1)


def packed(
    cls: Sequence[Tensor], tokens: Sequence[Tensor], key_bias: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """PyTorch's fused attention on several rows [CLS; row] in one sequence, apart by a mask."""
    num_rows, length = key_bias.shape[1], key_bias.shape[-1]
    fitting = max(1, PACKED_LENGTH // length)
    rows = max(n for n in range(1, fitting + 1) if num_rows % n == 0)
    return _fused(cls, tokens, key_bias, pattern, rows)


def _fused(
    cls: Sequence[Tensor],
    tokens: Sequence[Tensor],
    key_bias: Tensor,
    pattern: Pattern,
    together: int,
) -> tuple[Tensor, Tensor]:
    batch, num_rows, *_, length = key_bias.shape
    grid = tokens[0].shape[1:4]
    query, key, value = (
        _pack(one, part, pattern, together) for one, part in zip(cls, tokens, strict=True)
    )
    mask = key_bias.to(query.dtype).view(batch, num_rows // together, 1, 1, together * length)
    if together > 1:
        row = torch.arange(together, device=query.device).repeat_interleave(length)
        mask = mask.masked_fill(row[:, None] != row, -math.inf)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.flatten(0, 1))
    mixed = mixed.unflatten(2, (together, length)).unflatten(0, (batch, -1))
    rows = mixed.transpose(2, 3).flatten(1, 2)  # (B, R, h, 1+n, e)
    return rows[..., 0, :].mean(dim=1), rows_to_grid(rows[..., 1:, :], grid, pattern)


def _pack(cls: Tensor, tokens: Tensor, pattern: Pattern, together: int) -> Tensor:
    """(B, h, e) and (B, T, H, W, h, e) -> (B * R / g, h, g * (1+n), e) for g rows together."""
    rows = _rows(tokens, pattern)
    one = cls[:, None, :, None].expand(*rows.shape[:3], 1, -1)
    rows = torch.cat([one, rows], dim=-2).unflatten(1, (-1, together))
    return rows.transpose(2, 3).flatten(3, 4).flatten(0, 1)


def folded(
    cls: Sequence[Tensor], tokens: Sequence[Tensor], key_bias: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """Products with CLS apart from those with the row; only scores are joined, for the softmax."""
    grid = tokens[0].shape[1:4]
    query, key, value = (_rows(part, pattern) for part in tokens)
    of_cls = [one[:, None, :, None] for one in cls]  # (B, 1, h, 1, e)
    scale = 1.0 / math.sqrt(query.shape[-1])
    bias = key_bias.to(query.dtype)
    to_cls = query @ of_cls[1].mT  # (B, R, h, n, 1)
    cls_to_cls = (of_cls[0] @ of_cls[1].mT).expand(-1, query.shape[1], -1, -1, -1)
    scores = torch.cat([to_cls, query @ key.mT], dim=-1)
    weights = torch.add(bias, scores, alpha=scale).softmax(dim=-1)
    result = weights[..., 1:] @ value + weights[..., :1] * of_cls[2]
    cls_scores = torch.cat([cls_to_cls, of_cls[0] @ key.mT], dim=-1)
    cls_weights = torch.add(bias, cls_scores, alpha=scale).softmax(dim=-1)
    cls_rows = cls_weights[..., 1:] @ value + cls_weights[..., :1] * of_cls[2]
    return cls_rows.squeeze(-2).mean(dim=1), rows_to_grid(result, grid, pattern)


def alternatives(device: torch.device) -> dict[str, RowAttention]:
    """Name -> way, those that run on a device; the backbone's own comes first.

    Args:
        device: on a GPU, with Triton installed, "triton" is among them.
    """
    ways: dict[str, RowAttention] = {
        "backbone's own": attend_rows,
        "fused, a row each": one_call,
        "fused, rows packed": packed,
        "CLS folded in": folded,
    }
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from vimpac_ext.benchmarks.triton_attention import short_rows

        ways["triton"] = short_rows
    return ways
