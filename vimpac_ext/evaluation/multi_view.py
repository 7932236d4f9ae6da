"""Multi-view testing: the probabilities of a video's views become one score for each class.

The paper (section 4.1) averages the softmax probabilities of all temporal and spatial views; so
do PySlowFast ("sum") and VideoMAE. Averaging logits gives other numbers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimpac_ext.evaluation.metrics import label_ranks, per_class_accuracy
from vimpac_ext.structures import UNLABELLED

ENSEMBLES = ("sum", "max")
ON_MISSING = ("error", "skip", "count_wrong")

# A softmax computed in bfloat16 may miss 1 by some thousandths; logits miss it by far more.
_SUM_TOLERANCE = 0.02
# The same video in another batch may differ by rounding, not by this much.
_REPEAT_TOLERANCE = 0.1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MultiViewResult:
    """One prediction a video, and how many of the videos it rests on.

    Attributes:
        scores: float64 (N, C); mean ("sum") or maximum ("max") over the views of the class
            probabilities, 0 for a missing video.
        labels: int64 (N,); -1 for a missing video whose class is not known either.
        decoded: bool (N,); False for a video of which no views came.
        predictions: int64 (N,); best class, lowest index among equals; -1 for a missing video.
        ranks: int64 (N,); position of the true class, see `metrics.label_ranks`; C for a missing
            video.
        views_per_video: temporal times spatial views.
        ensemble: "sum" or "max".
        on_missing: "error", "skip" (accuracies are over the decoded videos) or "count_wrong"
            (over all videos, the missing ones wrong).
        single_view_ranks: int64 (N,); ``ranks`` by one view alone, None if that was not asked for.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    decoded: NDArray[np.bool_]
    predictions: NDArray[np.int64]
    ranks: NDArray[np.int64]
    views_per_video: int
    ensemble: str
    on_missing: str
    single_view_ranks: NDArray[np.int64] | None = None

    @property
    def scored(self) -> NDArray[np.bool_]:
        """The videos in the denominator of the accuracies, bool (N,)."""
        return np.ones_like(self.decoded) if self.on_missing == "count_wrong" else self.decoded

    def topk_accuracy(self, k: int) -> float:
        """Percent of the scored videos whose class is among the k best; k above C counts as C."""
        return self._accuracy(self.ranks, k)

    def single_view_accuracy(self, k: int) -> float | None:
        """`topk_accuracy` by one view alone; None if that was not asked for."""
        return None if self.single_view_ranks is None else self._accuracy(self.single_view_ranks, k)

    def _accuracy(self, ranks: NDArray[np.int64], k: int) -> float:
        num_classes = self.scores.shape[1]
        return 100.0 * float(np.mean(ranks[self.scored] < min(k, num_classes)))

    def per_class_accuracy(self) -> NDArray[np.float64]:
        """Percent right of each class's scored videos, float64 (C,); NaN where there are none."""
        return per_class_accuracy(
            self.predictions[self.scored], self.labels[self.scored], self.scores.shape[1]
        )

    def counts(self) -> dict[str, int]:
        """Videos and views: expected, decoded, missing; and the videos in the denominator."""
        return count_videos(self.decoded, self.views_per_video, self.on_missing)


def count_videos(
    decoded: NDArray[np.bool_], views_per_video: int, on_missing: str
) -> dict[str, int]:
    """Videos and views of a test: expected, decoded, missing, in the denominator.

    Args:
        decoded: bool (N,); False for a video of which no views came.
        views_per_video: temporal times spatial views.
        on_missing: with "count_wrong" all videos are in the denominator, else the decoded ones.
    """
    num_all, num_decoded = len(decoded), int(decoded.sum())
    videos = {"expected": num_all, "decoded": num_decoded, "missing": num_all - num_decoded}
    views = {f"{name}_views": count * views_per_video for name, count in videos.items()}
    named = {f"{name}_videos": count for name, count in videos.items()}
    scored = num_all if on_missing == "count_wrong" else num_decoded
    return {**named, **views, "scored_videos": scored}


def ensemble_views(name: object, views: NDArray[np.float64], ensemble: str) -> NDArray[np.float64]:
    """One score for each class from the probabilities of a video's views.

    Args:
        name: of the video, for messages.
        views: (V*S, C) after the softmax.
        ensemble: "sum" (mean over the views) or "max".

    Returns:
        (C,).

    Raises:
        ValueError: if a view is no distribution, as logits are, or a value is NaN.
    """
    _check_probabilities(name, views)
    scores: NDArray[np.float64] = views.mean(axis=0) if ensemble == "sum" else views.max(axis=0)
    return scores


class MultiViewEvaluator:
    """Collects the probabilities of views, video by video, in any order.

    A video that comes again (padding of a distributed sampler) is counted once.

    Args:
        num_videos: N, all videos of the split, missing ones included.
        num_classes: C.
        views_per_video: V*S, temporal times spatial views.
        ensemble: "sum" (mean over the views: PySlowFast's sum, divided by their number) or "max".
        single_view: position of a view that is also scored alone, None = no such.

    Raises:
        ValueError: if the ensemble is unknown.
    """

    def __init__(
        self,
        num_videos: int,
        num_classes: int,
        views_per_video: int,
        ensemble: str = "sum",
        single_view: int | None = None,
    ) -> None:
        if ensemble not in ENSEMBLES:
            raise ValueError(
                f"ensemble is {ensemble!r}, but must be one of: {', '.join(ENSEMBLES)}"
            )
        assert num_videos > 0, "no videos to evaluate"
        assert views_per_video > 0, "no views to evaluate"
        self._views_per_video = views_per_video
        self._ensemble = ensemble
        self._scores = np.zeros((num_videos, num_classes))
        self._decoded = np.zeros(num_videos, dtype=bool)
        self._single_view = single_view
        self._single_scores = np.zeros((num_videos, num_classes if single_view is not None else 0))

    def process(self, video_indices: Any, probabilities: Any) -> None:
        """Take all views of some videos.

        Args:
            video_indices: (B,) positions in the data set's records; tensor, array or list.
            probabilities: (B, V*S, C) after the softmax; tensor or array.

        Raises:
            ValueError: if the shape is another, an index is out of range, a value is NaN, a view
                does not sum to 1 (logits?), or a video comes again with other probabilities.
        """
        indices = _to_numpy(video_indices).astype(np.int64)
        views = _to_numpy(probabilities).astype(np.float64)
        num_videos, num_classes = self._scores.shape
        expected = (len(indices), self._views_per_video, num_classes)
        if views.shape != expected:
            raise ValueError(
                f"expected probabilities (videos, views, classes) {expected}, found {views.shape}"
            )
        for index, video in zip(indices.tolist(), views, strict=True):
            if not 0 <= index < num_videos:
                raise ValueError(f"video index {index} is not one of 0 to {num_videos - 1}")
            scores = ensemble_views(index, video, self._ensemble)
            if not self._decoded[index]:
                self._scores[index] = scores
                if self._single_view is not None:
                    self._single_scores[index] = video[self._single_view]
                self._decoded[index] = True
                continue
            difference = float(np.abs(scores - self._scores[index]).max())
            if difference > _REPEAT_TOLERANCE:
                raise ValueError(
                    f"video {index} came twice, and its probabilities differ by {difference:.2f}: "
                    "is the model in training mode, or the video index wrong?"
                )

    def combine(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Take what the evaluators of other processes have processed; all processes call this.

        Args:
            add_up: tensor -> sum of the tensors of all processes, of the same dtype.

        Raises:
            ValueError: if a video was processed by two of them.
        """
        times = add_up(torch.from_numpy(self._decoded.astype(np.int64))).numpy()
        if (times > 1).any():
            raise ValueError(f"video {times.argmax()} was scored by {times.max()} processes")
        self._scores = add_up(torch.from_numpy(self._scores)).numpy()
        if self._single_view is not None:
            self._single_scores = add_up(torch.from_numpy(self._single_scores)).numpy()
        self._decoded = times == 1

    def result(self, labels: Any, on_missing: str = "error") -> MultiViewResult:
        """Score what has been processed.

        Args:
            labels: (N,) class indices, in the order of the data set's records; with "skip" those of
                missing videos may be -1, unknown.
            on_missing: what to do about videos that never came (`DATA.ON_BAD_VIDEO`): "error",
                "skip" (leave them out of the accuracies, with a warning) or "count_wrong".

        Raises:
            ValueError: if videos are missing and `on_missing` is "error", if all are missing, if a
                label is not a class, or `on_missing` is unknown.
        """
        if on_missing not in ON_MISSING:
            raise ValueError(
                f"on_missing is {on_missing!r}, but must be one of: {', '.join(ON_MISSING)}"
            )
        labels = _to_numpy(labels).astype(np.int64)
        self._report_missing(on_missing)
        ignored = ~self._decoded & (labels == UNLABELLED) & (on_missing == "skip")
        ranked = np.where(ignored, 0, labels)
        single = None if self._single_view is None else self._ranks(self._single_scores, ranked)
        return MultiViewResult(
            scores=self._scores.copy(),
            labels=labels,
            decoded=self._decoded.copy(),
            predictions=np.where(self._decoded, self._scores.argmax(axis=1), -1),
            ranks=self._ranks(self._scores, ranked),
            views_per_video=self._views_per_video,
            ensemble=self._ensemble,
            on_missing=on_missing,
            single_view_ranks=single,
        )

    def _ranks(self, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(self._decoded, label_ranks(scores, labels), scores.shape[1])

    def _report_missing(self, on_missing: str) -> None:
        missing = np.flatnonzero(~self._decoded).tolist()
        if not missing:
            return
        num_videos = len(self._decoded)
        first = ", ".join(str(index) for index in missing[:5])
        message = f"{len(missing)} of {num_videos} test videos are missing (indices {first}"
        message += ", ...)" if len(missing) > 5 else ")"
        if on_missing == "error":
            raise ValueError(
                f"{message}. With DATA.ON_BAD_VIDEO skip they are left out of the accuracies, with "
                "count_wrong they count as wrong"
            )
        if len(missing) == num_videos:
            raise ValueError(f"{message}: there is nothing to score")
        effect = "are over the others" if on_missing == "skip" else "count them as wrong"
        _logger.warning("%s; the accuracies %s", message, effect)


def _check_probabilities(name: object, video: NDArray[np.float64]) -> None:
    """Refuse views (V*S, C) of one video that are no probabilities."""
    sums = video.sum(axis=1)
    # Written so that NaN is refused too.
    if not (np.abs(sums - 1) <= _SUM_TOLERANCE).all() or (video < 0).any():
        raise ValueError(
            f"the views of video {name} are no probabilities: they sum to {sums.min():.3g} to "
            f"{sums.max():.3g} and go down to {video.min():.3g}; logits need a softmax first"
        )


def _to_numpy(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.is_floating_point() else values)
    return np.asarray(values)
