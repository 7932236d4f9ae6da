"""The multi-view test: views -> probabilities -> one prediction a video -> report."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from vimpac_ext.data.bad_videos import write_bad_videos
from vimpac_ext.data.clip_sampling import middle_view
from vimpac_ext.engine.distributed import from_main, gather, is_main, sum_
from vimpac_ext.engine.view_pass import ViewPass, start_rule, without_tokens
from vimpac_ext.evaluation import MultiViewEvaluator, MultiViewResult, write_report
from vimpac_ext.structures import UNLABELLED, VideoRecord

_logger = logging.getLogger(__name__)


class Tester(ViewPass):
    """Tests a task on the configured videos and views; prepared once, run any number of times.

    Args:
        cfg: configuration.
        device: where the forward passes run.

    Raises:
        ValueError: as `ViewPass`, and if labels and MODEL.NUM_CLASSES do not fit.
    """

    def __init__(self, cfg: CfgNode, device: torch.device) -> None:
        super().__init__(cfg, device)
        unknown = {i for i, r in without_tokens(self.clips).items() if r.label == UNLABELLED}
        known = [record for i, record in enumerate(self.records) if i not in unknown]
        require_labels(known, self.dataset.class_names, cfg.MODEL.NUM_CLASSES, "TEST")

    def run(self, task: Any) -> MultiViewResult:
        """Scores every view of every video with ``task.predict``.

        With a process group, every process calls this, scores its part of the videos and gets the
        result of all.
        """
        evaluator = MultiViewEvaluator(
            len(self.records),
            self.cfg.MODEL.NUM_CLASSES,
            self.num_views,
            ensemble=self.cfg.DATA.ENSEMBLE_METHOD,
            single_view=self.single_view,
        )
        task.eval()
        for videos, results in self.batches("test", lambda clips: {"": task.predict(clips)}):
            evaluator.process(videos, results[""])
        evaluator.combine(sum_)
        labels = [record.label for record in self.records]
        return evaluator.result(labels, on_missing=self.cfg.DATA.ON_BAD_VIDEO)

    @property
    def single_view(self) -> int:
        """Position of the view that is scored alone, too: center crop, clip nearest the middle."""
        test = self.cfg.TEST
        temporal = middle_view(test.NUM_ENSEMBLE_VIEWS, start_rule(self.cfg))
        # Views come crop by crop, and the center is the second of three.
        return int(test.NUM_SPATIAL_CROPS // 2 * test.NUM_ENSEMBLE_VIEWS + temporal)

    def report(self, task: Any, folder: Path) -> dict[str, Any]:
        """Tests ``task`` and writes predictions, per-class results and the confusion matrix.

        Returns:
            The content of ``folder/result.json``: accuracies in percent, protocol, counts.
        """
        result = self.run(task)
        protocol = self.protocol()
        report = None
        bad_videos = gather(list(self.bad_videos.values()))
        if is_main():
            write_bad_videos(folder / "bad_videos.jsonl", chain.from_iterable(bad_videos))
            report = write_report(folder, result, self.records, self.dataset.class_names, protocol)
        return from_main(report) or {}


def require_labels(
    records: Sequence[VideoRecord],
    class_names: Sequence[str],
    num_classes: int,
    phase: str = "TRAIN",
) -> None:
    """Checks that every label is a class of the model.

    Where the data set does not know how many classes there are, and none of its videos is of the
    model's last one, that is logged: it may be meant, or MODEL.NUM_CLASSES too large.

    Args:
        records: the videos.
        class_names: of their data set; empty = it does not know the classes.
        num_classes: MODEL.NUM_CLASSES.
        phase: whose videos they are, for messages.

    Raises:
        ValueError: naming the video and its label, or the numbers of classes.
    """
    require_class_names(class_names, num_classes)
    for record in records:
        if not 0 <= record.label < num_classes:
            raise ValueError(
                f"{phase}.DATASET: video {record.video_id!r} ({record.path}) has label "
                f"{record.label}; MODEL.NUM_CLASSES is {num_classes}, so labels are "
                f"0..{num_classes - 1}"
            )
    largest = max((record.label for record in records), default=-1)
    if not class_names and largest < num_classes - 1 and is_main():
        _logger.warning(
            "%s: no video has a label above %d, but MODEL.NUM_CLASSES is %d",
            *(phase, largest, num_classes),
        )


def require_class_names(class_names: Sequence[str], num_classes: int) -> None:
    """Raises ValueError if the data set names another number of classes than the model has."""
    if class_names and len(class_names) != num_classes:
        raise ValueError(
            f"MODEL.NUM_CLASSES is {num_classes} but the data set has {len(class_names)} classes"
        )
