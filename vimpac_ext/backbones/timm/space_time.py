"""timm's vision transformers over space and time."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimpac_ext.backbones.pixels import PixelBackbone
from vimpac_ext.backbones.timm.image_model import (
    channel_statistics,
    create_image_model,
    layer_numbers,
    square_side,
)
from vimpac_ext.registries import BACKBONES

ATTENTIONS = ("joint", "divided")


@BACKBONES.register()
class TimmSpaceTime(PixelBackbone):
    """A timm vision transformer whose tokens are the patches of all frames (TimeSformer).

    Its image weights, if any, are kept; frames are told apart by a position table over time. With
    "joint" attention every patch attends to all patches of the clip. With "divided" attention
    (Bertasius et al. 2021, arXiv 2102.05095) a layer first attends along time at the same place,
    then within the frame; the attention along time starts as a copy of the spatial one whose
    output is switched off.

    Args:
        clip_size: frames, height and width in pixels.
        model: timm's name of a plain vision transformer, e.g. "vit_base_patch16_224".
        attention: "joint" or "divided".
        weights: file or URL of a state dict of the image model.
        pretrained: take timm's own weights.
        options: further keyword arguments of `timm.create_model`.
        activation_checkpointing: recompute each layer in the backward pass to save memory.
        mean: of the channels; None = as the image model was trained.
        std: of the channels; None = as the image model was trained.

    Raises:
        ValueError: an unknown attention, or a model that is no plain vision transformer, has blocks
            that divided attention cannot part, or drops patches.
    """

    def __init__(
        self,
        clip_size: Sequence[int],
        model: str,
        attention: str = "divided",
        weights: str = "",
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
        activation_checkpointing: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"attention={attention!r} is not one of {', '.join(ATTENTIONS)}")
        network = create_image_model(model, square_side(clip_size), weights, pretrained, options)
        super().__init__(clip_size, *channel_statistics(network, mean, std))
        from timm.models.vision_transformer import Block, VisionTransformer

        if type(network) is not VisionTransformer:
            raise ValueError(
                f"TimmSpaceTime needs a plain vision transformer such as vit_base_patch16_224; "
                f"{model!r} is a {type(network).__name__}"
            )
        if not isinstance(network.patch_drop, nn.Identity):
            raise ValueError("TimmSpaceTime drops no patches: leave out the option patch_drop_rate")
        other = {type(block).__name__ for block in network.blocks if type(block) is not Block}
        if attention == "divided" and other:
            raise ValueError(
                f"divided attention needs timm's usual blocks; those of {model!r} are "
                f"{', '.join(other)}: set attention to joint"
            )
        self._layers, self.num_layers = layer_numbers(network), len(network.blocks)
        network.reset_classifier(0)
        self.embed_dim = network.embed_dim
        self.model = network
        self.activation_checkpointing = activation_checkpointing
        self.time_position = nn.Parameter(torch.zeros(1, clip_size[0], 1, self.embed_dim))
        self.time_layers = nn.ModuleList()
        if attention == "divided":
            self.time_layers.extend(_TimeAttention(block) for block in network.blocks)
            network.blocks = nn.Sequential(*(_FrameBlock(block) for block in network.blocks))
        self.require_fit("Set DATA.NUM_FRAMES, TRAIN_CROP_SIZE and TEST_CROP_SIZE")

    @property
    def layers(self) -> nn.ModuleList:
        """What attends, in the order of calls: with "divided", along time and within frames."""
        blocks = self.model.blocks
        if not self.time_layers:
            return nn.ModuleList(blocks)
        pairs = zip(self.time_layers, blocks, strict=True)
        return nn.ModuleList(module for pair in pairs for module in pair)

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, 0 (embedding) to ``num_layers``, as timm numbers them."""
        if name == "time_position":
            return 0
        if name.startswith("time_layers."):  # each goes with the layer that it stands before
            return int(name.split(".")[1]) + 1
        return self._layers[name.removeprefix("model.")]

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Encodes clips.

        Args:
            clip: float (B, 3, T, H, W) in [0, 1], of the size that the model was built for.

        Returns:
            "cls" (B, D) and "features" (B, T, h, w, D).
        """
        frames = self.normalized(clip).transpose(1, 2)  # (B, T, 3, H, W)
        if frames.shape[1] != self.clip_size[0]:
            raise ValueError(
                f"TimmSpaceTime was built for {self.clip_size[0]} frames, found {frames.shape[1]}"
            )
        network = self.model
        x = network._pos_embed(network.patch_embed(frames.flatten(0, 1)))
        x = network.norm_pre(x).unflatten(0, frames.shape[:2])  # (B, T, prefix + N, D)
        num_prefix = network.num_prefix_tokens  # [CLS] and registers, the same in every frame
        prefix, patches = x[:, 0, :num_prefix], x[:, :, num_prefix:] + self.time_position
        for index in range(self.num_layers):
            if self.activation_checkpointing and self.training:
                prefix, patches = checkpoint(
                    self._layer, index, prefix, patches, use_reentrant=False
                )
            else:
                prefix, patches = self._layer(index, prefix, patches)
        x = network.norm(torch.cat([prefix, patches.flatten(1, 2)], dim=1))
        grid = (clip.shape[2], *network.patch_embed.grid_size)
        features = x[:, num_prefix:].unflatten(1, grid)
        return {"cls": network.forward_head(x, pre_logits=True), "features": features}

    def _layer(self, index: int, prefix: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        block = self.model.blocks[index]
        if self.time_layers:
            x = block(prefix, self.time_layers[index](patches))
        else:
            x = block(torch.cat([prefix, patches.flatten(1, 2)], dim=1))
        num_prefix = prefix.shape[1]
        return x[:, :num_prefix], x[:, num_prefix:].view_as(patches)


class _FrameBlock(nn.Module):
    """A block of the image model on every frame of a clip; its parameters keep their names.

    Args:
        block: of a plain vision transformer; its parts become this one's.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, part)

    def forward(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """(B, P, D), which all frames share, and (B, T, N, D) -> both in one, (B, P + T*N, D)."""
        part: Any = self  # its modules have the names that timm gave them
        batch, num_frames, num_patches, _ = patches.shape
        repeated = prefix[:, None].expand(-1, num_frames, -1, -1)
        x = torch.cat([repeated, patches], dim=2).flatten(0, 1)  # (B*T, P + N, D)
        change = part.drop_path1(part.ls1(part.attn(part.norm1(x))))
        change = change.unflatten(0, (batch, num_frames))
        # The frames' prefix tokens ([CLS]) become one again by averaging.
        prefix = prefix + change[:, :, : prefix.shape[1]].mean(dim=1)
        patches = patches + change[:, :, -num_patches:]
        x = torch.cat([prefix, patches.flatten(1, 2)], dim=1)
        return x + part.drop_path2(part.ls2(part.mlp(part.norm2(x))))  # no view: FSDP hooks on it


class _TimeAttention(nn.Module):
    """Attention along time at one place, a residual that starts as nothing."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm = copy.deepcopy(block.norm1)
        self.attn = copy.deepcopy(block.attn)
        width = self.attn.proj.out_features
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, T, N, D) -> the same shape."""
        rows = patches.transpose(1, 2)  # (B, N, T, D)
        change = self.output(self.attn(self.norm(rows.flatten(0, 1))))
        return patches + change.view_as(rows).transpose(1, 2)
