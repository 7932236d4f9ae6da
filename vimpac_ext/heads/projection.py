"""Projection of clip representations into the space where they are contrasted (Section 3.3)."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.heads.batch_norm import SyncBatchNorm1d
from vimpac_ext.registries import HEADS

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": SyncBatchNorm1d,
    "ln": lambda width: nn.LayerNorm(width, eps=1e-12),  # as everywhere in the authors' code
}


@HEADS.register()
class ProjectionHead(nn.Module):
    """MLP on "cls".

    With norm "bn" a hidden layer is linear, BatchNorm, activation; with "ln" it is linear,
    activation, LayerNorm. The last linear map has no bias. In distributed training BatchNorm sees
    the clips of all processes (`SyncBatchNorm1d`); nothing has to be converted for that.

    Args:
        embed_dim: width of the backbone.
        hidden_dim: width of the hidden layers (paper's Large: 4096).
        output_dim: width of the projection.
        num_layers: number of linear maps (paper's Large: 3).
        norm: "bn" or "ln".
        activation: "relu" or "gelu".
        norm_after_last: also normalise the projection (in the authors' code, with "bn" only).

    Raises:
        ValueError: if `norm`, `activation` or `num_layers` is none of these.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        num_layers: int = 2,
        norm: str = "bn",
        activation: str = "relu",
        norm_after_last: bool = False,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("norm", norm, _NORMS),
            ("activation", activation, _ACTIVATIONS),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} must be at least 1")
        self.norm = norm
        self.activation = activation
        widths = [embed_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.linears = nn.ModuleList(
            nn.Linear(widths[i], widths[i + 1], bias=i < num_layers - 1) for i in range(num_layers)
        )
        num_norms = num_layers if norm_after_last else num_layers - 1
        self.norms = nn.ModuleList(_NORMS[norm](widths[i + 1]) for i in range(num_norms))
        for name, parameter in self.linears.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.zeros_(parameter)

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes the projection.

        Args:
            outputs: "cls" (B, D).

        Returns:
            "projection" (B, output_dim), not L2-normalised.

        Raises:
            ValueError: if BatchNorm is given a single clip in training (over all processes).
        """
        x = outputs["cls"]
        activate = _ACTIVATIONS[self.activation]
        last = len(self.linears) - 1
        for index, linear in enumerate(self.linears):
            x = linear(x)
            if index < last and self.norm == "ln":
                x = activate(x)
            if index < len(self.norms):
                x = self.norms[index](x)
            if index < last and self.norm == "bn":
                x = activate(x)
        return {"projection": x}
