"""Transformer layers: attention blocks in sequence, then an MLP (paper, Section 3 and Appendix A).

CLS and tokens always go through the same weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.backbones.vimpac.axis_attention import AxisAttention, Layout, Pattern
from vimpac_ext.backbones.vimpac.dropout import Dropout

NORM_EPS = 1e-12

# "post": LN(x + f(x)), the paper's. "pre": x + f(LN(x)). "pre_normalized_residual": the authors'
# pre-LN, whose attention blocks give LN(x) + f(LN(x)); their MLP is as in "pre".
NORM_STYLES = ("post", "pre", "pre_normalized_residual")


class AttentionBlock(nn.Module):
    """Axis attention, output projection, residual and LayerNorm.

    Args:
        embed_dim: width of the input and output.
        attention_dim: width of the attention.
        num_heads: heads over all patterns.
        patterns: attended in parallel (see `parse_layout`).
        norm: one of `NORM_STYLES`.
        dropout: on the attention probabilities and on the projected result.
    """

    def __init__(
        self,
        embed_dim: int,
        attention_dim: int,
        num_heads: int,
        patterns: tuple[Pattern, ...],
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm_style = norm
        self.attention = AxisAttention(embed_dim, attention_dim, num_heads, patterns, dropout)
        self.output = nn.Linear(attention_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(
        self, cls: Tensor, tokens: Tensor, biases: dict[Pattern, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(B, D), (B, T, H, W, D), key biases by pattern -> the same shapes."""
        residual_cls, residual_tokens = cls, tokens
        if self.norm_style != "post":
            cls, tokens = self.norm(cls), self.norm(tokens)
        if self.norm_style == "pre_normalized_residual":
            residual_cls, residual_tokens = cls, tokens
        cls, tokens = self.attention(cls, tokens, biases)
        cls = self.dropout.add_to(residual_cls, self.output(cls))
        tokens = self.dropout.add_to(residual_tokens, self.output(tokens))
        if self.norm_style == "post":
            cls, tokens = self.norm(cls), self.norm(tokens)
        return cls, tokens


class MLP(nn.Module):
    """Two linear maps with a GELU between, residual and LayerNorm."""

    def __init__(self, embed_dim: int, hidden_dim: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.norm_style = norm
        self.expand = nn.Linear(embed_dim, hidden_dim)
        self.contract = nn.Linear(hidden_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = x if self.norm_style == "post" else self.norm(x)
        x = self.dropout.add_to(x, self.contract(F.gelu(self.expand(hidden))))
        if self.norm_style == "post":
            x = self.norm(x)
        return x


class TransformerLayer(nn.Module):
    """One attention block for each part of the layout, then the MLP.

    Args:
        embed_dim: D.
        attention_dim: width of the attention, D or less.
        mlp_dim: width between the two maps of the MLP.
        num_heads: heads of each attention block.
        layout: result of `parse_layout`.
        norm: one of `NORM_STYLES`.
        dropout: see `AttentionBlock`; also after the MLP.
    """

    def __init__(
        self,
        embed_dim: int,
        attention_dim: int,
        mlp_dim: int,
        num_heads: int,
        layout: Layout,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            AttentionBlock(embed_dim, attention_dim, num_heads, patterns, norm, dropout)
            for patterns in layout
        )
        self.mlp = MLP(embed_dim, mlp_dim, norm, dropout)

    def forward(
        self, cls: Tensor, tokens: Tensor, biases: dict[Pattern, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(B, D), (B, T, H, W, D), key biases by pattern -> the same shapes."""
        for block in self.attention_blocks:
            cls, tokens = block(cls, tokens, biases)
        return self.mlp(cls), self.mlp(tokens)
