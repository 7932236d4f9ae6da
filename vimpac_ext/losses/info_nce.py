"""Contrast of two clips of a video (paper, Section 3.3, Eqs. 4 and 5)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.registries import LOSSES


@LOSSES.register()
class InfoNCELoss(nn.Module):
    """InfoNCE with in-batch negatives: both clips of all other videos, 2(n-1) for n videos.

    The loss is temperature * (mean over clips 1 + mean over clips 2). That the two directions are
    summed is Eq. 5; the paper's text speaks of an average, which its numbers exclude.

    Args:
        weight: share in the total loss.
        temperature: divides the similarities and multiplies the loss.
        normalize: compare directions (cosine) rather than the raw projections.
    """

    def __init__(
        self, weight: float = 1.0, temperature: float = 0.2, normalize: bool = True
    ) -> None:
        super().__init__()
        self.weight = weight
        self.temperature = temperature
        self.normalize = normalize

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Computes the loss in float32.

        Args:
            outputs: "projection" (2n, P): clip 1 of all videos, then clip 2 in the same order.
            targets: not used.

        Raises:
            ValueError: if the number of clips is odd.
        """
        projection = outputs["projection"]
        if len(projection) % 2:
            raise ValueError(
                f"InfoNCELoss takes two clips of each video, got {len(projection)} clips in all"
            )
        with torch.autocast(projection.device.type, enabled=False):
            features = projection.float()
            if self.normalize:
                features = F.normalize(features, dim=-1)
            first, second = features.chunk(2)
            loss = self._one_direction(first, second) + self._one_direction(second, first)
        return self.temperature * loss

    def _one_direction(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Mean of -log p(its positive | anchor); `anchors` and `positives` are (n, P)."""
        num_videos = len(anchors)
        # With several processes, both would be gathered here, and the labels shifted.
        candidates = torch.cat([positives, anchors])  # (2n, P)
        labels = torch.arange(num_videos, device=anchors.device)
        similarities = anchors @ candidates.T / self.temperature  # (n, 2n)
        itself = F.one_hot(num_videos + labels, len(candidates)).bool()
        return F.cross_entropy(similarities.masked_fill(itself, -torch.inf), labels)
