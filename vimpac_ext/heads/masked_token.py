"""Prediction of hidden tokens (paper, Section 3.2)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.registries import HEADS
from vimpac_ext.structures import SpecialTokens


@HEADS.register()
class MaskedTokenHead(nn.Module):
    """Logits over the vocabulary, from one hidden layer and the tied token embedding.

    A backbone without a token embedding (one that reads pixels) gets output weights of its own.

    It runs on the hidden positions only: logits of all positions would take several times the
    memory and time, and no loss looks at them.

    Args:
        embed_dim: width of the backbone.
        token_embedding: the backbone's embedding table, whose rows are the output weights. It
            stays the backbone's: it is not among this module's parameters or in its state dict.
        vocab_size: codes of the tokenizer; read where there is no table to tie.
        feature_dim: width F of the features, where it is not the backbone's.

    Raises:
        ValueError: if there is neither.
    """

    def __init__(
        self,
        embed_dim: int,
        token_embedding: nn.Embedding | None = None,
        vocab_size: int | None = None,
        feature_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = embed_dim if feature_dim is None else feature_dim
        tied = token_embedding is not None
        if token_embedding is None:
            if vocab_size is None:
                raise ValueError("MaskedTokenHead needs a token_embedding or a vocab_size")
            rows = SpecialTokens(vocab_size).num_embeddings
            token_embedding = nn.Embedding(rows, width)
            nn.init.normal_(token_embedding.weight, std=0.02)
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(token_embedding.num_embeddings))
        self.token_embedding: nn.Embedding
        if tied:
            # Past nn.Module's registration, so that the tied weight has one name and one owner.
            object.__setattr__(self, "token_embedding", token_embedding)
        else:
            self.token_embedding = token_embedding
        nn.init.normal_(self.transform.weight, std=0.02)
        nn.init.zeros_(self.transform.bias)

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predicts the hidden tokens.

        Args:
            outputs: "features" (B, T, H, W, F) and "mask", bool (B, T, H, W), True = hidden; its
                "mask_positions" when flattened, int64 (M,), spare a GPU the wait for their number.

        Returns:
            "token_logits" (M, V+5), in the order of ``features[mask]``.
        """
        hidden = outputs.get("mask_positions")
        if hidden is None:
            hidden = outputs["mask"].flatten().nonzero().squeeze(1)  # (M,)
        # index_select: its backward writes rows, that of features[mask] accumulates one by one.
        features = outputs["features"].flatten(0, 3).index_select(0, hidden)
        return {"token_logits": self.logits(features)}

    def logits(self, features: Tensor) -> Tensor:
        """Logits for any positions: (..., F) -> (..., V+5)."""
        hidden = self.norm(F.gelu(self.transform(features)))
        return F.linear(hidden, self.token_embedding.weight, self.bias)
