"""Filling hidden tokens by copying the nearest visible one (paper, Appendix G.2)."""

import torch
from torch import Tensor


def nearest_visible(tokens: Tensor, mask: Tensor, spatial: bool) -> Tensor:
    """Replaces each hidden token by the visible one at the smallest distance.

    The distance is Euclidean, counted in tokens; of equally near ones the first in the order of
    frames, rows and columns is taken. Nothing of a hidden token's value is used.

    Args:
        tokens: int64 (T, h, w).
        mask: bool, same shape, True = hidden.
        spatial: copy from the same frame only. A frame with no visible token copies from any
            frame. False = distance over frames, rows and columns.

    Returns:
        int64 (T, h, w); visible tokens are as they were.

    Raises:
        ValueError: if the shapes differ or are not (T, h, w), or nothing is visible.
    """
    if tokens.shape != mask.shape or tokens.ndim != 3 or mask.dtype != torch.bool:
        raise ValueError(
            "expected tokens and a bool mask of one shape (frames, height, width), found "
            f"{tuple(tokens.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    if mask.all():
        raise ValueError("all tokens are hidden: there is none to copy")
    filled = tokens.clone()
    visible = (~mask).nonzero()  # (V, 3), in order
    # Frame by frame, which bounds the matrix of distances.
    for frame in mask.flatten(1).any(1).nonzero().flatten().tolist():
        candidates = visible
        if spatial:
            own = visible[visible[:, 0] == frame]
            candidates = own if len(own) else visible
        rows, columns = mask[frame].nonzero(as_tuple=True)
        places = torch.stack([torch.full_like(rows, frame), rows, columns], dim=1)  # (M, 3)
        nearest = candidates[_squared_distances(places, candidates).argmin(dim=1)]
        filled[frame, rows, columns] = tokens[tuple(nearest.T)]
    return filled


def _squared_distances(places: Tensor, others: Tensor) -> Tensor:
    """(M, 3) and (N, 3) -> (M, N), distinct for equal distances: earlier ones are nearer."""
    squared = sum(
        (places[:, axis, None] - others[None, :, axis]).square() for axis in range(places.shape[1])
    )
    return squared * len(others) + torch.arange(len(others), device=others.device)
