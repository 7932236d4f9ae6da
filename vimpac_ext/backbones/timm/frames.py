"""timm's image models on videos, frame by frame."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.backbones.pixels import PixelBackbone, classifier_of
from vimpac_ext.backbones.timm.image_model import (
    channel_statistics,
    create_image_model,
    layer_numbers,
    square_side,
)
from vimpac_ext.registries import BACKBONES

POOLINGS = ("mean", "attention")
_SEQUENCES = ("blocks", "stages", "layers")  # of a vision transformer, a ConvNeXt, a Swin


@BACKBONES.register()
class TimmFrames(PixelBackbone):
    """An image model on every frame; only the pooling sees more than one.

    What it cannot tell apart needs the order of frames ("w/o temporal" in the paper's Table 1; with
    pooling "mean" the order makes no difference at all).

    Args:
        clip_size: frames, height and width in pixels.
        model: timm's name, e.g. "resnet50".
        pooling: over frames: "mean", or "attention": a learnt query over the frames' vectors with
            position embeddings (late fusion).
        weights: file or URL of a state dict of the image model.
        pretrained: take timm's own weights.
        options: further keyword arguments of `timm.create_model`.
        num_heads: of the attention pooling.
        mean: of the channels; None = as the image model was trained.
        std: of the channels; None = as the image model was trained.

    Raises:
        ValueError: an unknown model or pooling, or a size that the model cannot take.
    """

    def __init__(
        self,
        clip_size: Sequence[int],
        model: str,
        pooling: str = "mean",
        weights: str = "",
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
        num_heads: int = 8,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
        network = create_image_model(model, square_side(clip_size), weights, pretrained, options)
        super().__init__(clip_size, *channel_statistics(network, mean, std))
        linear = network.get_classifier()
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"timm model {model!r} has no linear classifier to take off")
        self.embed_dim = linear.in_features
        if (weights or pretrained) and pooling == "mean":
            self.classifier = classifier_of(linear)
        self._layers = layer_numbers(network)
        self.num_layers = max(self._layers.values()) - 1 if self._layers else None
        network.reset_classifier(0)
        self.model = network
        self.pool: nn.Module | None = None
        if pooling == "attention":
            self.pool = _LateAttention(self.embed_dim, clip_size[0], num_heads)
        advice = "Set DATA.TRAIN_CROP_SIZE and TEST_CROP_SIZE to the model's size"
        outputs = self.require_fit(advice)
        if "features" in outputs:
            self._feature_dim = outputs["features"].shape[-1]

    @property
    def layers(self) -> nn.Module | None:
        """The image model's blocks or stages; None where it has none in one sequence (ResNets)."""
        found = (getattr(self.model, name, None) for name in _SEQUENCES)
        return next((part for part in found if isinstance(part, nn.Sequential)), None)

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, 0 (stem) to ``num_layers`` + 1 (pooling), as timm numbers them."""
        assert self.num_layers is not None
        return self._layers.get(name.removeprefix("model."), self.num_layers + 1)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Encodes clips.

        Args:
            clip: float (B, 3, T, H, W) in [0, 1].

        Returns:
            "cls" (B, D), and where the image model ends in a map (all but a few) "features"
            (B, T, h, w, F), each frame's before the pooling. F is D unless layers that widen the
            average follow, as in MobileNetV3.
        """
        frames = self.normalized(clip).transpose(1, 2)  # (B, T, 3, H, W)
        network = self.model
        features = network.forward_features(frames.flatten(0, 1))
        vectors = network.forward_head(features, pre_logits=True).unflatten(0, frames.shape[:2])
        outputs = {"cls": vectors.mean(dim=1) if self.pool is None else self.pool(vectors)}
        places = self._places(features)
        if places is not None:
            outputs["features"] = places.unflatten(0, frames.shape[:2])
        return outputs

    def _places(self, features: Tensor) -> Tensor | None:
        """An image model's features as (N, h, w, D), or None if they lie on no grid."""
        network = self.model
        if features.ndim == 4:
            return features if _channels_last(network) else features.movedim(1, -1)
        grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
        prefix = getattr(network, "num_prefix_tokens", 0)  # [CLS] and registers
        if features.ndim != 3 or not grid or features.shape[1] != prefix + grid[0] * grid[1]:
            return None
        return features[:, prefix:].unflatten(1, tuple(grid))


def _channels_last(network: nn.Module) -> bool:
    """Whether its feature maps are (N, H, W, C), as timm's Swin models say of themselves."""
    return getattr(network, "output_fmt", None) == "NHWC"


class _LateAttention(nn.Module):
    """One learnt query attends to the frames' vectors."""

    def __init__(self, embed_dim: int, num_frames: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the width {embed_dim}")
        self.query = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, num_frames, embed_dim) * 0.02)
        self.norm = nn.LayerNorm(embed_dim)
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        if vectors.shape[1] != self.position.shape[1]:
            raise ValueError(
                f"attention pooling was built for {self.position.shape[1]} frames, "
                f"found {vectors.shape[1]}"
            )
        keys = self.norm(vectors + self.position)
        query = self.query.expand(len(vectors), -1, -1)
        pooled, _ = self.attention(query, keys, keys, need_weights=False)
        return vectors.mean(dim=1) + pooled.squeeze(1)
