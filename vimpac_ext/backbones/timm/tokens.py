"""timm's vision transformers over token clips, in place of image patches."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimpac_ext.backbones.layer_numbers import layer_number
from vimpac_ext.backbones.timm.image_model import create_image_model
from vimpac_ext.registries import BACKBONES
from vimpac_ext.structures import SpecialTokens, TokenGrid


@BACKBONES.register()
class TimmTokens(nn.Module):
    """The layers of a plain vision transformer on the embeddings of a clip's tokens.

    Every token attends to all tokens of the clip that are no padding. The model's patch embedding
    and position table give way to a token embedding and a table of the clip's grid.

    Args:
        grid: frames, height and width in tokens.
        vocab_size: V of the tokenizer; the embedding has V+5 rows (see `SpecialTokens`).
        model: timm's name of a plain vision transformer, e.g. "vit_small_patch16_224".
        pretrained: start the layers from timm's own weights.
        options: further keyword arguments of `timm.create_model`, e.g. {depth: 6}.
        activation_checkpointing: recompute each layer in the backward pass to save memory.

    Attributes:
        input_kind: "tokens".
        embed_dim: D.
        num_layers: number of layers.
        token_embedding: the embedding table, to which a head may be tied.

    Raises:
        ValueError: timm has no such model, or it is no plain vision transformer with [CLS].
    """

    input_kind = "tokens"

    def __init__(
        self,
        grid: tuple[int, int, int],
        vocab_size: int,
        model: str,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        network = create_image_model(model, None, "", pretrained, options)
        from timm.models.vision_transformer import VisionTransformer

        if type(network) is not VisionTransformer or network.cls_token is None:
            raise ValueError(
                f"TimmTokens needs a plain vision transformer such as vit_small_patch16_224; "
                f"{model!r} is a {type(network).__name__}"
            )
        self.grid = TokenGrid(*grid)
        self.special = SpecialTokens(vocab_size)
        self.embed_dim = network.embed_dim
        self.num_layers = len(network.blocks)
        self.activation_checkpointing = activation_checkpointing
        self.token_embedding = nn.Embedding(self.special.num_embeddings, self.embed_dim)
        self.cls_token = nn.Parameter(network.cls_token.detach().clone())
        self.position = nn.Parameter(torch.empty(1, *self.grid, self.embed_dim))
        self.norm_pre, self.layers, self.norm = network.norm_pre, network.blocks, network.norm
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, 0 (embedding) to ``num_layers`` + 1 (see `layer_number`)."""
        return layer_number(
            name,
            ("token_embedding.", "cls_token", "position", "norm_pre."),
            ("layers.",),
            self.num_layers,
        )

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Encodes token clips.

        Args:
            clip: int64 (B, T, H, W) token ids, special ids included.

        Returns:
            "cls" (B, D) and "features" (B, T, H, W, D).

        Raises:
            ValueError: the clip is not of the model's grid.
        """
        if tuple(clip.shape[1:]) != self.grid:
            raise ValueError(
                f"TimmTokens was built for clips of {tuple(self.grid)} tokens, found "
                f"{tuple(clip.shape[1:])}"
            )
        tokens = (self.token_embedding(clip) + self.position).flatten(1, 3)
        x = self.norm_pre(torch.cat([self.cls_token.expand(len(clip), -1, -1), tokens], dim=1))
        is_pad = (clip == self.special.pad).flatten(1)
        visible = torch.cat([torch.ones_like(is_pad[:, :1]), ~is_pad], dim=1)[:, None, None]
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, visible, use_reentrant=False)
            else:
                x = layer(x, attn_mask=visible)
        x = self.norm(x)
        return {"cls": x[:, 0], "features": x[:, 1:].unflatten(1, self.grid)}
