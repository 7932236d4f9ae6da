"""Classifier that attends to the features of a clip."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vimpac_ext.registries import HEADS


@HEADS.register()
class AttentiveHead(nn.Module):
    """A learnt query attends to all features; an MLP and a linear classifier follow.

    On a frozen backbone this is the attentive probe of V-JEPA (Bardes et al. 2024, arXiv
    2404.08471): unlike a linear probe it does not depend on "cls" being trained.

    Args:
        embed_dim: width of the backbone.
        num_classes: number of classes.
        num_heads: of the attention.
        mlp_ratio: hidden width of the MLP in multiples of the features' width.
        feature_dim: width of the features; None = that of the backbone.

    Raises:
        ValueError: the heads do not divide the features' width.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        feature_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = embed_dim if feature_dim is None else feature_dim
        if width % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide the width {width} of the features"
            )
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.input_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )
        self.linear = nn.Linear(width, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Classifies clips.

        Args:
            outputs: "features" (B, t, h, w, F).

        Returns:
            "class_logits" (B, num_classes).

        Raises:
            ValueError: the backbone gives no features.
        """
        if "features" not in outputs:
            raise ValueError(
                'AttentiveHead needs the "features" of a clip, which this backbone does not give; '
                "use ClassificationHead"
            )
        keys = self.input_norm(outputs["features"].flatten(1, 3))
        query = self.query.expand(len(keys), -1, -1)
        attended, _ = self.attention(query, keys, keys, need_weights=False)
        pooled = query + attended
        pooled = pooled + self.mlp(pooled)
        return {"class_logits": self.linear(pooled.squeeze(1))}
