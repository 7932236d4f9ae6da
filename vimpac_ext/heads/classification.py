"""Linear classifier on the clip representation."""

from collections.abc import Mapping

from torch import Tensor, nn

from vimpac_ext.registries import HEADS


@HEADS.register()
class ClassificationHead(nn.Module):
    """One linear map of "cls", zero at the start so that all classes are equally likely.

    Args:
        embed_dim: width of the backbone.
        num_classes: number of classes.
        dropout: on the clip representation.
    """

    def __init__(self, embed_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embed_dim, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Reads "cls" (B, D); returns "class_logits" (B, num_classes)."""
        return {"class_logits": self.linear(self.dropout(outputs["cls"]))}
