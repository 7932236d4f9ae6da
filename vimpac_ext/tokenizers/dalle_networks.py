"""Encoder and decoder of DALL-E's discrete VAE (Ramesh et al., 2021).

Parameters are named as in OpenAI's published networks, so their weights load unchanged.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NUM_GROUPS = 4


class _Conv(nn.Module):
    """Convolution that keeps the size, with parameters named ``w`` and ``b``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.b = nn.Parameter(torch.empty(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class _Block(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_sizes: Iterable[int], gain: float
    ) -> None:
        super().__init__()
        self.gain = gain
        if in_channels != out_channels:
            self.id_path: nn.Module = _Conv(in_channels, out_channels, 1)
        else:
            self.id_path = nn.Identity()
        inner = out_channels // 4
        channels = [in_channels, inner, inner, inner, out_channels]
        self.res_path = nn.ModuleDict(
            {
                f"conv_{i + 1}": _Conv(channels[i], channels[i + 1], kernel_size)
                for i, kernel_size in enumerate(kernel_sizes)
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        identity: Tensor = self.id_path(features)
        for conv in self.res_path.values():
            features = conv(features.relu())
        return identity + self.gain * features


class _Network(nn.Module):
    """Input convolution, four groups of blocks with a change of size between them, output."""

    def __init__(
        self,
        input_conv: _Conv,
        widths: list[int],
        blocks_per_group: int,
        kernel_sizes: tuple[int, ...],
        out_channels: int,
    ) -> None:
        super().__init__()
        gain = 1 / (_NUM_GROUPS * blocks_per_group) ** 2
        blocks: dict[str, nn.Module] = {"input": input_conv}
        width = input_conv.w.shape[0]
        for group, out_width in enumerate(widths, start=1):
            layers = nn.ModuleDict()
            for block in range(1, blocks_per_group + 1):
                layers[f"block_{block}"] = _Block(width, out_width, kernel_sizes, gain)
                width = out_width
            blocks[f"group_{group}"] = layers
        blocks["output"] = nn.ModuleDict({"conv": _Conv(width, out_channels, 1)})
        self.blocks = nn.ModuleDict(blocks)

    def _after_input(self, features: Tensor) -> Tensor:
        for group in range(1, _NUM_GROUPS + 1):
            for block in cast(nn.ModuleDict, self.blocks[f"group_{group}"]).values():
                features = block(features)
            if group < _NUM_GROUPS:
                features = self._resize(features)
        logits: Tensor = cast(nn.ModuleDict, self.blocks["output"])["conv"](features.relu())
        return logits

    def _resize(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class DalleEncoder(_Network):
    """Images to logits of tokens, a token for each 8 x 8 pixels."""

    def __init__(
        self, hidden_dim: int = 256, blocks_per_group: int = 2, vocab_size: int = 8192
    ) -> None:
        """Builds the network; its parameters are not initialised.

        Args:
            hidden_dim: channels of the first group; each later group has twice as many.
            blocks_per_group: residual blocks in each of the four groups.
            vocab_size: number of tokens.
        """
        widths = [hidden_dim * 2**group for group in range(_NUM_GROUPS)]
        super().__init__(
            input_conv=_Conv(3, hidden_dim, 7),
            widths=widths,
            blocks_per_group=blocks_per_group,
            kernel_sizes=(3, 3, 3, 1),
            out_channels=vocab_size,
        )
        self.vocab_size = vocab_size

    def forward(self, images: Tensor) -> Tensor:
        """Scores each token: (N, 3, H, W) in [0.1, 0.9] -> (N, vocab_size, H/8, W/8)."""
        return self._after_input(self.blocks["input"](images))

    def _resize(self, features: Tensor) -> Tensor:
        return F.max_pool2d(features, 2)


class DalleDecoder(_Network):
    """Tokens to the mean and spread, before the logistic function, of each colour value."""

    def __init__(
        self,
        hidden_dim: int = 256,
        input_dim: int = 128,
        blocks_per_group: int = 2,
        vocab_size: int = 8192,
    ) -> None:
        """Builds the network; its parameters are not initialised.

        Args:
            hidden_dim: channels of the last group; each earlier group has twice as many.
            input_dim: channels of a token's embedding.
            blocks_per_group: residual blocks in each of the four groups.
            vocab_size: number of tokens.
        """
        widths = [hidden_dim * 2**group for group in reversed(range(_NUM_GROUPS))]
        super().__init__(
            input_conv=_Conv(vocab_size, input_dim, 1),
            widths=widths,
            blocks_per_group=blocks_per_group,
            kernel_sizes=(1, 3, 3, 3),
            out_channels=6,
        )
        self.vocab_size = vocab_size

    def forward(self, tokens: Tensor) -> Tensor:
        """Decodes int64 (N, h, w) to (N, 6, 8h, 8w): three means, then three log spreads."""
        conv = cast(_Conv, self.blocks["input"])
        # A 1 x 1 convolution of a one-hot code is a look-up, without its 8192 channels.
        features = F.embedding(tokens, conv.w[:, :, 0, 0].T) + conv.b
        return self._after_input(features.permute(0, 3, 1, 2))

    def _resize(self, features: Tensor) -> Tensor:
        return F.interpolate(features, scale_factor=2, mode="nearest")
