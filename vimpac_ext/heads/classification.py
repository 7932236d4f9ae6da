"""Linear classifier on the clip representation."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vimpac_ext.registries import HEADS


@HEADS.register()
class ClassificationHead(nn.Module):
    """One linear map of "cls", zero at the start so that all classes are equally likely.

    Args:
        embed_dim: width of the backbone.
        num_classes: number of classes.
        classifier: "weight" (classes, D) and "bias" (classes) that came with the backbone's own
            weights, or None; used with ``pretrained`` only.
        dropout: on the clip representation.
        pretrained: start from that classifier, to test a published model as it is.

    Raises:
        ValueError: ``pretrained`` without a classifier, or one for another number of classes.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        classifier: Mapping[str, Tensor] | None = None,
        dropout: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embed_dim, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if pretrained:
            self._start_from(classifier)

    def _start_from(self, classifier: Mapping[str, Tensor] | None) -> None:
        if classifier is None:
            raise ValueError(
                "ClassificationHead has pretrained=True but the backbone brought no classifier: "
                "give BACKBONE its weights, or set pretrained False"
            )
        found = tuple(classifier["weight"].shape)
        if found != tuple(self.linear.weight.shape):
            raise ValueError(
                f"the backbone's weights have a classifier of {found[0]} classes, but "
                f"MODEL.NUM_CLASSES is {self.linear.out_features}: set pretrained False to train a "
                "new one"
            )
        with torch.no_grad():
            self.linear.weight.copy_(classifier["weight"])
            self.linear.bias.copy_(classifier["bias"])

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Reads "cls" (B, D); returns "class_logits" (B, num_classes)."""
        return {"class_logits": self.linear(self.dropout(outputs["cls"]))}
