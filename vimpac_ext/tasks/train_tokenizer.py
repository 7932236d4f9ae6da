"""Training of a vector-quantising tokenizer."""

from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from vimpac_ext.losses.gather import gather, num_processes, sum_over_processes
from vimpac_ext.registries import TASKS
from vimpac_ext.tokenizers.common import full_precision


class TrainableTokenizer(Protocol):
    """What `TrainTokenizerTask` needs of a tokenizer, besides parameters.

    Attributes:
        codebook: float32 (V, D) buffer, which the task moves.
    """

    codebook: Tensor

    def features(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [0, 1] -> (N, h, w, D), to be quantised."""

    def nearest_codes(self, features: Tensor) -> Tensor:
        """Vectors (..., D) -> rows of the codebook, int64 (...)."""

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Quantised vectors (N, h, w, D) -> frames (N, 3, H, W)."""

    def save(self, path: str | Path) -> None:
        """Writes the weights, atomically."""


@TASKS.register()
class TrainTokenizerTask(nn.Module):
    """Trains a VQ-VAE (van den Oord et al., 2017, with the codebook of its Appendix A.1).

    Encoder and decoder follow the gradient, straight through the quantisation. Each code follows
    the exponential moving average of the vectors that chose it. A code that has become rare is
    dead and is put on a vector of the batch; at the first step all are, which starts the codebook
    on the data. With several processes the codebook follows the vectors of all, as one process
    that has them all would let it.
    """

    input_kind: ClassVar[str] = "pixels"
    clip_mode: ClassVar[str] = "random"

    def __init__(
        self,
        tokenizer: nn.Module,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.9,
        restart_below: float = 0.3,
    ) -> None:
        """Takes the tokenizer over for training.

        Args:
            tokenizer: a `TrainableTokenizer`, such as ``VQVAETokenizer(weights=None)``.
            commitment_weight: how strongly features are pulled to their code.
            ema_decay: of the averages that codes follow. Lower than the usual 0.99, since a new
                encoder moves fast and codes that lag behind it die.
            restart_below: a code is dead when used less often than this part of the mean use.

        Raises:
            ValueError: the tokenizer cannot be trained, or `ema_decay` or `restart_below` is not
                between 0 and 1.
        """
        super().__init__()
        needed = ("codebook", "features", "nearest_codes", "reconstruct", "save")
        missing = [name for name in needed if not hasattr(tokenizer, name)]
        if missing:
            raise ValueError(
                f"{type(tokenizer).__name__} cannot be trained: it has no {', '.join(missing)}. "
                "VQVAETokenizer can (weights: null starts a new one)"
            )
        for name, value in {"ema_decay": ema_decay, "restart_below": restart_below}.items():
            if not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, found {value}")
        self.tokenizer = tokenizer.requires_grad_(True)
        self.commitment_weight = commitment_weight
        self.ema_decay = ema_decay
        self.restart_below = restart_below
        codebook = self._trainable.codebook
        self.code_counts: Tensor
        self.register_buffer("code_counts", torch.zeros_like(codebook[:, 0]))  # (V,)
        self.code_sums: Tensor
        self.register_buffer("code_sums", torch.zeros_like(codebook))  # (V, D)

    @property
    def _trainable(self) -> TrainableTokenizer:
        return cast(TrainableTokenizer, self.tokenizer)

    def training_step(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Reconstructs all frames of a batch and moves the codebook.

        Args:
            batch: "clips", float (B, C, 3, T, H, W) in [0, 1].
            generator: chooses the vectors that dead codes are put on.

        Returns:
            Scalars: "loss" = "reconstruction_loss" (mean absolute error of a colour value) +
            commitment_weight * "commitment_loss"; "perplexity" of the codes in this batch, between
            1 (collapsed) and V.

        Raises:
            ValueError: the batch does not hold pixel clips.
        """
        clips = batch["clips"]
        if clips.ndim != 6 or clips.shape[2] != 3 or not clips.is_floating_point():
            raise ValueError(
                "training a tokenizer takes pixel clips, float (B, C, 3, T, H, W); "
                f"found {clips.dtype} {tuple(clips.shape)}"
            )
        frames = clips.transpose(2, 3).flatten(0, 2)  # (B*C*T, 3, H, W)
        features = self._trainable.features(frames).float()  # (N, h, w, D)
        with full_precision(frames.device):
            codes, tokens = self._quantise(features.detach(), generator)
        straight_through = features + (codes - features).detach()
        reconstructed = self._trainable.reconstruct(straight_through).float()
        reconstruction_loss = (reconstructed - frames).abs().mean()
        commitment_loss = (features - codes).square().mean()
        return {
            "loss": reconstruction_loss + self.commitment_weight * commitment_loss,
            "reconstruction_loss": reconstruction_loss.detach(),
            "commitment_loss": commitment_loss.detach(),
            "perplexity": _perplexity(tokens, len(self.code_counts)),
        }

    def export(self, path: str | Path) -> None:
        """Writes the tokenizer, for ``TOKENIZER.weights``.

        Args:
            path: safetensors file to write.
        """
        self._trainable.save(path)

    @torch.no_grad()
    def _quantise(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes (N, h, w, D) and tokens (N, h, w) of features; then moves the codebook."""
        codebook = self._trainable.codebook
        vectors = features.flatten(0, -2)  # (M, D)
        self._restart_dead_codes(_of_all_processes(vectors), generator)
        tokens = self._trainable.nearest_codes(features)
        codes = codebook[tokens]
        chosen = tokens.flatten()
        counts = _counts(tokens, len(codebook)).to(vectors.dtype)
        sums = torch.zeros_like(codebook).index_add_(0, chosen, vectors)
        for total in (counts, sums):
            sum_over_processes(total)
        self.code_counts.lerp_(counts, 1 - self.ema_decay)
        self.code_sums.lerp_(sums, 1 - self.ema_decay)
        codebook.copy_(self.code_sums / self.code_counts[:, None])
        return codes, tokens

    def _restart_dead_codes(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Puts rare codes on vectors of the batch, (M, D), with the mean count."""
        codebook = self._trainable.codebook
        mean_count = len(vectors) / len(codebook)
        dead = self.code_counts < self.restart_below * mean_count  # (V,)
        order = torch.randperm(len(vectors), generator=generator, device=generator.device)
        positions = torch.arange(len(codebook), device=order.device) % len(vectors)
        fresh = vectors[order[positions].to(vectors.device)]  # (V, D)
        codebook.copy_(torch.where(dead[:, None], fresh, codebook))
        self.code_counts.masked_fill_(dead, mean_count)
        self.code_sums.copy_(torch.where(dead[:, None], fresh * mean_count, self.code_sums))


def _counts(tokens: Tensor, vocab_size: int) -> Tensor:
    """How often each token occurs, int64 (V,)."""
    chosen = tokens.flatten()  # not by torch.bincount, which waits for a GPU
    counts = torch.zeros(vocab_size, dtype=torch.int64, device=tokens.device)
    return counts.index_add_(0, chosen, torch.ones_like(chosen))


def _perplexity(tokens: Tensor, vocab_size: int) -> Tensor:
    """Exponential of the entropy, in nats, of how often each token of all processes occurs."""
    counts = _counts(tokens, vocab_size)
    sum_over_processes(counts)
    entropy: Tensor = torch.special.entr(counts / counts.sum()).sum()
    return entropy.exp()


def _of_all_processes(vectors: Tensor) -> Tensor:
    """(M, D) of each process -> (processes * M, D), in the order of one that has all videos."""
    if num_processes() == 1:
        return vectors
    return gather(vectors).flatten(0, 1)
