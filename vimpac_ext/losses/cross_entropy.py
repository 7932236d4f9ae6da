"""Classification loss."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.registries import LOSSES


@LOSSES.register()
class CrossEntropyLoss(nn.Module):
    """(1-s) * NLL + s * mean over classes of -log p, averaged over clips.

    Args:
        weight: share in the total loss.
        label_smoothing: s.
    """

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Reads "class_logits" (B, classes) and the target "labels", int64 (B,)."""
        return F.cross_entropy(
            outputs["class_logits"].float(),
            targets["labels"],
            label_smoothing=self.label_smoothing,
        )
