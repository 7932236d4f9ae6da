"""One pass over the test views of the configured videos, for whatever is made of them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vimpac_ext.data import FrameClips, TokenClips, made_by_authors
from vimpac_ext.data.bad_videos import BadVideo
from vimpac_ext.data.loaders import evaluation_loader
from vimpac_ext.engine.assembly import build_dataset, build_test_clips, data_facts
from vimpac_ext.engine.distributed import is_main, rank, world_size
from vimpac_ext.structures import VideoRecord

_logger = logging.getLogger(__name__)

ClipFunction = Callable[[Tensor], Mapping[str, Tensor]]


class ViewPass:
    """All views of the videos of TEST.DATASET; prepared once, gone through any number of times.

    Args:
        cfg: configuration.
        device: where the forward passes run.

    Attributes:
        dataset: annotations.
        records: its videos.
        clips: their views.
        num_views: temporal times spatial views.
        bad_videos: position in the records -> what could not be decoded in the latest pass by this
            process; the main one's also has what the token store does not have.

    Raises:
        ValueError: if the token store is not the one configured, or videos are missing in it and
            DATA.ON_BAD_VIDEO is "error".
    """

    def __init__(self, cfg: CfgNode, device: torch.device) -> None:
        self.cfg = cfg
        self.device = device
        self.dataset = build_dataset(cfg, "TEST")
        self.records: Sequence[VideoRecord] = self.dataset.records
        self.clips = build_test_clips(cfg, self.dataset.records)
        self.num_views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
        self.bad_videos: dict[int, BadVideo] = {}

    @property
    def facts(self) -> dict[str, str]:
        """What a checkpoint must have in common with the test data."""
        return data_facts(self.cfg, self.clips)

    def batches(self, title: str, function: ClipFunction) -> Iterator[tuple[Tensor, Any]]:
        """Goes through this process's part of the videos, with a progress bar.

        Args:
            title: of the progress bar.
            function: clips (N, ...) -> name -> tensor (N, ...).

        Yields:
            int64 (B,) positions of the decoded videos in the records, and for each name a float
            (B, V*S, ...) on the CPU.
        """
        bar = {"unit": "batch", "disable": None if is_main() else True}
        self.bad_videos = self._without_tokens() if is_main() else {}
        for batch in tqdm(self._loader(), title, **bar):
            decoded = self._leave_out_bad(batch)
            if len(decoded):
                test, clips = self.cfg.TEST, batch["clips"][decoded]
                results = map_views(function, clips, self.device, test.BATCH_SIZE, test.PRECISION)
                yield batch["video_index"][decoded], results

    def _without_tokens(self) -> dict[int, BadVideo]:
        if not isinstance(self.clips, TokenClips):
            return {}
        reason = f"no tokens, or not of all views, in {self.clips.store.folder}"
        return {
            index: BadVideo(record.video_id, record.path, reason)
            for index, record in without_tokens(self.clips).items()
        }

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
            "start_rule": start_rule(cfg),
            "crop_size": cfg.DATA.TEST_CROP_SIZE,
            "num_frames": cfg.DATA.NUM_FRAMES,
            "sampling_rate": cfg.DATA.SAMPLING_RATE,
            "fps": cfg.DATA.TARGET_FPS,
            "single_frame": cfg.DATA.SINGLE_FRAME,
            "precision": cfg.TEST.PRECISION,
            "decoder": "ffmpeg" if by_authors else getattr(self.clips, "decoder", "pyav"),
            "tokenizer": self.facts.get("tokenizer_fingerprint", "none"),
        }


def start_rule(cfg: CfgNode) -> str:
    """Where the clips of a test lie: TEST.START_RULE, or "segments": each all over the video."""
    return "segments" if cfg.DATA.SAMPLING == "segments" else str(cfg.TEST.START_RULE)


def without_tokens(clips: TokenClips | FrameClips) -> dict[int, VideoRecord]:
    """Position in the records of clips -> a video that their token store does not have.

    Without annotation files its label is not known.
    """
    missing = {record.video_id for record in getattr(clips, "missing", ())}
    return {i: record for i, record in enumerate(clips.records) if record.video_id in missing}


@torch.inference_mode()
def map_views(
    function: ClipFunction, clips: Tensor, device: torch.device, batch_size: int, precision: str
) -> dict[str, Tensor]:
    """Runs a model on the views of videos, so many clips at a time.

    Args:
        function: clips (N, ...) -> name -> tensor (N, ...).
        clips: (B, V*S, ...).
        device: where the function runs.
        batch_size: clips for each call.
        precision: "fp32", or "bf16" for autocast.

    Returns:
        For each name a tensor (B, V*S, ...) on the CPU.
    """
    chunks = []
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for chunk in clips.flatten(0, 1).split(batch_size):
            results = function(chunk.to(device, non_blocking=True))
            chunks.append({name: value.cpu() for name, value in results.items()})
    return {
        name: torch.cat([chunk[name] for chunk in chunks]).unflatten(0, clips.shape[:2])
        for name in chunks[0]
    }
