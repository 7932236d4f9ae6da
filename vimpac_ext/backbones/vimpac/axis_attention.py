"""Multi-head attention along single axes of a (T, H, W) grid, with CLS in every row.

A *row* is a line of the grid along the attended axis. Each row is attended as [CLS; row], so CLS
takes part in every row of a clip; its result is the mean over them. The authors' code differs
from the paper's Eqs. 9, 12 and 13 here (heads, scale, biases, CLS in the context); we follow the
code, to which the released weights belong.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.backbones.vimpac.dropout import fast_dropout

AXES = {"T": 1, "H": 2, "W": 3}  # position in (B, T, H, W)

Layout = tuple[tuple[int, ...], ...]


def parse_layout(layout: str) -> Layout:
    """Reads a layout such as "T,H|W": blocks in sequence (","), axes of a block in parallel ("|").

    Returns:
        The attended axes of each block, as positions in (B, T, H, W): ((1,), (2, 3)).

    Raises:
        ValueError: if the string is anything else.
    """
    blocks = [block.split("|") for block in layout.split(",")]
    if any(axis not in AXES for block in blocks for axis in block):
        raise ValueError(
            f"layout={layout!r} is not understood: write the axes T, H and W (upper case, no "
            'spaces) joined by "," (one block after the other) and "|" (side by side in one '
            'block), for example "T,H|W" or "T,H,W"'
        )
    return tuple(tuple(AXES[axis] for axis in block) for block in blocks)


def key_biases(is_pad: Tensor, axes: set[int]) -> dict[int, Tensor]:
    """What is added to the attention scores so that no query looks at padding.

    It is built without asking whether there is any padding: the answer would stall a GPU, and
    `attend` needs one pass over the scores for the scale anyway.

    Args:
        is_pad: bool (B, T, H, W).
        axes: attended axes, as positions in (B, T, H, W).

    Returns:
        For each axis of length n, float32 (B, ., ., 1, 1, 1+n): 0, or -inf at padded keys. CLS, at
        position 0, is never padded, so no softmax is empty.
    """
    bias = torch.zeros(is_pad.shape, device=is_pad.device).masked_fill_(is_pad, -math.inf)
    return {a: F.pad(bias.movedim(a, -1), (1, 0))[..., None, None, :] for a in axes}


def attend(
    query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor, dropout: float = 0.0
) -> Tensor:
    """softmax(q kT / sqrt(e) + bias) v, with dropout on the probabilities.

    Written out rather than with `F.scaled_dot_product_attention`: rows are short (6 to 33
    vectors), so the score matrices are smaller than the vectors, and on CPU forward and backward
    take 0.55 to 0.95 of its time.

    Args:
        query: (..., S, e).
        key: (..., S, e).
        value: (..., S, e).
        key_bias: broadcastable to the scores (..., S, S).
        dropout: probability that an attention weight is dropped.

    Returns:
        (..., S, e).
    """
    scores = query @ key.transpose(-1, -2)
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = torch.add(key_bias.to(scores.dtype), scores, alpha=scale)  # bias + scale * scores
    weights = fast_dropout(F.softmax(scores, dim=-1), dropout)
    return weights @ value


def _rows_with_cls(cls: Tensor, tokens: Tensor, axis: int) -> Tensor:
    """(B, h, e) and (B, T, H, W, h, e) -> (B, ., ., h, 1+n, e), in one copy."""
    rows = tokens.movedim(axis, -2)
    cls_rows = cls[:, None, None, :, None].expand(*rows.shape[:-2], 1, -1)
    return torch.cat([cls_rows, rows], dim=-2)


class AxisAttention(nn.Module):
    """Attention along one axis, or along several in parallel, each with its share of the heads.

    Queries, keys and values of CLS are computed once per clip, not once per row. One matrix,
    `qkv`, holds all projections: for each axis in order, its query, key and value rows.

    Args:
        embed_dim: D, width of the input.
        attention_dim: A, width of queries, keys, values and output over all axes.
        num_heads: heads over all axes.
        axes: attended axes, as positions in (B, T, H, W).
        dropout: on the attention probabilities.
    """

    def __init__(
        self,
        embed_dim: int,
        attention_dim: int,
        num_heads: int,
        axes: tuple[int, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if attention_dim % num_heads or num_heads % len(axes):
            raise ValueError(
                f"{num_heads} heads cannot share an attention width of {attention_dim} among "
                f"{len(axes)} parallel axes: the width must be divisible by the heads, and the "
                f"heads by the axes; change embed_dim, num_heads or layout"
            )
        self.axes = axes
        self.dropout = dropout
        # (projections, heads of one axis, head size)
        self.split = (3 * len(axes), num_heads // len(axes), attention_dim // num_heads)
        self.qkv = nn.Linear(embed_dim, 3 * attention_dim)

    def forward(
        self, cls: Tensor, tokens: Tensor, biases: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Attends.

        Args:
            cls: (B, D).
            tokens: (B, T, H, W, D).
            biases: result of `key_biases` for (at least) this block's axes.

        Returns:
            CLS (B, A) and tokens (B, T, H, W, A); the axes' results stand one after the other.
        """
        # One unbind into all parts: its backward is a single copy of the gradients.
        cls_parts = self.qkv(cls).unflatten(-1, self.split).unbind(-3)
        token_parts = self.qkv(tokens).unflatten(-1, self.split).unbind(-3)
        dropout = self.dropout if self.training else 0.0
        cls_results, token_results = [], []
        for index, axis in enumerate(self.axes):
            query, key, value = (
                _rows_with_cls(cls_parts[part], token_parts[part], axis)
                for part in range(3 * index, 3 * index + 3)
            )
            rows = attend(query, key, value, biases[axis], dropout)  # (B, ., ., h, 1+n, e)
            cls_rows, token_rows = rows.split([1, tokens.shape[axis]], dim=-2)
            cls_results.append(cls_rows.squeeze(-2).mean(dim=(1, 2)))  # (B, h, e)
            token_results.append(token_rows.movedim(-2, axis))  # (B, T, H, W, h, e)
        return torch.cat(cls_results, dim=-2).flatten(-2), torch.cat(token_results, -2).flatten(-2)
