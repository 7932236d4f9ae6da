"""Sizes of the data sets as published, and the warning where a download has another size."""

import logging
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

_PAPER = "Table 13 of the VIMPAC paper"
_OFFICIAL = "the official list"


class _Published(NamedTuple):
    num_videos: int
    num_classes: int
    source: str = _PAPER


# Data set, split, split id (0 where there is only one).
_SIZES = {
    ("HowTo100M", "train", 0): _Published(1_238_791, 0),
    ("Kinetics400", "train", 0): _Published(205_418, 400),
    ("Kinetics400", "val", 0): _Published(17_686, 400),
    ("SomethingSomethingV2", "train", 0): _Published(168_913, 174),
    ("SomethingSomethingV2", "validation", 0): _Published(24_777, 174),
    ("Diving48", "train", 0): _Published(15_027, 48),
    ("Diving48", "test", 0): _Published(1_970, 48),
    ("UCF101", "train", 1): _Published(9_537, 101),
    ("UCF101", "test", 1): _Published(3_783, 101),
    ("UCF101", "train", 2): _Published(9_586, 101, _OFFICIAL),
    ("UCF101", "test", 2): _Published(3_734, 101, _OFFICIAL),
    ("UCF101", "train", 3): _Published(9_624, 101, _OFFICIAL),
    ("UCF101", "test", 3): _Published(3_696, 101, _OFFICIAL),
    ("HMDB51", "train", 1): _Published(3_570, 51),
    ("HMDB51", "test", 1): _Published(1_530, 51),
    ("HMDB51", "train", 2): _Published(3_570, 51, _OFFICIAL),
    ("HMDB51", "test", 2): _Published(1_530, 51, _OFFICIAL),
    ("HMDB51", "train", 3): _Published(3_570, 51, _OFFICIAL),
    ("HMDB51", "test", 3): _Published(1_530, 51, _OFFICIAL),
}


def warn_of_other_size(
    dataset: str,
    split: str,
    annotation_file: Path,
    num_videos: int,
    num_classes: int,
    split_id: int = 0,
) -> None:
    """Logs one warning if a list has another size than the published one.

    A reader of another name (a subclass for other data, say) and splits without a published size
    are not compared.

    Args:
        dataset: registered name of the reader.
        split: which part.
        annotation_file: file or folder that was read.
        num_videos: videos in it.
        num_classes: classes, 0 for unlabelled data.
        split_id: which of several splits, 0 if there is only one.
    """
    published = _SIZES.get((dataset, split, split_id))
    if published is None or published[:2] == (num_videos, num_classes):
        return
    logger.warning(
        "%s %s has %d videos%s in %s, but %d%s in %s. Scores on other videos are not comparable; "
        "check_size=False silences this.",
        dataset,
        f"{split} split {split_id}" if split_id else split,
        num_videos,
        _of_classes(num_classes),
        annotation_file,
        published.num_videos,
        _of_classes(published.num_classes),
        published.source,
    )


def _of_classes(number: int) -> str:
    return f" of {number} classes" if number else ""
