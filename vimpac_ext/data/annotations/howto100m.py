"""HowTo100M, the unlabelled videos of pre-training."""

from pathlib import Path

from vimpac_ext.data.annotations.common import (
    VIDEO_EXTENSIONS,
    check_choice,
    check_records,
    find_file,
    find_folder,
    id_of_path,
    read_csv,
)
from vimpac_ext.data.annotations.published import warn_of_other_size
from vimpac_ext.files import sha256_of
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import VideoRecord

_ADVICE = (
    "Download HowTo100M_v1.csv and the videos as "
    "https://www.di.ens.fr/willow/research/howto100m/ describes: videos/<video_id>.mp4 (or .webm, "
    ".mkv). If you have only a folder of videos, use VideoFolder."
)


@DATASETS.register()
class HowTo100M:
    """HowTo100M (1.2 million videos, no labels) from a csv with a header.

    With a column ``video_path`` (relative to the video folder) that is the file, and ``video_id``
    is its path without extension. Otherwise the column ``video_id`` is needed, as in the official
    HowTo100M_v1.csv. The videos have different extensions, so the folder is then listed once; an
    id that is not there gets ".mp4", which `missing_videos` reports.

    Attributes:
        records: the videos in the order of the csv, all unlabelled.
        class_names: empty.
        fingerprint: hash of the csv, the split and the name of this class.

    Args:
        root: folder of the data set.
        split: only "train".
        annotation_file: the csv below the root.
        video_folder: folder of the videos below the root.
        check_size: whether to warn if there are more or fewer videos than published.

    Raises:
        FileNotFoundError: if the csv or the video folder is missing.
        ValueError: if a line is wrong; names the file and the line.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        annotation_file: str = "HowTo100M_v1.csv",
        video_folder: str = "videos",
        check_size: bool = True,
    ) -> None:
        check_choice("split of HowTo100M", split, ("train",))
        csv_file = find_file(root, "", [annotation_file], _ADVICE)
        videos = find_folder(Path(root).expanduser() / video_folder, _ADVICE)
        self.class_names: list[str] = []
        self.records: list[VideoRecord] = []
        lines = []
        files: dict[str, str] | None = None
        for line, row in read_csv(csv_file, ()):
            if path := row.get("video_path"):
                record = VideoRecord(f"{videos}/{path}", id_of_path(path))
            elif video_id := row.get("video_id"):
                if files is None:
                    files = _files_by_id(videos)
                record = VideoRecord(f"{videos}/{files.get(video_id, f'{video_id}.mp4')}", video_id)
            else:
                raise ValueError(
                    f"{csv_file}, line {line}: neither 'video_path' nor 'video_id' is given; the "
                    f"columns are: {', '.join(str(column) for column in row)}"
                )
            self.records.append(record)
            lines.append(line)
        check_records(self.records, csv_file, lambda index: f"line {lines[index]}")
        self.fingerprint = sha256_of(type(self).__name__, split, csv_file)
        if check_size:
            warn_of_other_size(type(self).__name__, split, csv_file, len(self.records), 0)


def _files_by_id(folder: Path) -> dict[str, str]:
    # Sorted, because the order of a folder is arbitrary and an id may be there as .mp4 and .webm.
    files = (Path(name) for name in sorted(path.name for path in folder.iterdir()))
    return {file.stem: file.name for file in files if file.suffix.lower() in VIDEO_EXTENSIONS}
