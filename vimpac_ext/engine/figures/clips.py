"""Clips for pictures: which videos, which view, and the tokenizer that draws them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.data import SpatialView, open_record
from vimpac_ext.data.clip_sampler import ClipSampler, item_generator
from vimpac_ext.engine.assembly import build_dataset, build_tokenizer, views_of
from vimpac_ext.engine.checkpoint import find_checkpoint
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.requirements import MissingInputError, require_data
from vimpac_ext.structures import VideoRecord


class NamedClip(NamedTuple):
    """A clip and the name of its video; frames float (N, 3, S, S) in [0, 1]."""

    name: str
    frames: Tensor


def read_clips(loaded: LoadedConfig, videos: Sequence[str]) -> list[NamedClip]:
    """The middle clips of videos, as the configured training sees them, on its device.

    Args:
        loaded: configuration.
        videos: files; none = the first video of TRAIN.DATASET.

    Raises:
        MissingInputError: if there is no data set to take a video of.
        VideoDecodeError: if a video is missing or broken.
    """
    records = [VideoRecord(video, Path(video).name) for video in videos] or [_first_video(loaded)]
    view, device = training_view(loaded.cfg), device_of(loaded.cfg)
    return [
        NamedClip(record.video_id, read_clip(record, view, loaded.cfg).to(device))
        for record in records
    ]


def read_clip(record: VideoRecord, view: SpatialView, cfg: CfgNode) -> Tensor:
    """The middle clip of a video: float (N, 3, S, S) in [0, 1]; N <= DATA.NUM_FRAMES.

    Raises:
        VideoDecodeError: if the video is missing or broken.
    """
    return read_spread_clips(record, view, cfg, 1)[0]


def read_spread_clips(
    record: VideoRecord, view: SpatialView, cfg: CfgNode, num_clips: int
) -> list[Tensor]:
    """Clips spread over a video, each as of `read_clip`; those of a short video overlap.

    Raises:
        VideoDecodeError: if the video is missing or broken.
    """
    sampler = ClipSampler(
        mode="uniform",
        num_views=1,
        num_frames=cfg.DATA.NUM_FRAMES,
        sampling=cfg.DATA.SAMPLING,
        sampling_rate=cfg.DATA.SAMPLING_RATE,
        num_temporal_views=num_clips,
        single_frame=cfg.DATA.SINGLE_FRAME,
    )
    clips = []
    with open_record(record) as reader:
        video_frames = reader.num_frames_at(cfg.DATA.TARGET_FPS)
        for _, indices in sampler.clips(video_frames, item_generator(0, 0, 0)):
            images = view(reader.frames_at(cfg.DATA.TARGET_FPS, indices.tolist()))
            clips.append(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    return clips


def training_view(cfg: CfgNode) -> SpatialView:
    """The first view of DATA.TRAIN_VIEWS that shows the centre unflipped, or else the first."""
    views = views_of(cfg, "TRAIN")
    return next((view for view in views if view.crop == "center" and not view.flip), views[0])


def frame_rate(cfg: CfgNode) -> float:
    """Frames of a clip a second of video; what an animation runs at.

    Clips spread over the video (DATA.SAMPLING segments) have no rate: their animation runs at that
    of the frames they are taken from, and so faster than the video.
    """
    return float(cfg.DATA.TARGET_FPS / cfg.DATA.SAMPLING_RATE)


def drawing_tokenizer(loaded: LoadedConfig) -> Any:
    """The configured tokenizer, on the configured device.

    Raises:
        ConfigError: if it cannot turn tokens into pictures.
    """
    tokenizer = build_tokenizer(loaded.cfg).to(device_of(loaded.cfg))
    if not hasattr(tokenizer, "decode"):
        raise ConfigError(
            f"{loaded.path}: {loaded.cfg.TOKENIZER.NAME} cannot draw tokens (no decode)"
        )
    return tokenizer


def checkpoint_of(loaded: LoadedConfig) -> Path:
    """TEST.CHECKPOINT_FILE_PATH, or the newest checkpoint of OUTPUT_DIR.

    Raises:
        MissingInputError: if there is none.
    """
    folder = loaded.cfg.TEST.CHECKPOINT_FILE_PATH or loaded.cfg.OUTPUT_DIR
    try:
        return find_checkpoint(folder)
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{loaded.path} cannot run yet:\n  - no checkpoint in {folder!r}. Make it: "
            f"python tools/run_net.py --cfg {loaded.path}, or set TEST.CHECKPOINT_FILE_PATH"
        ) from error


def _first_video(loaded: LoadedConfig) -> VideoRecord:
    require_data(loaded)
    record: VideoRecord = build_dataset(loaded.cfg, "TRAIN").records[0]
    return record
