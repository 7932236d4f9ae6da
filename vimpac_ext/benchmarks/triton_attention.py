"""A Triton kernel for the attention of short rows, CLS folded in; needs triton.

A program takes as many whole rows of one clip and head as fit into a tile, reads them where they
lie in the grid, and masks what is of different rows. The key and value of CLS are one vector for
the whole tile, its query another, so no row is copied. Nothing but the inputs is kept for the
backward pass, which computes the softmax again. There is no atomic sum: results do not depend on
the order of programs.

Interpreted on a CPU (``TRITON_INTERPRET=1``) its values and gradients are right in float32 and
float16; the interpreter knows no bfloat16. It has not been run on a GPU. The backbone does not use
it, and it knows no dropout.
"""

# ruff: noqa: ANN001, ANN202  (of what Triton compiles, only constants have types)
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from vimpac_ext.backbones.vimpac.axis_attention import Pattern, grid_to_rows

_TILE = 32  # tokens of a program, at least


@triton.jit
def _places(  # type: ignore[no-untyped-def]
    R, N: tl.constexpr, TILE: tl.constexpr, HEADS: tl.constexpr
):
    """Clip, head, first row of the program; row (in it) and position of each token; what exists."""
    tile, clip_head = tl.program_id(0), tl.program_id(1)
    token = tl.arange(0, TILE)
    row = token // N
    first = tile * (TILE // N)
    exists = (row < TILE // N) & (first + row < R)
    clip = (clip_head // HEADS).to(tl.int64)  # large batches have more than 2^31 numbers
    return clip, clip_head % HEADS, first, row, token % N, exists


@triton.jit
def _softmaxes(  # type: ignore[no-untyped-def]
    q, k, qc, kc, bias, row, exists, scale, GROUPS: tl.constexpr
):
    """Weights of the tokens' queries (to the tile, to CLS) and, by row, of CLS's query."""
    seen = (row[:, None] == row[None, :]) & exists[None, :]
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias[None, :]
    scores = tl.where(seen, scores, -float("inf"))
    to_cls = tl.sum(q.to(tl.float32) * kc[None, :], 1) * scale
    top = tl.maximum(tl.max(scores, 1), to_cls)
    weights, cls_weight = tl.exp(scores - top[:, None]), tl.exp(to_cls - top)
    total = tl.sum(weights, 1) + cls_weight
    weights, cls_weight = weights / total[:, None], cls_weight / total

    group = tl.arange(0, GROUPS)
    of_group = (group[:, None] == row[None, :]) & exists[None, :]
    from_cls = tl.sum(k.to(tl.float32) * qc[None, :], 1) * scale + bias
    from_cls = tl.where(of_group, from_cls[None, :], -float("inf"))
    itself = tl.sum(qc * kc, 0) * scale
    top_cls = tl.maximum(tl.max(from_cls, 1), itself)
    row_weights, row_cls_weight = tl.exp(from_cls - top_cls[:, None]), tl.exp(itself - top_cls)
    total_cls = tl.sum(row_weights, 1) + row_cls_weight
    return weights, cls_weight, row_weights / total_cls[:, None], row_cls_weight / total_cls


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, qc_ptr, kc_ptr, vc_ptr, bias_ptr, out_ptr, rows_out_ptr,
    R, R2, s_b, s_1, s_2, s_h, s_n, o_b, o_1, o_2, o_h, o_n, scale,
    N: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    GROUPS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    clip, head, first, row, position, exists = _places(R, N, TILE, HEADS)
    at, column = first + row, tl.arange(0, WIDTH)
    place = clip * s_b + (at // R2) * s_1 + (at % R2) * s_2 + head * s_h + position * s_n
    inside = exists[:, None] & (column < E)[None, :]
    q = tl.load(q_ptr + place[:, None] + column[None, :], mask=inside, other=0.0)
    k = tl.load(k_ptr + place[:, None] + column[None, :], mask=inside, other=0.0)
    v = tl.load(v_ptr + place[:, None] + column[None, :], mask=inside, other=0.0)
    of_cls = (clip * HEADS + head) * E + column
    qc = tl.load(qc_ptr + of_cls, mask=column < E, other=0.0).to(tl.float32)
    kc = tl.load(kc_ptr + of_cls, mask=column < E, other=0.0).to(tl.float32)
    vc = tl.load(vc_ptr + of_cls, mask=column < E, other=0.0).to(tl.float32)
    bias = tl.load(
        bias_ptr + (clip * R + at) * (N + 1) + 1 + position, mask=exists, other=-float("inf")
    )
    weights, cls_weight, row_weights, row_cls_weight = _softmaxes(
        q, k, qc, kc, bias, row, exists, scale, GROUPS
    )
    out = tl.dot(weights.to(v.dtype), v, input_precision="ieee") + cls_weight[:, None] * vc[None, :]
    place = clip * o_b + (at // R2) * o_1 + (at % R2) * o_2 + head * o_h + position * o_n
    tl.store(out_ptr + place[:, None] + column[None, :], out, mask=inside)
    of_rows = tl.dot(row_weights.to(v.dtype), v, input_precision="ieee")
    of_rows += row_cls_weight[:, None] * vc[None, :]
    group = tl.arange(0, GROUPS)
    is_row = (group < TILE // N) & (first + group < R)
    place = ((clip * R + first + group) * HEADS + head) * E
    tl.store(
        rows_out_ptr + place[:, None] + column[None, :],
        of_rows,
        mask=is_row[:, None] & (column < E)[None, :],
    )


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, qc_ptr, kc_ptr, vc_ptr, bias_ptr, do_ptr, doc_ptr,
    dq_ptr, dk_ptr, dv_ptr, dqc_ptr, dkc_ptr, dvc_ptr,
    R, R2, s_b, s_1, s_2, s_h, s_n, o_b, o_1, o_2, o_h, o_n, scale,
    N: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    GROUPS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    clip, head, first, row, position, exists = _places(R, N, TILE, HEADS)
    at, column = first + row, tl.arange(0, WIDTH)
    place = clip * s_b + (at // R2) * s_1 + (at % R2) * s_2 + head * s_h + position * s_n
    inside = exists[:, None] & (column < E)[None, :]
    q = tl.load(q_ptr + place[:, None] + column[None, :], mask=inside, other=0.0)
    k = tl.load(k_ptr + place[:, None] + column[None, :], mask=inside, other=0.0)
    v = tl.load(v_ptr + place[:, None] + column[None, :], mask=inside, other=0.0)
    out_place = clip * o_b + (at // R2) * o_1 + (at % R2) * o_2 + head * o_h + position * o_n
    do = tl.load(do_ptr + out_place[:, None] + column[None, :], mask=inside, other=0.0)
    of_cls = (clip * HEADS + head) * E + column
    qc = tl.load(qc_ptr + of_cls, mask=column < E, other=0.0).to(tl.float32)
    kc = tl.load(kc_ptr + of_cls, mask=column < E, other=0.0).to(tl.float32)
    vc = tl.load(vc_ptr + of_cls, mask=column < E, other=0.0).to(tl.float32)
    doc = tl.load(doc_ptr + of_cls, mask=column < E, other=0.0).to(tl.float32) / R
    bias = tl.load(
        bias_ptr + (clip * R + at) * (N + 1) + 1 + position, mask=exists, other=-float("inf")
    )
    weights, cls_weight, row_weights, row_cls_weight = _softmaxes(
        q, k, qc, kc, bias, row, exists, scale, GROUPS
    )
    # Tokens that do not exist have queries, too: nothing may come from them.
    weights, cls_weight = tl.where(exists[:, None], weights, 0.0), tl.where(exists, cls_weight, 0.0)
    group = tl.arange(0, GROUPS)
    is_row = (group < TILE // N) & (first + group < R)
    row_weights = tl.where(is_row[:, None], row_weights, 0.0)
    row_cls_weight = tl.where(is_row, row_cls_weight, 0.0)

    # Queries of the tokens.
    d_weights = tl.dot(do, tl.trans(v), input_precision="ieee")
    d_cls_weight = tl.sum(do.to(tl.float32) * vc[None, :], 1)
    mean = tl.sum(weights * d_weights, 1) + cls_weight * d_cls_weight
    d_scores = weights * (d_weights - mean[:, None]) * scale
    d_to_cls = cls_weight * (d_cls_weight - mean) * scale
    dq = tl.dot(d_scores.to(k.dtype), k, input_precision="ieee") + d_to_cls[:, None] * kc[None, :]
    dk = tl.dot(tl.trans(d_scores).to(q.dtype), q, input_precision="ieee")
    dv = tl.dot(tl.trans(weights).to(do.dtype), do, input_precision="ieee")
    dkc = tl.sum(d_to_cls[:, None] * q.to(tl.float32), 0)
    dvc = tl.sum(cls_weight[:, None] * do.to(tl.float32), 0)

    # The query of CLS, once in each row.
    d_row_weight = tl.sum(v.to(tl.float32) * doc[None, :], 1)
    d_row_cls_weight = tl.sum(vc * doc, 0)
    row_mean = tl.sum(row_weights * d_row_weight[None, :], 1) + row_cls_weight * d_row_cls_weight
    d_from_cls = row_weights * (d_row_weight[None, :] - row_mean[:, None]) * scale
    of_token = tl.sum(d_from_cls, 0)  # each token is in one row
    itself = tl.sum(row_cls_weight * (d_row_cls_weight - row_mean), 0) * scale
    dk += of_token[:, None] * qc[None, :]
    dv += tl.sum(row_weights, 0)[:, None] * doc[None, :]
    dqc = tl.sum(of_token[:, None] * k.to(tl.float32), 0) + itself * kc
    dkc += itself * qc
    dvc += tl.sum(row_cls_weight, 0) * doc

    tl.store(dq_ptr + out_place[:, None] + column[None, :], dq, mask=inside)
    tl.store(dk_ptr + out_place[:, None] + column[None, :], dk, mask=inside)
    tl.store(dv_ptr + out_place[:, None] + column[None, :], dv, mask=inside)
    part = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * E + column
    tl.store(dqc_ptr + part, dqc, mask=column < E)
    tl.store(dkc_ptr + part, dkc, mask=column < E)
    tl.store(dvc_ptr + part, dvc, mask=column < E)


class _ShortRows(torch.autograd.Function):
    """`short_rows` on (B, r1, r2, h, n, e) views of the grid."""

    @staticmethod
    def forward(
        ctx: Any, qc: Tensor, kc: Tensor, vc: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CLS by row (B, R, h, e), and tokens in the layout of the grid."""
        if not q.stride() == k.stride() == v.stride() or q.stride(-1) != 1:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        tensors = [one.contiguous() for one in (qc, kc, vc)]
        batch, rows_1, rows_2, heads, _, size = q.shape
        out = _like_grid(q)
        of_rows = q.new_empty(batch, rows_1 * rows_2, heads, size)
        launch, numbers, options = _geometry(q, out)
        _forward[launch](q, k, v, *tensors, bias.contiguous(), out, of_rows, *numbers, **options)
        ctx.save_for_backward(*tensors, q, k, v, bias)
        return of_rows.mean(dim=1), out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_cls: Tensor, d_out: Tensor) -> tuple[Tensor | None, ...]:
        *of_cls, q, k, v, bias = ctx.saved_tensors
        like = _like_grid(q)
        d_out = like.copy_(d_out) if d_out.stride() != like.stride() else d_out
        results = [_like_grid(q) for _ in range(3)]
        launch, numbers, options = _geometry(q, d_out)
        parts = [q.new_empty(*launch, q.shape[-1], dtype=torch.float32) for _ in range(3)]
        inputs = (q, k, v, *of_cls, bias.contiguous(), d_out, d_cls.contiguous())
        _backward[launch](*inputs, *results, *parts, *numbers, **options)
        sums = [part.sum(dim=0).view_as(of_cls[0]).to(q.dtype) for part in parts]
        return (*sums, *results, None)


def _like_grid(rows: Tensor) -> Tensor:
    """An empty (B, r1, r2, h, n, e) whose memory is ordered (B, r1, r2, n, h, e)."""
    batch, rows_1, rows_2, heads, length, size = rows.shape
    return rows.new_empty(batch, rows_1, rows_2, length, heads, size).transpose(3, 4)


def _geometry(rows: Tensor, out: Tensor) -> tuple[tuple[int, int], list[Any], dict[str, int]]:
    """Programs, numbers that the kernels take last, and constants."""
    batch, rows_1, rows_2, heads, length, size = rows.shape
    tile = max(_TILE, triton.next_power_of_2(length))
    together = tile // length
    programs = (triton.cdiv(rows_1 * rows_2, together), batch * heads)
    strides = [*_strides(rows), *_strides(out)]
    numbers = [rows_1 * rows_2, rows_2, *strides, 1.0 / math.sqrt(size)]
    constants = {
        "N": length,
        "E": size,
        "WIDTH": max(16, triton.next_power_of_2(size)),
        "TILE": tile,
        "GROUPS": max(16, triton.next_power_of_2(together)),
        "HEADS": heads,
    }
    return programs, numbers, constants


def _strides(rows: Tensor) -> list[int]:
    """In numbers of elements: of clip, both other axes, head and position."""
    return [rows.stride(axis) for axis in range(5)]


def short_rows(
    cls: Sequence[Tensor], tokens: Sequence[Tensor], key_bias: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """What `attend_rows` gives without dropout, for rows of one axis.

    Args:
        cls: query, key and value of CLS, each (B, h, e).
        tokens: query, key and value of the tokens, each (B, T, H, W, h, e).
        key_bias: that of the pattern, of `key_biases`; CLS's own is taken to be 0.
        pattern: one axis.

    Raises:
        ValueError: if rows join axes.
    """
    if len(pattern) != 1:
        raise ValueError(f"the kernel attends along one axis, found {len(pattern)} joined")
    rows = [grid_to_rows(part, pattern) for part in tokens]
    of_cls, of_tokens = _ShortRows.apply(*cls, *rows, key_bias)
    # (B, r1, r2, h, n, e) -> (B, T, H, W, h, e)
    return of_cls, of_tokens.movedim(4, pattern[0])
