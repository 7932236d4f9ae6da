"""VIMPAC pre-training: predict masked tokens and contrast two clips of a video (Section 3)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.losses import masked_token_accuracy
from vimpac_ext.maskers import Noise, corrupt
from vimpac_ext.registries import TASKS
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.tasks.objective import apply_heads, weighted_losses
from vimpac_ext.tasks.online import OnlineTokenizer

Masker = Callable[[Tensor, torch.Generator | None], Tensor]


@TASKS.register()
class PretrainTask(nn.Module):
    """One shared forward pass of masked clips for all heads and losses.

    Which heads and losses there are decides the objective: both, masked prediction alone or
    contrast alone (Table 4). Heads named in `unmasked_heads` see the original clips instead, in a
    second forward pass (Table 9: contrastive learning without mask).

    Args:
        backbone: token backbone.
        heads: name -> head.
        losses: name -> loss.
        vocab_size: codes of the tokenizer.
        masker: chooses the hidden tokens; each of the two clips of a video is masked on its own.
            None = nothing is hidden, and one forward pass of the original clips serves all heads.
        noise: BERT's noise, "token" (paper) or "block" (authors' code: needs a masker with
            ``blocks``); "none" = all masked tokens are hidden. See `vimpac_ext.maskers.corrupt`.
        unmasked_heads: names of the heads that see the original clips.
        tokenizer: makes the tokens from pixel clips in each step; None = the clips are tokens. A
            backbone for pixels needs it: its frames are blanked where tokens are masked, its
            features brought to the token grid (as BEVT does, arXiv 2112.01529), and the tokens
            are the targets.

    Attributes:
        input_kind: what clips it takes, "tokens" or "pixels".

    Raises:
        ValueError: if these do not fit together; names the keys of the configuration.
    """

    clip_mode: ClassVar[str] = "pair"

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        vocab_size: int,
        masker: Masker | None = None,
        noise: Literal["none", "token", "block"] = "none",
        unmasked_heads: Sequence[str] = (),
        tokenizer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.reads_pixels = getattr(backbone, "input_kind", "tokens") == "pixels"
        if self.reads_pixels and tokenizer is None:
            raise ValueError(
                f"PretrainTask with {type(backbone).__name__}, which reads pixels, needs a "
                "tokenizer for its targets: set DATA.TOKENS online"
            )
        if self.reads_pixels and noise != "none":
            raise ValueError(f"TASK.noise={noise!r} needs a backbone that reads tokens")
        _check_noise(noise, masker)
        for name in unmasked_heads:
            if name not in heads:
                there = ", ".join(heads) or "nothing"
                raise ValueError(f"TASK.unmasked_heads: HEADS has no {name!r}, only {there}")
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.losses = nn.ModuleDict(losses)
        self.masker = masker
        self.noise = noise
        self.corrupt = corrupt  # several processes draw the noise of all clips
        self.unmasked_heads = tuple(heads if masker is None else unmasked_heads)
        self.special = SpecialTokens(vocab_size)
        self.tokenize = OnlineTokenizer(tokenizer, self.special) if tokenizer else None

    @property
    def input_kind(self) -> str:
        """What clips it takes."""
        return "tokens" if self.tokenize is None else "pixels"

    def training_step(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Losses of one micro-batch.

        Args:
            batch: "clips" int64 (B, 2, T, H, W), or float (B, 2, 3, T, H, W) for pixels.
            generator: source of the mask and the noise.

        Returns:
            "loss", one "<name>_loss" for each loss and, with a token head, "mask_accuracy".

        Raises:
            ValueError: if a head or a loss reads what nothing gives, such as token logits without
                a token head.
        """
        # [clip 1 of all videos; clip 2 of all videos], the order that InfoNCE expects.
        clips = batch["clips"].transpose(0, 1).flatten(0, 1)
        tokens = clips if self.tokenize is None else self.tokenize(clips)
        outputs: dict[str, Any] = {}
        targets: dict[str, Tensor] = {}
        unmasked = {name: self.heads[name] for name in self.unmasked_heads}
        masked = {name: head for name, head in self.heads.items() if name not in unmasked}
        if unmasked or self.masker is None:
            original = self._blank(clips) if self.reads_pixels else tokens
            outputs |= apply_heads(unmasked, self.backbone(original))
        # Last: a loss that reads "cls" or "features" gets those of this pass, where there is one.
        if self.masker is not None and (masked or not unmasked):
            hidden, mask = self._hide(tokens, generator)
            targets["token_targets"] = tokens[mask]
            if self.reads_pixels:
                encoded = at_token_grid(self.backbone(self._blank(clips, mask)), mask.shape[1:])
            else:
                encoded = self.backbone(hidden)
            outputs |= apply_heads(masked, {**encoded, "mask": mask})
        scalars = weighted_losses(self.losses, outputs, targets)
        if "token_logits" in outputs:
            scalars["mask_accuracy"] = masked_token_accuracy(outputs, targets)
        return scalars

    def encode(self, clips: Tensor) -> dict[str, Tensor]:
        """What the backbone gives for clips in which nothing is hidden.

        Args:
            clips: int64 (N, T, H, W), or float (N, 3, T, H, W) where ``input_kind`` is "pixels".
        """
        if self.reads_pixels:
            clips = self._blank(clips)
        elif self.tokenize is not None:
            clips = self.tokenize(clips)
        outputs: dict[str, Tensor] = self.backbone(clips)
        return outputs

    def _hide(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draw: Any = self.masker
        if self.noise == "block":
            draw = draw.blocks
        return self.corrupt(tokens, draw(tokens, generator), self.special, self.noise, generator)

    def _blank(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean colour, zero after normalisation, at padding and where tokens are masked."""
        blank = clips.isnan()
        if mask is not None:
            rows, columns = (
                size // cells for size, cells in zip(clips.shape[3:], mask.shape[2:], strict=True)
            )
            pixels = mask.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
            blank = blank | pixels[:, None]
        return torch.where(blank, getattr(self.backbone, "mean", 0.5), clips)


def at_token_grid(outputs: Mapping[str, Tensor], grid: Sequence[int]) -> dict[str, Tensor]:
    """Brings "features" (B, t, h, w, F) to another grid by linear interpolation along each axis.

    Raises:
        ValueError: the backbone gives no features.
    """
    if "features" not in outputs:
        raise ValueError(
            'the backbone gives no "features", from which tokens could be predicted; take one that '
            "does, such as MViT or TimmSpaceTime"
        )
    features = outputs["features"]
    if tuple(features.shape[1:4]) != tuple(grid):
        channels_first = features.movedim(-1, 1)
        resized = F.interpolate(channels_first, tuple(grid), mode="trilinear", align_corners=False)
        features = resized.movedim(1, -1)
    return {**outputs, "features": features}


def _check_noise(noise: Noise, masker: Masker | None) -> None:
    if noise != "none" and masker is None:
        raise ValueError(f"TASK.noise={noise!r} needs a MASKER.NAME: nothing is masked")
    if noise == "block" and not hasattr(masker, "blocks"):
        raise ValueError(
            f"TASK.noise='block' needs a MASKER that gives its blocks, such as BlockMasker; "
            f"{type(masker).__name__} has no method blocks (noise='token' works with any)"
        )
