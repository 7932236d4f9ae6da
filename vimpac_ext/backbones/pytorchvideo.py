"""The models of pytorchvideo's hub: C2D, I3D, Slow, SlowFast, X3D, R(2+1)D, CSN and MViT."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext import compat
from vimpac_ext.backbones.layer_numbers import layer_number
from vimpac_ext.backbones.pixels import (
    KINETICS_MEAN,
    KINETICS_STD,
    PixelBackbone,
    classifier_of,
    detach_classifier,
    load_weights,
    read_state,
    refuse_sizes,
)
from vimpac_ext.registries import BACKBONES

# Model -> module of the hub. The detection models and those for mobile devices are left out.
MODELS = {
    "c2d_r50": "resnet",
    "i3d_r50": "resnet",
    "slow_r50": "resnet",
    "slowfast_r50": "slowfast",
    "slowfast_r101": "slowfast",
    "slowfast_16x8_r101_50_50": "slowfast",
    "x3d_xs": "x3d",
    "x3d_s": "x3d",
    "x3d_m": "x3d",
    "x3d_l": "x3d",
    "r2plus1d_r50": "r2plus1d",
    "csn_r101": "csn",
    "mvit_base_16x4": "vision_transformers",
    "mvit_base_32x3": "vision_transformers",
}
_EMBEDDING = ("model.patch_embed.", "model.cls_positional_encoding.", "model.norm_patch_embed.")
FAST_PER_SLOW_FRAMES = 4  # alpha of the SlowFast models


@BACKBONES.register()
class PytorchVideoBackbone(PixelBackbone):
    """A model of pytorchvideo's hub without its classifier.

    Args:
        clip_size: frames, height and width in pixels. MViT is built for this size (its position
            tables too); the others take larger crops as well. SlowFast takes the frames of its
            fast pathway and makes the slow one itself.
        model: one of `MODELS`.
        weights: file or URL of a state dict of the whole model, its classifier included, for any
            number of classes. The files of pytorchvideo's model zoo fit.
        pretrained: take the weights of pytorchvideo's model zoo (Kinetics-400), downloaded once.
        global_pool: average over all positions before the classifier, whatever their number. The
            hub's own pooling slides a window of the model's standard size, so that a larger crop
            gives several vectors, which are averaged (the hub's X3D and R(2+1)D average their
            probabilities instead); it cannot take smaller clips.
        options: further keyword arguments of the hub's function, such as {model_depth: 50}.
        mean: of the channels.
        std: of the channels.

    Raises:
        ValueError: an unknown model or option, weights that do not fit, or a clip that it cannot
            take.
    """

    def __init__(
        self,
        clip_size: Sequence[int],
        model: str,
        weights: str = "",
        pretrained: bool = False,
        global_pool: bool = False,
        options: dict[str, Any] | None = None,
        mean: Sequence[float] = KINETICS_MEAN,
        std: Sequence[float] = KINETICS_STD,
    ) -> None:
        super().__init__(clip_size, mean, std)
        if model not in MODELS:
            raise ValueError(f"model {model!r} is unknown; choose from {', '.join(MODELS)}")
        if model.startswith("slowfast") and self.clip_size[0] % FAST_PER_SLOW_FRAMES:
            raise ValueError(
                f"{model} takes a multiple of {FAST_PER_SLOW_FRAMES} frames, so that its slow "
                f"pathway has one of each {FAST_PER_SLOW_FRAMES}; found {self.clip_size[0]} "
                "frames: set DATA.NUM_FRAMES"
            )
        compat.install()
        hub = importlib.import_module(f"pytorchvideo.models.hub.{MODELS[model]}")
        arguments = dict(options or {})
        if model.startswith("mvit"):
            frames, *sides = self.clip_size
            sizes = {"spatial_size": tuple(sides), "temporal_size": frames}
            refuse_sizes(arguments, sizes)
            arguments |= sizes
        try:
            self.model = getattr(hub, model)(pretrained=False, **arguments)
        except TypeError as error:  # how Python says that there is no such argument
            if not options:
                raise
            raise ValueError(f"{model} does not take the options {options} ({error})") from error
        self.name = model
        self.num_layers = len(self.model.blocks) if model.startswith("mvit") else None
        if pretrained and not weights:
            weights = hub.checkpoint_paths[model]
        head = self._head()
        if weights:
            state = read_state(weights)
            self._take_classes_of(state)
            load_weights(self.model, state, weights)
        linear = detach_classifier(head, "proj")
        head.activation = None  # a softmax (X3D, R(2+1)D) belongs behind the classifier
        self.embed_dim = linear.in_features
        if weights:
            self.classifier = classifier_of(linear)
        if global_pool:
            self._pool_globally(head)
        outputs = self.require_fit(
            "Set DATA.NUM_FRAMES and the crop sizes as the model's paper does, or "
            "BACKBONE.global_pool True for smaller clips"
        )
        self._feature_dim = outputs["features"].shape[-1]

    @property
    def layers(self) -> nn.ModuleList:
        """MViT's layers, or a CNN's stem and stages, in the order in which they are called."""
        blocks = list(self.model.blocks)
        if not self.name.startswith("mvit"):
            blocks.pop()  # the head: X3D's has weights, but only its parts are called
        return nn.ModuleList(block for block in blocks if any(True for _ in block.parameters()))

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, 0 (embedding) to ``num_layers`` + 1; only MViT has numbers."""
        if self.num_layers is None:
            raise ValueError(f"the layers of {self.name} are not numbered, only those of MViT")
        return layer_number(name, _EMBEDDING, ("model.blocks.",), self.num_layers)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Encodes clips.

        Args:
            clip: float (B, 3, T, H, W) in [0, 1].

        Returns:
            "cls" (B, D) and "features" (B, t, h, w, F), the map that the head averages; F is D but
            for X3D, whose head widens the average. SlowFast's has the frames of its slow pathway:
            at each place the slow features, then the average of the fast ones around it.
        """
        frames = self.normalized(clip)
        if self.name.startswith("mvit"):
            return self._forward_transformer(frames)
        if self.name.startswith("slowfast"):
            return self._forward_pathways(frames)
        *stages, head = self.model.blocks
        for stage in stages:
            frames = stage(frames)
        if self.name.startswith("x3d"):
            return self._forward_projected(frames, head)
        return {"cls": head(frames), "features": frames.movedim(1, -1)}

    def _forward_transformer(self, frames: Tensor) -> dict[str, Tensor]:
        model = self.model
        x = model.cls_positional_encoding(model.patch_embed(frames))
        x = _through(x, model.pos_drop, model.norm_patch_embed)
        shape = model.cls_positional_encoding.patch_embed_shape
        for block in model.blocks:
            x, shape = block(x, shape)
        if model.norm_embed is not None:
            x = model.norm_embed(x)
        return {"cls": model.head(x), "features": x[:, 1:].unflatten(1, tuple(shape))}

    def _forward_pathways(self, frames: Tensor) -> dict[str, Tensor]:
        *stages, pool, head = self.model.blocks
        maps = self._pathways(frames)
        for stage in stages:
            maps = stage(maps)
        slow, fast = maps
        averages = fast.unflatten(2, (slow.shape[2], -1)).mean(dim=3)  # of FAST_PER_SLOW_FRAMES
        fused = torch.cat([slow, averages], dim=1)
        return {"cls": head(pool([slow, fast])), "features": fused.movedim(1, -1)}

    def _forward_projected(self, frames: Tensor, head: Any) -> dict[str, Tensor]:
        """X3D's head convolves before and after its average; the map lies between."""
        pool = head.pool
        places = _through(frames, pool.pre_conv, pool.pre_norm, pool.pre_act)
        x = _through(places, pool.pool, pool.post_conv, pool.post_norm, pool.post_act)
        x = _through(x, head.dropout, head.output_pool)
        return {"cls": x.flatten(1), "features": places.movedim(1, -1)}

    def _pathways(self, frames: Tensor) -> list[Tensor]:
        """Slow and fast frames; which ones are slow is PySlowFast's rule."""
        num_frames = frames.shape[2]
        chosen = torch.linspace(0, num_frames - 1, num_frames // FAST_PER_SLOW_FRAMES).long()
        return [frames[:, :, chosen.to(frames.device)], frames]

    def _head(self) -> Any:
        return self.model.head if self.name.startswith("mvit") else self.model.blocks[-1]

    def _take_classes_of(self, state: Mapping[str, Tensor]) -> None:
        """Gives the model as many classes as the weights have."""
        head = self._head()
        name = next(n for n, module in self.model.named_modules() if module is head.proj)
        weight = state.get(f"{name}.weight")
        if weight is not None and len(weight) != head.proj.out_features:
            head.proj = nn.Linear(head.proj.in_features, len(weight))

    def _pool_globally(self, head: Any) -> None:
        if self.name.startswith("slowfast"):
            pools = self.model.blocks[-2].pool
            for index in range(len(pools)):
                pools[index] = nn.AdaptiveAvgPool3d(1)
        elif self.name.startswith("x3d"):
            head.pool.pool = nn.AdaptiveAvgPool3d(1)
        elif not self.name.startswith("mvit"):
            head.pool = nn.AdaptiveAvgPool3d(1)


def _through(x: Tensor, *parts: Any) -> Tensor:
    """Calls modules one after the other; those that a model does without are None."""
    for part in parts:
        x = x if part is None else part(x)
    return x
