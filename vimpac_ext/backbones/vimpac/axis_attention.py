"""Multi-head attention along axes of a (T, H, W) grid, with CLS in every row.

A *pattern* is one axis, or several joined ones. A *row* is the part of the grid that differs in
those axes only: a line for one axis, a plane for two, the whole clip for three. Each row is
attended as [CLS; row], so CLS takes part in every row of a clip; its result is the mean over them.
The authors' code differs from the paper's Eqs. 9, 12 and 13 here (heads, scale, biases, CLS in the
context); we follow the code, to which the released weights belong. It has no joined axes: those
are the first two rows of the paper's Table 14, done by the same rules.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.backbones.vimpac.dropout import fast_dropout

AXES = {"T": 1, "H": 2, "W": 3}  # position in (B, T, H, W)
LONG_ROW = 128  # vectors; see `attend`

Pattern = tuple[int, ...]
Layout = tuple[tuple[Pattern, ...], ...]


def parse_layout(layout: str) -> Layout:
    """Reads a layout such as "T,H|W" or "T,HxW".

    Blocks stand in sequence (","), the patterns of a block in parallel ("|"), and a pattern is an
    axis or some joined by "x".

    Returns:
        The patterns of each block, each pattern as rising positions in (B, T, H, W): "T,H|W" is
        (((1,),), ((2,), (3,))) and "T,HxW" is (((1,),), ((2, 3),)).

    Raises:
        ValueError: if the string is anything else.
    """
    blocks = [[p.split("x") for p in block.split("|")] for block in layout.split(",")]
    patterns = [pattern for block in blocks for pattern in block]
    if any(set(p) - set(AXES) or len(set(p)) < len(p) for p in patterns):
        raise ValueError(
            f"layout={layout!r} is not understood: write the axes T, H and W (upper case, no "
            'spaces) joined by "," (one block after the other), "|" (side by side in one block) '
            'and "x" (attended as one, each axis once), for example "T,H|W", "T,HxW" or "TxHxW"'
        )
    return tuple(
        tuple(tuple(sorted(AXES[axis] for axis in pattern)) for pattern in block)
        for block in blocks
    )


def _other_axes(pattern: Pattern) -> tuple[int, ...]:
    return tuple(axis for axis in AXES.values() if axis not in pattern)


def _row_order(pattern: Pattern) -> tuple[int, ...]:
    """The permutation of (B, T, H, W, h, e) that turns the grid into rows, heads in front."""
    return (0, *_other_axes(pattern), 4, *pattern, 5)


def key_biases(is_pad: Tensor, patterns: set[Pattern]) -> dict[Pattern, Tensor]:
    """What is added to the attention scores so that no query looks at padding.

    It is built without asking whether there is any padding: the answer would stall a GPU, and
    `attend` needs one pass over the scores for the scale anyway.

    Args:
        is_pad: bool (B, T, H, W).
        patterns: attended patterns.

    Returns:
        For each pattern with R rows of n tokens, float32 (B, R, 1, 1, 1+n): 0, or -inf at padded
        keys. CLS, at position 0, is never padded, so no softmax is empty.
    """
    bias = torch.zeros(is_pad.shape, device=is_pad.device).masked_fill_(is_pad, -math.inf)
    biases = {}
    for pattern in patterns:
        others = _other_axes(pattern)
        num_rows = math.prod([is_pad.shape[axis] for axis in others])
        row_length = math.prod([is_pad.shape[axis] for axis in pattern])
        rows = bias.permute(0, *others, *pattern).reshape(len(bias), num_rows, row_length)
        biases[pattern] = F.pad(rows, (1, 0))[:, :, None, None]
    return biases


def attend(
    query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor, dropout: float = 0.0
) -> Tensor:
    """softmax(q kT / sqrt(e) + bias) v, with dropout on the probabilities.

    The rows of single axes are short (6 to 33 vectors): the score matrices are smaller than the
    vectors, and written out it is the faster way on CPU (forward and backward take 0.55 to 0.95 of
    the time of `F.scaled_dot_product_attention` there). From `LONG_ROW` vectors on PyTorch's fused
    kernels are faster and store no scores, which for joined axes would be the largest tensor by
    far. On CPU, though, they know no dropout; asked for it, PyTorch writes the scores out itself,
    with its slower dropout.

    Args:
        query: (B, R, h, S, e).
        key: (B, R, h, S, e).
        value: (B, R, h, S, e).
        key_bias: (B, R, 1, 1, S).
        dropout: probability that an attention weight is dropped.

    Returns:
        (B, R, h, S, e).
    """
    if query.shape[-2] >= LONG_ROW and (dropout == 0.0 or query.device.type != "cpu"):
        # The fused kernels take four dimensions.
        result = F.scaled_dot_product_attention(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            attn_mask=key_bias.to(query.dtype).flatten(0, 1),
            dropout_p=dropout,
        )
        return result.unflatten(0, query.shape[:2])
    scores = query @ key.transpose(-1, -2)
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = torch.add(key_bias.to(scores.dtype), scores, alpha=scale)  # bias + scale * scores
    weights = fast_dropout(F.softmax(scores, dim=-1), dropout)
    return weights @ value


def grid_to_rows(tokens: Tensor, pattern: Pattern) -> Tensor:
    """(B, T, H, W, h, e) -> (B, r1, r2, h, n, e), r1 and r2 the other axes, as far as there are."""
    return tokens.permute(_row_order(pattern)).flatten(-1 - len(pattern), -2)


def _rows_with_cls(cls: Tensor, tokens: Tensor, pattern: Pattern) -> Tensor:
    """(B, h, e) and (B, T, H, W, h, e) -> (B, R, h, 1+n, e), in one copy (two for T and W)."""
    batch, heads, size = cls.shape
    rows = grid_to_rows(tokens, pattern)
    cls = cls.view(batch, *[1] * len(_other_axes(pattern)), heads, 1, size)
    together = torch.cat([cls.expand(*rows.shape[:-2], 1, -1), rows], dim=-2)
    return together.view(batch, math.prod(rows.shape[1:-3]), *together.shape[-3:])


def rows_to_grid(rows: Tensor, grid: Sequence[int], pattern: Pattern) -> Tensor:
    """(B, R, h, n, e) -> (B, T, H, W, h, e), without a copy."""
    order = _row_order(pattern)
    sizes = (len(rows), *grid, rows.shape[2], rows.shape[4])
    grid_order = [order.index(dimension) for dimension in range(6)]
    return rows.reshape([sizes[dimension] for dimension in order]).permute(grid_order)


def attend_rows(
    cls: Sequence[Tensor],
    tokens: Sequence[Tensor],
    key_bias: Tensor,
    pattern: Pattern,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention of every row of a grid over [CLS; row]; all attention of the backbone is this.

    `vimpac_ext.benchmarks.row_attention` has other ways to compute it and what they are checked
    against; ``python tools/benchmark.py attention`` measures them.

    Args:
        cls: query, key and value of CLS, each (B, h, e).
        tokens: query, key and value of the tokens, each (B, T, H, W, h, e).
        key_bias: that of the pattern, of `key_biases`.
        pattern: the axes of a row.
        dropout: probability that an attention weight is dropped.

    Returns:
        CLS, the mean over its rows, (B, h, e), and tokens (B, T, H, W, h, e).
    """
    query, key, value = (_rows_with_cls(*parts, pattern) for parts in zip(cls, tokens, strict=True))
    rows = attend(query, key, value, key_bias, dropout)  # (B, R, h, 1+n, e)
    cls_rows, token_rows = rows.split([1, rows.shape[-2] - 1], dim=-2)
    return cls_rows.squeeze(-2).mean(1), rows_to_grid(token_rows, tokens[0].shape[1:4], pattern)


class AxisAttention(nn.Module):
    """Attention along one pattern, or along several in parallel, each with its share of the heads.

    Queries, keys and values of CLS are computed once per clip, not once per row. One matrix,
    `qkv`, holds all projections: for each pattern in order, its query, key and value rows. A
    pattern has the same projections whether it joins axes or not.

    Args:
        embed_dim: D, width of the input.
        attention_dim: A, width of queries, keys, values and output over all patterns.
        num_heads: heads over all patterns.
        patterns: one block of `parse_layout`'s result.
        dropout: on the attention probabilities.

    Raises:
        ValueError: if the heads do not divide the width, or the patterns the heads.
    """

    def __init__(
        self,
        embed_dim: int,
        attention_dim: int,
        num_heads: int,
        patterns: tuple[Pattern, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if attention_dim % num_heads or num_heads % len(patterns):
            raise ValueError(
                f"{num_heads} heads cannot share an attention width of {attention_dim} among "
                f"{len(patterns)} parallel axes: the width must be divisible by the heads, and "
                f"the heads by the axes; change embed_dim, num_heads or layout"
            )
        self.patterns = patterns
        self.dropout = dropout
        # (projections, heads of one pattern, head size)
        self.split = (3 * len(patterns), num_heads // len(patterns), attention_dim // num_heads)
        self.qkv = nn.Linear(embed_dim, 3 * attention_dim)

    def forward(
        self, cls: Tensor, tokens: Tensor, biases: dict[Pattern, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Attends.

        Args:
            cls: (B, D).
            tokens: (B, T, H, W, D).
            biases: result of `key_biases` for (at least) this block's patterns.

        Returns:
            CLS (B, A) and tokens (B, T, H, W, A); the patterns' results stand one after the other.
        """
        # One unbind into all parts: its backward is a single copy of the gradients.
        cls_parts = self.qkv(cls).unflatten(-1, self.split).unbind(-3)
        token_parts = self.qkv(tokens).unflatten(-1, self.split).unbind(-3)
        dropout = self.dropout if self.training else 0.0
        cls_results, token_results = [], []
        for index, pattern in enumerate(self.patterns):
            own = slice(3 * index, 3 * index + 3)
            of_cls, of_tokens = attend_rows(
                cls_parts[own], token_parts[own], biases[pattern], pattern, dropout
            )
            cls_results.append(of_cls)
            token_results.append(of_tokens)
        return torch.cat(cls_results, dim=-2).flatten(-2), torch.cat(token_results, -2).flatten(-2)
