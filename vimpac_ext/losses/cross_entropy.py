"""Classification loss."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.registries import LOSSES
from vimpac_ext.structures import UNLABELLED


@LOSSES.register()
class CrossEntropyLoss(nn.Module):
    """(1-s) * NLL + s * mean over classes of -log p, averaged over clips.

    Args:
        weight: share in the total loss.
        label_smoothing: s.

    Raises:
        ValueError: if s is not in [0, 1].
    """

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to 1")
        self.weight = weight
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Computes the loss in float32.

        Args:
            outputs: "class_logits" (B, classes).
            targets: "labels", int64 (B,), or float (B, classes) shares of mixed clips.

        Raises:
            ValueError: if a label is no class (checked on CPU only, where looking costs nothing).
        """
        labels, num_classes = targets["labels"], outputs["class_logits"].shape[-1]
        is_class = not labels.is_floating_point()
        if (
            is_class
            and labels.device.type == "cpu"
            and ((labels < 0) | (labels >= num_classes)).any()
        ):
            raise ValueError(
                f"labels span {int(labels.min())}..{int(labels.max())}, but the model has classes "
                f"0..{num_classes - 1} ({UNLABELLED} is a video without a label)"
            )
        return F.cross_entropy(
            outputs["class_logits"].float(),
            labels,
            label_smoothing=self.label_smoothing,
        )
