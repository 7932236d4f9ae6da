"""VIMPAC pre-training: predict masked tokens and contrast two clips of a video (Section 3)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vimpac_ext.losses import masked_token_accuracy
from vimpac_ext.maskers import corrupt
from vimpac_ext.registries import TASKS
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.tasks.objective import apply_heads, weighted_losses


@TASKS.register()
class PretrainTask(nn.Module):
    """One shared forward pass of masked clips for all heads and losses.

    Args:
        backbone: token backbone.
        heads: name -> head.
        losses: name -> loss.
        masker: chooses the hidden tokens; each of the two clips of a video is masked on its own.
        vocab_size: codes of the tokenizer.
    """

    input_kind: ClassVar[str] = "tokens"
    clip_mode: ClassVar[str] = "pair"

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        masker: Callable[[Tensor, torch.Generator | None], Tensor],
        vocab_size: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.losses = nn.ModuleDict(losses)
        self.masker = masker
        self.special = SpecialTokens(vocab_size)

    def training_step(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Losses of one micro-batch.

        Args:
            batch: "clips" int64 (B, 2, T, H, W).
            generator: source of the mask.

        Returns:
            "loss", one "<name>_loss" for each loss and, with a token head, "mask_accuracy".
        """
        # [clip 1 of all videos; clip 2 of all videos], the order that InfoNCE expects.
        tokens = batch["clips"].transpose(0, 1).flatten(0, 1)
        masked, mask = corrupt(tokens, self.masker(tokens, generator), self.special)
        targets = {"token_targets": tokens[mask]}
        outputs = apply_heads(self.heads, {**self.backbone(masked), "mask": mask})
        scalars = weighted_losses(self.losses, outputs, targets)
        if "token_logits" in outputs:
            scalars["mask_accuracy"] = masked_token_accuracy(outputs, targets)
        return scalars
