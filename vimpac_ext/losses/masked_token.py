"""Mask-then-predict loss (paper, Section 3.2)."""

import warnings
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vimpac_ext.losses.chunked_cross_entropy import chunked_cross_entropy
from vimpac_ext.registries import LOSSES


@LOSSES.register()
class MaskedTokenLoss(nn.Module):
    """Cross entropy, averaged over all hidden positions of the micro-batch.

    With several processes, the mean of their losses is the mean over the hidden positions of all
    of them, however unevenly these are spread. (The authors' loss is the mean of the processes'
    own means.) So the gradient after DistributedDataParallel's averaging is that of one process.

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
        share = _relative_count(logits)
        if len(logits) == 0:
            if share.isnan():
                warnings.warn("no token is masked in this batch: the masked-token loss is 0")
            return logits.float().sum()
        return chunked_cross_entropy(logits, targets["token_targets"]) * share


@torch.no_grad()
def masked_token_accuracy(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Share of hidden positions whose likeliest token is the target; 0 without any.

    With several processes, the mean of what they get is the share among all their positions.

    Args:
        outputs: "token_logits" (M, V+5).
        targets: "token_targets", int64 (M,).

    Returns:
        float32 scalar.
    """
    logits = outputs["token_logits"]
    hits = logits.argmax(dim=-1) == targets["token_targets"]
    share = _relative_count(logits)
    return hits.sum() / max(len(hits), 1) * share.nan_to_num()


def _relative_count(logits: Tensor) -> Tensor:
    """Rows of ``logits`` relative to their mean over the processes, float32 scalar; NaN if none.

    All processes must call this together.
    """
    count = torch.full((), float(len(logits)), device=logits.device)
    mean = count.clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return count / mean
