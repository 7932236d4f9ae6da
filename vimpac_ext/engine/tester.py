"""The multi-view test: views -> probabilities -> one prediction a video -> report."""

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vimpac_ext.data import made_by_authors
from vimpac_ext.data.bad_videos import BadVideo, write_bad_videos
from vimpac_ext.data.loaders import evaluation_loader
from vimpac_ext.engine.assembly import build_dataset, build_test_clips, data_facts
from vimpac_ext.engine.distributed import (
    from_main,
    gather,
    is_main,
    rank,
    sum_,
    world_size,
)
from vimpac_ext.evaluation import MultiViewEvaluator, MultiViewResult, write_report
from vimpac_ext.structures import VideoRecord

_logger = logging.getLogger(__name__)


class Tester:
    """Tests a task on the configured videos and views; prepared once, run any number of times.

    Args:
        cfg: configuration.
        device: where the forward passes run.

    Raises:
        ValueError: if labels and MODEL.NUM_CLASSES do not fit, the token store is not the one
            configured, or videos are missing in it and DATA.ON_BAD_VIDEO is "error".
    """

    def __init__(self, cfg: CfgNode, device: torch.device) -> None:
        self.cfg = cfg
        self.device = device
        self.dataset = build_dataset(cfg, "TEST")
        self.records: Sequence[VideoRecord] = self.dataset.records
        require_labels(self.records, self.dataset.class_names, cfg.MODEL.NUM_CLASSES)
        self.clips = build_test_clips(cfg, self.dataset.records)
        self.num_views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
        self.bad_videos: dict[int, BadVideo] = {}

    @property
    def facts(self) -> dict[str, str]:
        """What a checkpoint must have in common with the test data."""
        return data_facts(self.cfg, self.clips)

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
        )
        task.eval()
        bar = {"unit": "batch", "disable": None if is_main() else True}
        self.bad_videos = {}
        for batch in tqdm(self._loader(), "test", **bar):
            decoded = self._leave_out_bad(batch)
            if len(decoded):
                probabilities = self._predict(task, batch["clips"][decoded])
                videos = batch["video_index"][decoded].numpy()
                evaluator.process(videos, probabilities.numpy())
        evaluator.combine(sum_)
        labels = [record.label for record in self.records]
        return evaluator.result(labels, on_missing=self.cfg.DATA.ON_BAD_VIDEO)

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

    def _leave_out_bad(self, batch: Mapping[str, Any]) -> Tensor:
        """Positions of the videos that could be decoded; the others are noted."""
        errors = batch.get("error") or [""] * len(batch["video_index"])
        for index, reason in zip(batch["video_index"].tolist(), errors, strict=True):
            if reason:
                record = self.records[index]
                self.bad_videos[index] = BadVideo(record.video_id, record.path, reason)
                _logger.warning("%s", reason)
        return torch.tensor([i for i, reason in enumerate(errors) if not reason], dtype=torch.long)

    def _loader(self) -> DataLoader:
        videos_per_batch = max(1, self.cfg.TEST.BATCH_SIZE // self.num_views)
        loading = self.cfg.DATA_LOADER
        # Every process's own part: no video is padded in twice, as samplers for training do.
        part = Subset(self.clips, range(rank(), len(self.clips), world_size()))
        return evaluation_loader(part, videos_per_batch, loading.NUM_WORKERS, loading.PIN_MEMORY)

    @torch.inference_mode()
    def _predict(self, task: Any, clips: Tensor) -> Tensor:
        """(B, VS, ...) clips -> float32 (B, VS, classes), TEST.BATCH_SIZE clips at a time."""
        enabled = self.cfg.TEST.PRECISION == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            chunks = [
                task.predict(chunk.to(self.device, non_blocking=True)).cpu()
                for chunk in clips.flatten(0, 1).split(self.cfg.TEST.BATCH_SIZE)
            ]
        return torch.cat(chunks).unflatten(0, clips.shape[:2])

    def protocol(self) -> dict[str, Any]:
        """Everything that decides whether two results may be compared."""
        cfg = self.cfg
        store = getattr(self.clips, "store", None)  # of tokens; frames have none
        by_authors = store is not None and made_by_authors(store.meta)
        return {
            "dataset": cfg.TEST.DATASET.NAME or type(self.dataset).__name__,
            "split": (
                cfg.TEST.DATASET.get("split", "")
                if cfg.TEST.DATASET.NAME
                else cfg.TEST.TOKEN_SPLIT_FILE
            ),
            "annotations": self.dataset.fingerprint,
            "temporal_views": cfg.TEST.NUM_ENSEMBLE_VIEWS,
            "spatial_crops": cfg.TEST.NUM_SPATIAL_CROPS,
            "start_rule": cfg.TEST.START_RULE,
            "crop_size": cfg.DATA.TEST_CROP_SIZE,
            "num_frames": cfg.DATA.NUM_FRAMES,
            "sampling_rate": cfg.DATA.SAMPLING_RATE,
            "fps": cfg.DATA.TARGET_FPS,
            "single_frame": cfg.DATA.SINGLE_FRAME,
            "precision": cfg.TEST.PRECISION,
            "decoder": "ffmpeg" if by_authors else "pyav",
            "tokenizer": self.facts.get("tokenizer_fingerprint", "none"),
        }


def require_labels(
    records: Sequence[VideoRecord], class_names: Sequence[str], num_classes: int
) -> None:
    """Raises ValueError unless every label is a class of the model."""
    if class_names and len(class_names) != num_classes:
        raise ValueError(
            f"MODEL.NUM_CLASSES is {num_classes} but the data set has {len(class_names)} classes"
        )
    for record in records:
        if not 0 <= record.label < num_classes:
            raise ValueError(
                f"video {record.video_id!r} has label {record.label}; MODEL.NUM_CLASSES is "
                f"{num_classes}, so labels are 0..{num_classes - 1}"
            )
