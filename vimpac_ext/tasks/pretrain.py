"""VIMPAC pre-training: predict masked tokens and contrast two clips of a video (Section 3)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.losses import masked_token_accuracy
from vimpac_ext.maskers import Noise, corrupt, ignores_tokens
from vimpac_ext.registries import TASKS
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.tasks.objective import apply_heads, weighted_losses
from vimpac_ext.tasks.online import UNKNOWN, OnlineTokenizer

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
            batch: "clips" int64 (B, 2, T, H, W), or float (B, 2, 3, T, H, W) for pixels; and what
                `prepare` gives. Without it, that is drawn here.
            generator: source of the mask and the noise.

        Returns:
            "loss", one "<name>_loss" for each loss and, with a token head, "mask_accuracy".

        Raises:
            ValueError: if a head or a loss reads what nothing gives, such as token logits without
                a token head.
        """
        clips = _in_order(batch["clips"])
        tokens = clips if self.tokenize is None else self.tokenize(clips)
        outputs: dict[str, Any] = {}
        targets: dict[str, Tensor] = {}
        unmasked = {name: self.heads[name] for name in self.unmasked_heads}
        masked = {name: head for name, head in self.heads.items() if name not in unmasked}
        if unmasked or self.masker is None:
            original = self.blank(clips) if self.reads_pixels else tokens
            outputs |= apply_heads(unmasked, self.backbone(original))
        # Last: a loss that reads "cls" or "features" gets those of this pass, where there is one.
        if self.masker is not None and (masked or not unmasked):
            drawn = batch if "mask" in batch else self._hide(tokens, generator)
            mask, positions = drawn["mask"], drawn["mask_positions"]
            targets["token_targets"] = tokens.flatten().index_select(0, positions)
            if self.reads_pixels:
                encoded = at_token_grid(self.backbone(self.blank(clips, mask)), mask.shape[1:])
            else:
                hidden = drawn["hidden"]
                encoded = self.backbone(torch.where(hidden == UNKNOWN, tokens, hidden))
            outputs |= apply_heads(masked, {**encoded, "mask": mask, "mask_positions": positions})
        scalars = weighted_losses(self.losses, outputs, targets)
        if "token_logits" in outputs:
            scalars["mask_accuracy"] = masked_token_accuracy(outputs, targets)
        return scalars

    def prepare(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Draws what a step hides, where the clips still are in main memory.

        Only there it costs nothing to learn how many tokens are hidden. Where tokens are made in
        the step and the masker wants to see them, nothing can be drawn before.

        Args:
            batch: as for `training_step`.
            generator: source of the mask and the noise.

        Returns:
            "mask", bool (2B, T, H, W), True = hidden, clip 1 of all videos first; its
            "mask_positions" when flattened, int64 (M,); and, for a backbone that reads tokens,
            those that it sees, "hidden" (2B, T, H, W), `UNKNOWN` where they are the clip's own.
            Nothing without a masker.
        """
        if self.masker is None:
            return {}
        clips = _in_order(batch["clips"])
        if self.tokenize is None:
            return self._hide(clips, generator)
        if not ignores_tokens(self.masker):
            return {}
        return self._hide(self.tokenize.unknown(clips), generator)

    def encode(self, clips: Tensor) -> dict[str, Tensor]:
        """What the backbone gives for clips in which nothing is hidden.

        Args:
            clips: int64 (N, T, H, W), or float (N, 3, T, H, W) where ``input_kind`` is "pixels".
        """
        if self.reads_pixels:
            clips = self.blank(clips)
        elif self.tokenize is not None:
            clips = self.tokenize(clips)
        outputs: dict[str, Tensor] = self.backbone(clips)
        return outputs

    def _hide(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What `prepare` gives, for tokens (2B, T, H, W), of which some may be UNKNOWN."""
        draw: Any = self.masker
        if self.noise == "block":
            draw = draw.blocks
        hidden, mask = self.corrupt(
            tokens, draw(tokens, generator), self.special, self.noise, generator
        )
        drawn = {"mask": mask, "mask_positions": mask.flatten().nonzero().squeeze(1)}
        return drawn if self.reads_pixels else {**drawn, "hidden": hidden}

    def blank(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean colour, zero after normalisation, at padding and where tokens are masked.

        Args:
            clips: float (N, 3, T, H, W); frames of NaN are padding.
            mask: bool (N, T, h, w), True = masked; None = nothing is.
        """
        blank = clips.isnan()
        if mask is not None:
            rows, columns = (
                size // cells for size, cells in zip(clips.shape[3:], mask.shape[2:], strict=True)
            )
            pixels = mask.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
            blank = blank | pixels[:, None]
        return torch.where(blank, getattr(self.backbone, "mean", 0.5), clips)


def _in_order(clips: Tensor) -> Tensor:
    """(B, 2, ...) -> [clip 1 of all videos; clip 2 of all videos], the order of InfoNCE."""
    return clips.transpose(0, 1).flatten(0, 1)


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
