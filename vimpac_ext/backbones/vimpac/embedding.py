"""Learned position embeddings of a token grid (paper, Appendix A)."""

import math

import torch
from torch import Tensor, nn

from vimpac_ext.structures import TokenGrid

# The tables that each form adds up. "hw_separation" is the paper's; the other two are the
# alternatives of the authors' code, under the authors' names.
POSITION_FORMS: dict[str, tuple[str, ...]] = {
    "hw_separation": ("frames", "height", "width"),
    "temporal_separation": ("frames", "spatial"),
    "default": ("joint",),
}


def position_table_rows(grid: TokenGrid) -> dict[str, int]:
    """Number of rows of every kind of table for `grid`; row 0 of "joint" belongs to CLS."""
    frames, height, width = grid
    return {
        "cls": 1,
        "frames": frames,
        "height": height,
        "width": width,
        "spatial": height * width,
        "joint": 1 + frames * height * width,
    }


class PositionEmbedding(nn.Module):
    """One vector per grid cell and one for CLS.

    Args:
        grid: frames, height and width in tokens.
        embed_dim: width of the vectors.
        form: "hw_separation" (frame + row + column), "temporal_separation" (frame + place in the
            frame) or "default" (one table for all positions).

    Raises:
        ValueError: if `form` is not one of these.
    """

    def __init__(self, grid: TokenGrid, embed_dim: int, form: str = "hw_separation") -> None:
        super().__init__()
        if form not in POSITION_FORMS:
            raise ValueError(f"position={form!r} is not one of {', '.join(POSITION_FORMS)}")
        self.cls: Tensor
        self.frames: Tensor
        self.height: Tensor
        self.width: Tensor
        self.spatial: Tensor
        self.joint: Tensor
        self.grid = grid
        self.form = form
        rows = position_table_rows(grid)
        names = POSITION_FORMS[form] if form == "default" else ("cls", *POSITION_FORMS[form])
        for name in names:
            table = nn.Parameter(torch.empty(rows[name], embed_dim))
            self.register_parameter(name, table)

    def reset_parameters(self, std: float) -> None:
        """Draws the tables so that the sum of a token's table rows has standard deviation `std`."""
        factors = POSITION_FORMS[self.form]
        for name, table in self.named_parameters():
            nn.init.normal_(table, std=std / math.sqrt(len(factors)) if name in factors else std)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns the CLS position (D,) and the token positions (T, H, W, D)."""
        if self.form == "default":
            return self.joint[0], self.joint[1:].unflatten(0, self.grid)
        frames = self.frames[:, None, None]  # (T, 1, 1, D)
        if self.form == "temporal_separation":
            return self.cls[0], frames + self.spatial.unflatten(0, self.grid[1:])
        return self.cls[0], frames + self.height[:, None] + self.width
