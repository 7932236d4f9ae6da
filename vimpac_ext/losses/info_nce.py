"""Contrast of two clips of a video (paper, Section 3.3, Eqs. 4 and 5)."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_ext.losses.gather import gather, sizes_of_processes
from vimpac_ext.registries import LOSSES


@LOSSES.register()
class InfoNCELoss(nn.Module):
    """InfoNCE with in-group negatives: both clips of all other videos, 2(n-1) for n videos.

    The loss is temperature * (mean over clips 1 + mean over clips 2). That the two directions are
    summed is Eq. 5; the paper's text speaks of an average, which its numbers exclude.

    The group is the micro-batch of all processes together, unless `group_size` sets it apart
    from what a process holds: then consecutive videos, in rank order, form groups of that size,
    within each process where its micro-batch is a multiple of it, else across processes. The loss
    is the mean over groups. With several processes the mean of the processes' losses is the loss
    of the whole batch, and so is the gradient after DistributedDataParallel's averaging.

    Args:
        weight: share in the total loss.
        temperature: divides the similarities and multiplies the loss.
        normalize: compare directions (cosine) rather than the raw projections.
        group_size: videos that are contrasted with each other (n of the paper's Table 8); None =
            all that the processes hold.

    Raises:
        ValueError: if a group has less than two videos.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.2,
        normalize: bool = True,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        if group_size is not None and group_size < 2:
            raise ValueError(f"group_size={group_size} must be at least 2: negatives are others")
        self.weight = weight
        self.temperature = temperature
        self.normalize = normalize
        self.group_size = group_size

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Computes the loss in float32 (float64 for float64 input).

        Args:
            outputs: "projection" (2n, P): clip 1 of all videos, then clip 2 in the same order.
            targets: not used.

        Raises:
            ValueError: if the number of clips is zero, odd, not the same in every process, or
                cannot be divided into groups.
        """
        projection = outputs["projection"]
        if len(projection) % 2 or len(projection) == 0:
            raise ValueError(
                f"InfoNCELoss takes two clips of each video, got {len(projection)} clips in all"
            )
        with torch.autocast(projection.device.type, enabled=False):
            features = projection.to(torch.promote_types(projection.dtype, torch.float32))
            if self.normalize:
                features = F.normalize(features, dim=-1)
            return self._loss(features)

    def _loss(self, features: Tensor) -> Tensor:
        num_videos = len(features) // 2
        sizes = sizes_of_processes(num_videos, features.device)
        group_size = self._group_size(sizes)
        first, second = features.chunk(2)
        if num_videos % group_size == 0:
            all_first, all_second, offset = first, second, 0
        else:
            gathered = gather(features).unflatten(1, (2, num_videos))  # (processes, 2, n, P)
            all_first, all_second = gathered.transpose(0, 1).flatten(1, 2)  # (N, P) each
            offset = dist.get_rank() * num_videos
        videos = torch.arange(len(all_first), device=features.device)
        own = videos[offset : offset + num_videos]
        other_group = (own // group_size)[:, None] != videos // group_size  # (n, N)
        itself = own[:, None] == videos
        excluded = torch.cat([other_group, other_group | itself], dim=1)  # (n, 2N)
        # Products in the order of the authors' code: autograd then rounds the gradient as it does.
        same_view = [
            anchors @ candidates.T / self.temperature
            for anchors, candidates in ((first, all_first), (second, all_second))
        ]  # (n, N) each
        other_view = [
            anchors @ candidates.T / self.temperature
            for anchors, candidates in ((first, all_second), (second, all_first))
        ]
        losses = []
        for positives, negatives in zip(other_view, same_view, strict=True):
            similarities = torch.cat([positives, negatives], dim=1).masked_fill(
                excluded, -torch.inf
            )
            losses.append(F.cross_entropy(similarities, own))  # mean of -log p(positive | anchor)
        return self.temperature * (losses[0] + losses[1])

    def _group_size(self, sizes: list[int]) -> int:
        """Videos in a group, checked against how many each process has."""
        if len(set(sizes)) > 1:
            raise ValueError(
                f"InfoNCELoss: every process must have the same number of videos, found {sizes} "
                "in rank order; leave out the last, smaller batch of an epoch"
            )
        group_size = self.group_size or sum(sizes)
        if sum(sizes) % group_size:
            held = f"{sizes[0]} videos"
            if len(sizes) > 1:
                held = f"{len(sizes)} processes of {held}, {sum(sizes)} in all,"
            raise ValueError(
                f"InfoNCELoss: {held} cannot be divided into groups of group_size={group_size}; "
                "change it or TRAIN.MICRO_BATCH_SIZE"
            )
        return group_size
