"""MixUp and CutMix of a batch of pixel clips (torchvision does the work)."""

from typing import Any

import torch
from torch import Tensor


class ClipMixer:
    """Mixes each clip of a batch with the one before it, the first with the last; labels likewise.

    With both on, one of them is drawn for each batch. All frames of a clip are mixed alike.

    Args:
        num_classes: number of classes.
        mixup: alpha of MixUp (Zhang et al. 2018, arXiv 1710.09412); 0 = off.
        cutmix: alpha of CutMix (Yun et al. 2019, arXiv 1905.04899); 0 = off.

    Raises:
        ValueError: an alpha is negative, or both are 0.
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float) -> None:
        if mixup < 0 or cutmix < 0 or mixup == cutmix == 0:
            raise ValueError(f"mixup={mixup} and cutmix={cutmix}: expected one of them above 0")
        # Imported here: only those who mix need torchvision.
        from vimpac_ext import compat

        compat.install()
        from torchvision.transforms import v2

        self._mixers: list[Any] = []
        if mixup:
            self._mixers.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix:
            self._mixers.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            clips: float (B, 3, T, H, W).
            labels: int64 (B).

        Returns:
            Clips of the same shape, and float (B, classes) shares that sum to one.
        """
        mixer = self._mixers[int(torch.randint(len(self._mixers), ()))]
        mixed, shares = mixer(clips.flatten(1, 2), labels)  # frames as channels
        return mixed.unflatten(1, clips.shape[1:3]), shares
