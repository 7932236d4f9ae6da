"""A small VQ-VAE that anyone can train on their own videos in minutes.

The encoder sees 12 x 12 pixels for each token, its 8 x 8 patch and 2 pixels around it, and nothing
normalises over positions. So a token depends on what is near it alone: a still background keeps
its tokens while something else moves.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vimpac_ext.files import atomic_write, is_remote, local_path
from vimpac_ext.registries import TOKENIZERS
from vimpac_ext.tokenizers.common import (
    check_frames,
    check_tokens,
    encoding_precision,
    full_precision,
    weights_fingerprint,
)

DEMO_WEIGHTS = Path(__file__).parent / "weights" / "vqvae_demo.safetensors"
_DEFAULT_SIZES = {"vocab_size": 512, "hidden_dim": 128, "code_dim": 16}


@TOKENIZERS.register()
class VQVAETokenizer(nn.Module):
    """Vector-quantised autoencoder, 8 x 8 pixels a token (van den Oord et al., 2017).

    Frozen as built; `TrainTokenizerTask` trains one.

    Attributes:
        vocab_size: number of codes.
        stride: pixels per token along each side.
        codebook: float32 (vocab_size, code_dim), a buffer: it follows moving averages, no gradient.
        precision: arithmetic of `encode`, "fp32" or "bf16"; may be set. Codes are compared in
            float32 in any case.
    """

    stride = 8
    precision = "fp32"

    def __init__(
        self,
        weights: str | None = "demo",
        vocab_size: int | None = None,
        hidden_dim: int | None = None,
        code_dim: int | None = None,
    ) -> None:
        """Builds the network that the weights file describes, or a new one to be trained.

        Args:
            weights: path or URL of a file written by `save`; "demo" = the one that comes with the
                library, trained on the demo's videos; None = random weights.
            vocab_size: number of codes; None = as in the file, 512 in a new network.
            hidden_dim: width at token resolution, even; None = as in the file, or 128.
            code_dim: size of a code; None = as in the file, or 16.

        Raises:
            FileNotFoundError: there is no such weights file.
            ValueError: the file is no VQ-VAE of this library, or is of other sizes than asked for;
                `hidden_dim` is odd.
        """
        super().__init__()
        options = {"vocab_size": vocab_size, "hidden_dim": hidden_dim, "code_dim": code_dim}
        asked = {name: size for name, size in options.items() if size is not None}
        if weights is None:
            tensors, sizes = None, {**_DEFAULT_SIZES, **asked}
        else:
            path = local_path(weights) if is_remote(weights) else Path(weights)
            tensors, sizes = _read_weights(DEMO_WEIGHTS if weights == "demo" else path)
            for name, size in asked.items():
                if size != sizes[name]:
                    raise ValueError(f"{weights} has {name} {sizes[name]}, but {size} is asked for")
        if sizes["hidden_dim"] % 2:
            raise ValueError(f"hidden_dim must be even, found {sizes['hidden_dim']}")
        self.vocab_size = sizes["vocab_size"]
        self.hidden_dim = sizes["hidden_dim"]
        self.code_dim = sizes["code_dim"]
        self.encoder = _encoder(self.hidden_dim, self.code_dim)
        self.decoder = _decoder(self.hidden_dim, self.code_dim)
        self.codebook: Tensor
        self.register_buffer("codebook", torch.randn(self.vocab_size, self.code_dim))
        if tensors is None:
            self.apply(_initialise)
        else:
            self._load(tensors, str(weights))
        self.requires_grad_(False).eval()

    @property
    def fingerprint(self) -> str:
        """Class name and hash of the present weights."""
        return weights_fingerprint(type(self).__name__, self.state_dict())

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Tokenizes frames, in `precision` even under autocast.

        Args:
            frames: float (N, 3, H, W) in [0, 1].

        Returns:
            int64 (N, H/8, W/8) in 0..vocab_size-1.

        Raises:
            ValueError: H or W is not divisible by 8.
        """
        with encoding_precision(frames.device, self.precision):
            features = self.features(frames).float()
        with full_precision(frames.device):
            return self.nearest_codes(features)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Draws the frames that tokens stand for.

        Args:
            tokens: int64 (N, h, w) in 0..vocab_size-1.

        Returns:
            float32 (N, 3, 8h, 8w) in [0, 1].

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        check_tokens(tokens, self.vocab_size)
        with full_precision(tokens.device):
            return self.reconstruct(self.codebook[tokens]).clamp(0, 1)

    def features(self, frames: Tensor) -> Tensor:
        """Encodes frames, (N, 3, H, W) in [0, 1], to (N, h, w, code_dim) before quantisation."""
        check_frames(frames, self.stride)
        features: Tensor = self.encoder(frames.to(self.codebook.dtype) * 2 - 1)
        return features.permute(0, 2, 3, 1)

    def nearest_codes(self, features: Tensor) -> Tensor:
        """Finds the code of the smallest Euclidean distance: (..., code_dim) -> int64 (...)."""
        flat = features.reshape(-1, self.code_dim)
        half_norms = self.codebook.square().sum(1) / 2  # (vocab_size,)
        # |f - c|^2 / 2 without |f|^2, which is the same for all codes.
        distances = torch.addmm(half_norms, flat, self.codebook.T, alpha=-1)
        return distances.argmin(1).view(features.shape[:-1])

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Decodes (N, h, w, code_dim) to frames (N, 3, 8h, 8w), not clamped to [0, 1]."""
        centred: Tensor = self.decoder(codes.permute(0, 3, 1, 2))
        return (centred + 1) / 2

    def save(self, path: str | Path) -> None:
        """Writes weights and sizes as safetensors, atomically; ``weights=path`` loads them.

        Args:
            path: file to write; missing folders are made.
        """
        sizes = {name: getattr(self, name) for name in _DEFAULT_SIZES}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_write(path, "wb") as file:
            file.write(save(tensors, metadata={type(self).__name__: json.dumps(sizes)}))

    def _load(self, tensors: dict[str, Tensor], source: str) -> None:
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:  # names every missing, unexpected and wrong-sized tensor
            raise ValueError(f"{source} does not fit its own description: {error}") from error


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        residual: Tensor = self.layers(features)
        return features + residual


def _initialise(module: nn.Module) -> None:
    # Keeps the variance through all layers. In short trials from PyTorch's default, which shrinks
    # it, some runs were still far behind after 200 steps.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _encoder(hidden_dim: int, code_dim: int) -> nn.Sequential:
    return nn.Sequential(
        # The one layer that looks over the edge of the patch: 2 pixels on each side. In short
        # trials 4 pixels were slower and showed no clear gain.
        nn.Conv2d(3, hidden_dim // 2, 8, stride=4, padding=2),
        nn.ReLU(),
        nn.Conv2d(hidden_dim // 2, hidden_dim, 2, stride=2),
        _ResidualBlock(hidden_dim, kernel_size=1),
        _ResidualBlock(hidden_dim, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(hidden_dim, code_dim, 1),
    )


def _decoder(hidden_dim: int, code_dim: int) -> nn.Sequential:
    # The decoder may look around: only the encoder decides the tokens.
    return nn.Sequential(
        nn.Conv2d(code_dim, hidden_dim, 3, padding=1),
        _ResidualBlock(hidden_dim, kernel_size=3),
        _ResidualBlock(hidden_dim, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(hidden_dim, 2 * hidden_dim, 1),
        nn.PixelShuffle(2),  # hidden_dim / 2 channels at 4 pixels
        _ResidualBlock(hidden_dim // 2, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(hidden_dim // 2, 3 * 4 * 4, 3, padding=1),
        nn.PixelShuffle(4),
    )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors of a file and the sizes written in its metadata."""
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    if VQVAETokenizer.__name__ not in metadata:
        raise ValueError(
            f"{path} was not written by {VQVAETokenizer.__name__}.save; it holds "
            f"{', '.join(sorted(tensors)[:3]) or 'no tensors'} ..."
        )
    return tensors, json.loads(metadata[VQVAETokenizer.__name__])
