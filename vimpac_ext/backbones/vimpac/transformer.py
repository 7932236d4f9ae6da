"""The VIMPAC backbone (paper, Section 3.1 and Appendix A)."""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimpac_ext.backbones.layer_numbers import layer_number
from vimpac_ext.backbones.vimpac.axis_attention import key_biases, parse_layout
from vimpac_ext.backbones.vimpac.dropout import Dropout
from vimpac_ext.backbones.vimpac.embedding import PositionEmbedding
from vimpac_ext.backbones.vimpac.layers import NORM_EPS, NORM_STYLES, TransformerLayer
from vimpac_ext.backbones.vimpac.weights import resize_position_tables
from vimpac_ext.registries import BACKBONES
from vimpac_ext.structures import SpecialTokens, TokenGrid

INIT_STD = 0.02
HEAD_SIZE = 64  # of the paper's models
_EMBEDDING = ("token_embedding.", "cls_token", "position.", "input_norm.")


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


@BACKBONES.register()
class VimpacTransformer(nn.Module):
    """Transformer over the discrete tokens of a clip, with attention along the grid's axes.

    The defaults are the paper's Small model. Numerically the authors' code in eval mode, and with
    its dropout and initialisation in training.

    The parameter counts of the paper's Tables 2, 11 and 14 are those of this backbone, token
    embedding included, without heads. One row does not follow from the paper's own blocks:
    Table 14 gives "T,HxW" 27.1M, but a block has as many parameters with "HxW" as with "H|W" (one
    query, key, value and output map of width D), so it has the 29.4M of "T,H|W".

    Args:
        grid: frames, height and width in tokens.
        vocab_size: V of the tokenizer; the embedding has V+5 rows (see `SpecialTokens`).
        embed_dim: D.
        num_layers: number of layers.
        num_heads: heads of each attention block; None = one per 64 channels of `embed_dim`.
        layout: axes of the attention blocks of a layer: "," = one block after the other, "|" =
            side by side, each with its share of the heads, "x" = joined: "HxW" is full attention
            over a frame, "TxHxW" over the clip.
        norm: "post" (the paper's), "pre" (standard) or "pre_normalized_residual" (the authors'
            pre-LN: the residual of an attention block starts from the normalised input).
        position: "hw_separation" (the paper's), "temporal_separation" or "default" (one table).
        halve_attention: attention of width D/2 with the same number of heads (paper, Large).
        halve_mlp: MLP of width 2D instead of 4D (paper, Large).
        dropout: after the embedding, on attention probabilities, after each block's two parts.
        activation_checkpointing: recompute each layer in the backward pass to save memory.

    Attributes:
        input_kind: "tokens".
        embed_dim: D.
        grid: the token grid it was built for.
        num_layers: number of layers.
        token_embedding: the embedding table, to which a head may be tied.

    Raises:
        ValueError: on an unknown option value, or sizes that do not fit (such as heads that do not
            divide the width).
    """

    input_kind = "tokens"

    def __init__(
        self,
        grid: tuple[int, int, int],
        vocab_size: int,
        embed_dim: int = 512,
        num_layers: int = 6,
        num_heads: int | None = None,
        layout: str = "T,H|W",
        norm: str = "post",
        position: str = "hw_separation",
        halve_attention: bool = False,
        halve_mlp: bool = False,
        dropout: float = 0.1,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORM_STYLES:
            raise ValueError(f"norm={norm!r} is not one of {', '.join(NORM_STYLES)}")
        if num_heads is None:
            if embed_dim % HEAD_SIZE:
                raise ValueError(
                    f"embed_dim={embed_dim} is not a multiple of {HEAD_SIZE}: give num_heads"
                )
            num_heads = embed_dim // HEAD_SIZE
        _require_positive(
            grid=min(grid),
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            num_layers=num_layers,
            num_heads=num_heads,
        )
        self.grid = TokenGrid(*grid)
        self.special = SpecialTokens(vocab_size)
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.norm_style = norm
        self.activation_checkpointing = activation_checkpointing
        blocks = parse_layout(layout)
        self.patterns = {pattern for block in blocks for pattern in block}

        self.token_embedding = nn.Embedding(self.special.num_embeddings, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(embed_dim))
        self.position = PositionEmbedding(self.grid, embed_dim, position)
        if norm == "post":
            self.input_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        else:
            self.output_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.input_dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                embed_dim=embed_dim,
                attention_dim=embed_dim // 2 if halve_attention else embed_dim,
                mlp_dim=2 * embed_dim if halve_mlp else 4 * embed_dim,
                num_heads=num_heads,
                layout=blocks,
                norm=norm,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self._reset_parameters(num_residuals=num_layers * (len(blocks) + 1))

    def _reset_parameters(self, num_residuals: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            elif isinstance(module, nn.Linear):
                ends_residual = name.endswith((".output", ".contract"))
                shrink = (
                    math.sqrt(num_residuals) if ends_residual and self.norm_style != "post" else 1.0
                )
                nn.init.normal_(module.weight, std=INIT_STD / shrink)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=INIT_STD)
        self.position.reset_parameters(INIT_STD)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Encodes token clips.

        Args:
            clip: integer (B, T, H, W) token ids, special ids included. Padding is not attended
                to, but gets features like any other position. In a clip of nothing but padding
                every position sees CLS alone.

        Returns:
            "cls" (B, D) and "features" (B, T, H, W, D).

        Raises:
            ValueError: if the clip is not of the model's grid, does not hold integers, or (checked
                on CPU only, where looking costs nothing) holds ids outside the embedding.
        """
        self._check(clip)
        clip = clip.long()  # token stores hold int16, which an embedding does not take
        cls_position, token_position = self.position()
        cls = (self.cls_token + cls_position).expand(clip.shape[0], -1)  # (B, D)
        tokens = self.token_embedding(clip) + token_position  # (B, T, H, W, D)
        if self.norm_style == "post":
            cls, tokens = self.input_norm(cls), self.input_norm(tokens)
        cls, tokens = self.input_dropout(cls), self.input_dropout(tokens)
        biases = key_biases(clip == self.special.pad, self.patterns)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                cls, tokens = checkpoint(layer, cls, tokens, biases, use_reentrant=False)
            else:
                cls, tokens = layer(cls, tokens, biases)
        if self.norm_style != "post":
            cls, tokens = self.output_norm(cls), self.output_norm(tokens)
        return {"cls": cls, "features": tokens}

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, 0 (embedding) to ``num_layers`` + 1 (see `layer_number`)."""
        return layer_number(name, _EMBEDDING, ("layers.",), self.num_layers)

    def adapt_state(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Fits the weights of a model for another token grid to this one's grid.

        Args:
            state: state dict of another `VimpacTransformer`.

        Returns:
            The state with resized position tables, and the names of those that changed.
        """
        adapted = resize_position_tables(state, self.grid)
        return adapted, [name for name in state if adapted[name].shape != state[name].shape]

    def _check(self, clip: Tensor) -> None:
        if clip.ndim != 4 or tuple(clip.shape[1:]) != self.grid:
            raise ValueError(
                f"the model takes token clips of shape (batch, {', '.join(map(str, self.grid))}) "
                f"= (batch, frames, height, width), got {tuple(clip.shape)}; for another grid "
                "build the model with it and resize the position tables of its weights"
            )
        if clip.is_floating_point() or clip.dtype == torch.bool:
            raise ValueError(f"the model takes token ids (integers), got {clip.dtype}")
        if clip.device.type == "cpu" and clip.numel() and not torch.compiler.is_compiling():
            lowest, highest = (int(value) for value in clip.aminmax())
            if lowest < 0 or highest >= self.special.num_embeddings:
                raise ValueError(
                    f"token ids span {lowest}..{highest}, but the vocabulary of "
                    f"{self.special.vocab_size} allows 0..{self.special.num_embeddings - 1} "
                    "(special ids included): were the tokens made by another tokenizer?"
                )
