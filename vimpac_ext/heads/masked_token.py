"""Prediction of hidden tokens (paper, Section 3.2)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.registries import HEADS


@HEADS.register()
class MaskedTokenHead(nn.Module):
    """Logits over the vocabulary, from one hidden layer and the tied token embedding.

    It runs on the hidden positions only: logits of all positions would take several times the
    memory and time, and no loss looks at them.

    Args:
        embed_dim: width of the backbone.
        token_embedding: the backbone's embedding table, whose rows are the output weights. It
            stays the backbone's: it is not among this module's parameters or in its state dict.
    """

    def __init__(self, embed_dim: int, token_embedding: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(token_embedding.num_embeddings))
        # Past nn.Module's registration, so that the tied weight has one name and one owner.
        self.token_embedding: nn.Embedding
        object.__setattr__(self, "token_embedding", token_embedding)
        nn.init.normal_(self.transform.weight, std=0.02)
        nn.init.zeros_(self.transform.bias)

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predicts the hidden tokens.

        Args:
            outputs: "features" (B, T, H, W, D) and "mask", bool (B, T, H, W), True = hidden.

        Returns:
            "token_logits" (M, V+5), in the order of ``features[mask]``.
        """
        hidden = outputs["mask"].flatten().nonzero().squeeze(1)  # (M,)
        # index_select: its backward writes rows, that of features[mask] accumulates one by one.
        features = outputs["features"].flatten(0, 3).index_select(0, hidden)
        return {"token_logits": self.logits(features)}

    def logits(self, features: Tensor) -> Tensor:
        """Logits for any positions: (..., D) -> (..., V+5)."""
        hidden = self.norm(F.gelu(self.transform(features)))
        return F.linear(hidden, self.token_embedding.weight, self.bias)
