"""Supervised video classification, of the whole model or of heads on a frozen backbone."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vimpac_ext.registries import TASKS
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.tasks.mixing import ClipMixer
from vimpac_ext.tasks.objective import apply_heads, weighted_losses
from vimpac_ext.tasks.online import OnlineTokenizer

_logger = logging.getLogger(__name__)


@TASKS.register()
class FinetuneTask(nn.Module):
    """Classifies random clips of each video in training, any number of views in testing.

    Args:
        backbone: clip -> features.
        heads: name -> head; one of them must give "class_logits".
        losses: name -> loss.
        freeze_backbone: train the heads only, on the features of the backbone in eval mode. With
            `ClassificationHead` this is a linear probe, with `AttentiveHead` an attentive one.
        tokenizer: makes the tokens from pixel clips in each step, for a backbone that reads tokens;
            None = the clips are what the backbone reads.
        vocab_size: codes of the tokenizer; read if there is one.
        num_classes: number of classes; read if clips are mixed.
        mixup: alpha of MixUp in training, 0 = off; for pixel backbones. A clip is mixed with one of
            another video of its micro-batch and process, so there must be two.
        cutmix: alpha of CutMix in training, likewise.

    Raises:
        ValueError: tokens were to be mixed, an alpha is negative, or there is a tokenizer for a
            backbone that reads pixels.
    """

    clip_mode: ClassVar[str] = "random"

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        freeze_backbone: bool = False,
        tokenizer: nn.Module | None = None,
        vocab_size: int = 0,
        num_classes: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.losses = nn.ModuleDict(losses)
        self.freeze_backbone = freeze_backbone
        self.tokenize: OnlineTokenizer | None = None
        if tokenizer is not None:
            if backbone.input_kind != "tokens":
                raise ValueError(
                    f"DATA.TOKENS online makes tokens of frames, but {type(backbone).__name__} "
                    "reads the frames: leave DATA.TOKENS store (its TOKEN_STORE may be empty)"
                )
            self.tokenize = OnlineTokenizer(tokenizer, SpecialTokens(vocab_size))
        self.mix = ClipMixer(num_classes, mixup, cutmix) if mixup or cutmix else None
        self._warned_of_one_video = False
        if self.mix is not None and backbone.input_kind == "tokens":
            raise ValueError("TASK.mixup and TASK.cutmix mix pixels; this backbone reads tokens")
        if freeze_backbone:
            backbone.requires_grad_(False)
            backbone.eval()

    @property
    def input_kind(self) -> str:
        """What clips it takes, "tokens" or "pixels"."""
        return "pixels" if self.tokenize else str(self.backbone.input_kind)

    def train(self, mode: bool = True) -> "FinetuneTask":
        """Training mode for all but a frozen backbone (no dropout, no new BatchNorm statistics)."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def training_step(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Losses of one micro-batch.

        Args:
            batch: "clips" (B, C, ...), C clips of each video (AUG.NUM_SAMPLE), and "label" int64
                (B).
            generator: not used; every task has the same call.

        Returns:
            "loss", one "<name>_loss" for each loss, and "top1_accuracy" of the batch.
        """
        clips, true_labels = batch["clips"], batch["label"]
        num_videos, clips_per_video = clips.shape[:2]
        if self.mix is None:
            clips = clips.flatten(0, 1)
            labels = true_labels = true_labels.repeat_interleave(clips_per_video)
        else:
            if num_videos == 1:
                self._warn_of_one_video()
            # Each clip is mixed with the one before it. In this order, the first clips of all
            # videos and then the second ones, that is a clip of another video.
            true_labels = true_labels.repeat(clips_per_video)
            clips, labels = self.mix(clips.transpose(0, 1).flatten(0, 1), true_labels)
        outputs = apply_heads(self.heads, self.encode(clips))
        scalars = weighted_losses(self.losses, outputs, {"labels": labels})
        prediction = outputs["class_logits"].argmax(dim=-1)
        scalars["top1_accuracy"] = (prediction == true_labels).float().mean()
        return scalars

    def _warn_of_one_video(self) -> None:
        if not self._warned_of_one_video:
            _logger.warning(
                "a micro-batch of one video in this process can only be mixed with itself: its "
                "label stays as it is"
            )
        self._warned_of_one_video = True

    def predict(self, clips: Tensor) -> Tensor:
        """Class probabilities of clips.

        Args:
            clips: (N, T, H, W) tokens (or what the backbone takes).

        Returns:
            float32 (N, num_classes), rows sum to one.
        """
        return self.classify(self.encode(clips))

    def encode(self, clips: Tensor) -> dict[str, Tensor]:
        """What the backbone gives for clips as in `predict`."""
        if self.tokenize is not None:
            clips = self.tokenize(clips)
        outputs: dict[str, Tensor] = self.backbone(clips)
        return outputs

    def classify(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Class probabilities from what `encode` gives, float32 (N, num_classes)."""
        logits: Tensor = apply_heads(self.heads, dict(outputs))["class_logits"]
        return logits.float().softmax(dim=-1)
