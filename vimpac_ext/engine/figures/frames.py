"""Frames of videos with their labels: temporally- and spatially-heavy (paper, Figures 3 and 6)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.config import LoadedConfig
from vimpac_ext.data import SpatialView, open_record
from vimpac_ext.engine.assembly import build_dataset
from vimpac_ext.engine.requirements import require_data
from vimpac_ext.structures import UNLABELLED, VideoRecord
from vimpac_ext.visualization import Block, Row, save_figure
from vimpac_ext.visualization.sheet import Images

_logger = logging.getLogger(__name__)

NUM_FRAMES = 6
FRAME_SIZE = 140  # pixels, height = width
_DEFAULT_CLASSES = 4


def draw_frames(
    loaded: LoadedConfig | None,
    picture: Path,
    videos: Sequence[str] = (),
    labels: Sequence[str] = (),
    num_frames: int = NUM_FRAMES,
) -> list[str]:
    """Draws equally spaced frames of whole videos, a row each under its label.

    Args:
        loaded: configuration, from `vimpac_ext.engine.prepare`; needed without ``videos`` only.
        picture: PNG, GIF or MP4 file to write.
        videos: files; none = the first video of each of the first classes of TRAIN.DATASET.
        labels: one for each of ``videos``; none = their file names.
        num_frames: of each video.

    Returns:
        The titles of the rows.

    Raises:
        ValueError: if labels and videos differ in number, or there is neither video nor data set.
        MissingInputError: if the data set is not there.
        VideoDecodeError: for a bad video.
    """
    if labels and len(labels) != len(videos):
        raise ValueError(f"{len(labels)} labels for {len(videos)} videos: give one for each")
    if videos:
        records = [VideoRecord(video, Path(video).name) for video in videos]
        titles = list(labels) or [record.video_id for record in records]
    elif loaded is not None:
        records, titles = _one_of_each_class(loaded)
    else:
        raise ValueError("give videos, or a configuration whose TRAIN.DATASET has some")
    blocks, longest = [], 0.0
    for record, title in zip(records, titles, strict=True):
        images, seconds = spread_frames(record, num_frames)
        captions = tuple(f"{second:.2f} s" for second in seconds)
        blocks.append(Block(title, num_frames, (Row("", images, captions),)))
        longest = max(longest, seconds[-1] - seconds[0])
    save_figure(picture, blocks, (num_frames - 1) / longest if longest > 0 else 1.0)
    _logger.info("wrote %s", picture)
    return titles


def spread_frames(record: VideoRecord, num_frames: int) -> tuple[Images, list[float]]:
    """Frames in the middles of equally long parts of a video.

    Returns:
        uint8 (num_frames, S, S, 3), the centre of each frame, and their seconds from the start.
    """
    view = SpatialView(FRAME_SIZE, "center", FRAME_SIZE)
    with open_record(record) as reader:
        # The rate at which the video has that many frames; their times are the parts' middles.
        fps = num_frames / reader.duration
        seconds = [(index + 0.5) / fps for index in range(num_frames)]
        last = reader.num_frames_at(fps) - 1
        images = view(reader.frames_at(fps, [min(index, last) for index in range(num_frames)]))
    return images, seconds


def _one_of_each_class(loaded: LoadedConfig) -> tuple[list[VideoRecord], list[str]]:
    require_data(loaded)
    dataset = build_dataset(loaded.cfg, "TRAIN")
    first: dict[int, VideoRecord] = {}
    for record in dataset.records:
        first.setdefault(record.label, record)
    if UNLABELLED in first:
        chosen = dataset.records[:_DEFAULT_CLASSES]
        return chosen, [record.video_id for record in chosen]
    labels = sorted(first)[:_DEFAULT_CLASSES]
    names = dataset.class_names  # empty where only numbers are known
    titles = [names[label] if names else f"class {label}" for label in labels]
    return [first[label] for label in labels], titles
