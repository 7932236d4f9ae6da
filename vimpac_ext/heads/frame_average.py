"""Linear classifier on the averages of a clip's frames."""

from collections.abc import Mapping

from torch import Tensor, nn

from vimpac_ext.registries import HEADS


@HEADS.register()
class FrameAverageHead(nn.Module):
    """One linear map of the frames' average features, side by side in their order.

    Unlike "cls", which gathers all frames into one vector, the input says what was when. So a small
    model learns the direction of a motion from few labels. Zero at the start, so that all classes
    are equally likely.

    Args:
        embed_dim: width of the backbone.
        num_classes: number of classes.
        grid: frames, height and width in tokens; the first is T, length of the features in time.
        dropout: on the averages.
        feature_dim: width of the features; None = that of the backbone.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        grid: tuple[int, int, int],
        dropout: float = 0.0,
        feature_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_frames = grid[0]
        self.dropout = nn.Dropout(dropout)
        width = embed_dim if feature_dim is None else feature_dim
        self.linear = nn.Linear(self.num_frames * width, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Classifies clips.

        Args:
            outputs: "features" (B, T, H, W, F).

        Returns:
            "class_logits" (B, num_classes).

        Raises:
            ValueError: the backbone gives no features, or not of T frames.
        """
        if "features" not in outputs:
            raise ValueError(
                'FrameAverageHead needs the "features" of a clip, which this backbone does not '
                "give; use ClassificationHead"
            )
        features = outputs["features"]
        if features.shape[1] != self.num_frames:
            raise ValueError(
                f"FrameAverageHead was built for {self.num_frames} frames, but the backbone's "
                f"features have {features.shape[1]}"
            )
        averages = features.mean(dim=(2, 3)).flatten(1)  # (B, T * F)
        return {"class_logits": self.linear(self.dropout(averages))}
