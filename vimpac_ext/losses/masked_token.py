"""Mask-then-predict loss (paper, Section 3.2)."""

import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.registries import LOSSES


@LOSSES.register()
class MaskedTokenLoss(nn.Module):
    """Cross entropy, averaged over all hidden positions of the micro-batch.

    Args:
        weight: share in the total loss.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Reads "token_logits" (M, V+5) and the target "token_targets", int64 (M,).

        Without a hidden position the loss is zero (with zero gradients) and a warning is given.
        """
        logits = outputs["token_logits"]
        if len(logits) == 0:
            warnings.warn("no token is masked in this batch: the masked-token loss is 0")
            return logits.float().sum()
        # log_softmax converts as it reads: logits.float() would be one more copy on a GPU.
        log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        return F.nll_loss(log_probabilities, targets["token_targets"])


@torch.no_grad()
def masked_token_accuracy(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Share of hidden positions whose likeliest token is the target; 0 without any.

    Args:
        outputs: "token_logits" (M, V+5).
        targets: "token_targets", int64 (M,).

    Returns:
        float32 scalar.
    """
    logits = outputs["token_logits"]
    hits = logits.argmax(dim=-1) == targets["token_targets"]
    return hits.sum() / max(len(hits), 1)
