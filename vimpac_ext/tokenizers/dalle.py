"""The discrete VAE of DALL-E (Ramesh et al., 2021), the tokenizer of the paper (Section 3.1)."""

import math
from functools import cached_property

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vimpac_ext.files import local_path
from vimpac_ext.registries import TOKENIZERS
from vimpac_ext.tokenizers.common import (
    check_frames,
    check_tokens,
    encoding_precision,
    full_precision,
    weights_fingerprint,
)
from vimpac_ext.tokenizers.dalle_networks import DalleDecoder, DalleEncoder
from vimpac_ext.tokenizers.safe_pickle import read_tensors

ENCODER_URL = "https://cdn.openai.com/dall-e/encoder.pkl"
DECODER_URL = "https://cdn.openai.com/dall-e/decoder.pkl"

_LOGIT_MARGIN = 0.1  # images are squeezed to [0.1, 0.9], so that a logit can describe each value


@TOKENIZERS.register()
class DalleTokenizer(nn.Module):
    """The frozen DALL-E tokenizer: 8192 tokens, 8 x 8 pixels each.

    It runs in its own `precision`, also under autocast. The authors' extraction ran in half
    precision, which may choose another token where two have nearly the same logit.

    Attributes:
        vocab_size: number of tokens.
        stride: pixels per token along each side.
        precision: arithmetic of `encode`, "fp32" or "bf16"; may be set.
    """

    stride = 8
    precision = "fp32"

    def __init__(self, encoder: str | None = ENCODER_URL, decoder: str | None = None) -> None:
        """Reads the weights; sizes follow from them.

        Args:
            encoder: path, or URL to download once, of OpenAI's ``encoder.pkl``, of a saved state
                dict or of a safetensors file. None = the full-size network with random weights
                (always the same), which makes meaningless tokens, to try a pipeline.
            decoder: likewise, ``decoder.pkl``; None = cannot `decode`.

        Raises:
            FileNotFoundError: a file is missing or cannot be downloaded.
            ValueError: a file holds something else.
        """
        super().__init__()
        self.encoder = _random_encoder() if encoder is None else _load_encoder(encoder)
        self.decoder = None if decoder is None else _load_decoder(decoder)
        self.vocab_size = self.encoder.vocab_size
        if self.decoder is not None and self.decoder.vocab_size != self.vocab_size:
            raise ValueError(
                f"encoder {encoder} has {self.vocab_size} tokens, "
                f"but decoder {decoder} has {self.decoder.vocab_size}"
            )
        self.requires_grad_(False).eval()

    @cached_property
    def fingerprint(self) -> str:
        """Class name and hash of the encoder's weights; the decoder does not change tokens."""
        return weights_fingerprint(type(self).__name__, self.encoder.state_dict())

    @torch.no_grad()
    def logits(self, frames: Tensor) -> Tensor:
        """Scores every token.

        Args:
            frames: float (N, 3, H, W) in [0, 1].

        Returns:
            float32 (N, vocab_size, H/8, W/8).

        Raises:
            ValueError: H or W is not divisible by 8.
        """
        check_frames(frames, self.stride)
        with encoding_precision(frames.device, self.precision):
            scores: Tensor = self.encoder(frames.float() * (1 - 2 * _LOGIT_MARGIN) + _LOGIT_MARGIN)
        return scores.float()

    def encode(self, frames: Tensor) -> Tensor:
        """Tokenizes frames: the token of the highest logit, without noise.

        Args:
            frames: float (N, 3, H, W) in [0, 1].

        Returns:
            int64 (N, H/8, W/8) in 0..vocab_size-1.

        Raises:
            ValueError: H or W is not divisible by 8.
        """
        return self.logits(frames).argmax(dim=1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Draws the frames that tokens stand for.

        Args:
            tokens: int64 (N, h, w) in 0..vocab_size-1.

        Returns:
            float32 (N, 3, 8h, 8w) in [0, 1].

        Raises:
            ValueError: there is no decoder, or a token is outside the vocabulary.
        """
        if self.decoder is None:
            raise ValueError(
                f"this DalleTokenizer has no decoder; give one, such as decoder={DECODER_URL!r}"
            )
        check_tokens(tokens, self.vocab_size)
        with full_precision(tokens.device):
            means = self.decoder(tokens)[:, :3].sigmoid()
        frames: Tensor = (means - _LOGIT_MARGIN) / (1 - 2 * _LOGIT_MARGIN)
        return frames.clamp(0, 1)


def _load_encoder(source: str) -> DalleEncoder:
    tensors = _read_weights(source, official_url=ENCODER_URL)
    with torch.device("meta"):
        network = DalleEncoder(
            hidden_dim=_size(tensors, "blocks.input.w", 0, source),
            blocks_per_group=_count_blocks(tensors),
            vocab_size=_size(tensors, "blocks.output.conv.w", 0, source),
        )
    _assign(network, tensors, f"{source} is not a DALL-E encoder")
    return network


def _load_decoder(source: str) -> DalleDecoder:
    tensors = _read_weights(source, official_url=DECODER_URL)
    with torch.device("meta"):
        network = DalleDecoder(
            hidden_dim=_size(tensors, "blocks.output.conv.w", 1, source),
            input_dim=_size(tensors, "blocks.input.w", 0, source),
            blocks_per_group=_count_blocks(tensors),
            vocab_size=_size(tensors, "blocks.input.w", 1, source),
        )
    _assign(network, tensors, f"{source} is not a DALL-E decoder")
    return network


def _random_encoder() -> DalleEncoder:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = DalleEncoder()
    tensors = {}
    for name, parameter in network.state_dict().items():
        scale = 1 / math.sqrt(parameter[0].numel()) if name.endswith(".w") else 0.0
        tensors[name] = torch.randn(parameter.shape, generator=generator) * scale
    _assign(network, tensors, "the random weights do not fit")
    return network


def _size(tensors: dict[str, Tensor], name: str, axis: int, source: str) -> int:
    if name not in tensors or tensors[name].ndim != 4:
        raise ValueError(
            f"{source} is not a network of DALL-E: no four-dimensional {name!r} in it, "
            f"but {', '.join(sorted(tensors)[:3])} ..."
        )
    return tensors[name].shape[axis]


def _count_blocks(tensors: dict[str, Tensor]) -> int:
    prefix = "blocks.group_1.block_"
    return len({name.split(".")[2] for name in tensors if name.startswith(prefix)}) or 1


def _assign(network: nn.Module, tensors: dict[str, Tensor], complaint: str) -> None:
    try:
        network.load_state_dict(
            {name: tensor.float() for name, tensor in tensors.items()}, assign=True
        )
    except RuntimeError as error:  # names every missing, unexpected and wrong-sized tensor
        raise ValueError(f"{complaint}: {error}") from error


def _read_weights(source: str, official_url: str) -> dict[str, Tensor]:
    path = local_path(source, official_url)
    if path.suffix != ".safetensors":
        return read_tensors(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
