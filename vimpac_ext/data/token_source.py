"""Opens tokens of either kind, our stores and the authors' folders, and lists their videos."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from vimpac_ext.data.annotations.common import read_lines
from vimpac_ext.data.original_folders import TokenFolderSource, list_token_folders
from vimpac_ext.data.original_tokens import PRECISION, OriginalTokens
from vimpac_ext.data.store_format import META_FILE, StoreMeta
from vimpac_ext.data.token_dataset import TokenClips
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.files import atomic_write, is_remote, local_folder, sha256_of
from vimpac_ext.structures import UNLABELLED, VideoRecord

VIDEO_LIST = "videos.csv"  # in a store whose labels are known: `video label` lines


def has_tokens(source: TokenFolderSource) -> bool:
    """Whether there is a token store, or a folder of the authors' for each item of the source.

    Of a remote one it downloads a copy.
    """
    source = _local(source)
    if _is_store(source):
        return True
    return all(map(list_token_folders, [source] if isinstance(source, (str, Path)) else source))


def open_tokens(
    source: TokenFolderSource, views: Sequence[str] | None = None
) -> TokenStore | OriginalTokens:
    """Open tokens of either kind.

    Args:
        source: folder of a token store; or one of the authors' folders, a folder that has such
            folders, a pattern for them, or a list of these (see `find_token_folders`). Instead of
            a folder it may be a URL, whose content is downloaded once.
        views: spatial views that will be read; of the authors' folders only these are opened.
            None = all.

    Raises:
        ValueError: there are no tokens, they are damaged, or the authors' have not all views.
    """
    source = _local(source)
    if isinstance(source, (str, Path)) and _is_store(source):
        return TokenStore(Path(source).expanduser())
    return OriginalTokens(source, views)


def made_by_authors(meta: StoreMeta) -> bool:
    """Whether tokens are of the authors' extraction (converted ones, too).

    Which weights their tokenizer had is not known: its name stands for its fingerprint.
    """
    return meta.precision == PRECISION and meta.tokenizer_fingerprint == meta.tokenizer


class StoredVideos:
    """The videos of a token source as a data set, for when there are no annotation files.

    Labels are those of the authors' records, or of ``videos.csv`` in a token store.

    Attributes:
        records: the videos, sorted by id; the id stands for the path, too.
        missing: ids of those records that not every view has, or only the split file.
        class_names: empty, since only numbers are known.
        fingerprint: hash of the ids and labels.
    """

    def __init__(
        self,
        tokens: TokenStore | OriginalTokens,
        split_file: str | Path | None = None,
        labelled: bool | None = None,
    ) -> None:
        """List the videos.

        Args:
            tokens: of `open_tokens`.
            split_file: take only its videos: one a line, in the first column (ended by a comma,
                a tab or a blank), with or without an extension.
            labelled: whether to look for labels; None = if there are any. HowTo100M's folders
                have false ones, which are not taken for labels.

        Raises:
            ValueError: a line is no video name, or there are no labels and `labelled` is True.
        """
        complete = set(tokens.video_ids)
        known = complete
        if isinstance(tokens, OriginalTokens):
            known = complete | tokens.incomplete.keys()
        chosen = sorted(_read_split(Path(split_file), known) if split_file else known)
        labels = _labels(tokens, [i for i in chosen if i in known], labelled)
        self.records = [VideoRecord(i, i, labels.get(i, UNLABELLED)) for i in chosen]
        self.missing = [i for i in chosen if i not in complete]
        self.class_names: list[str] = []
        self.fingerprint = sha256_of(
            type(self).__name__,
            tokens.meta.annotation_fingerprint,
            "\n".join(f"{record.video_id} {record.label}" for record in self.records),
        )


def open_token_dataset(
    path: TokenFolderSource,
    *,
    views: Sequence[str] | None = None,
    num_frames: int = 5,
    sampling_rate: int = 1,
    mode: str = "uniform",
    num_temporal_views: int = 1,
    start_rule: str = "linspace",
    max_distance_seconds: float | None = None,
    single_frame: bool = False,
    split_file: str | Path | None = None,
    labelled: bool | None = None,
    seed: int = 0,
    allow_missing: bool = False,
) -> TokenClips:
    """Open a token store, or token folders of the authors', as a map-style data set of clips.

    By default an item has the middle clip of a video in every spatial view. The authors' clips are
    those of mode "pair" (their pre-training; a relevance range of R frames is
    ``max_distance_seconds`` R / fps), "random" (fine-tuning) and "uniform" with the start rule
    "vimpac" (test), with ``sampling_rate`` = 16 / their frame rate on 16-fps tokens.

    Args:
        path: see `open_tokens`.
        views: spatial views to take clips from, e.g. ["160top128_hflip"]; None = all there are.
        num_frames: frames of a clip.
        sampling_rate: a clip takes every so many of the stored frames.
        mode: "uniform", "random" or "pair", see `ClipSampler`.
        num_temporal_views: clips per spatial view ("uniform").
        start_rule: where these start, "linspace", "uniform" or "vimpac" ("uniform").
        max_distance_seconds: largest distance of the two starts, None = no limit ("pair").
        single_frame: repeat one frame of each clip (a control experiment).
        split_file: take only its videos, see `StoredVideos`.
        labelled: whether to look for labels, see `StoredVideos`.
        seed: of all random choices.
        allow_missing: leave out videos that have no tokens, or not in all views; they are in the
            data set's ``missing``.

    Returns:
        The clips; ``dataset.records[sample["video_index"]]`` is the video of a sample.

    Raises:
        ValueError: there are no tokens, they are damaged, videos or views are missing, or an
            option is out of its range.
    """
    tokens = open_tokens(path, views)
    return TokenClips(
        tokens,
        StoredVideos(tokens, split_file, labelled).records,
        views=tokens.meta.views if views is None else views,
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        mode=mode,
        num_temporal_views=num_temporal_views,
        start_rule=start_rule,
        max_distance_seconds=max_distance_seconds,
        single_frame=single_frame,
        seed=seed,
        allow_missing=allow_missing,
    )


def write_video_list(folder: Path, labels: Mapping[str, int]) -> None:
    """Write the labels of a token store's videos beside its tokens, for `StoredVideos`."""
    with atomic_write(folder / VIDEO_LIST) as file:
        file.writelines(f"{video_id} {label}\n" for video_id, label in labels.items())


def _read_video_list(file: Path) -> dict[str, int]:
    if not file.is_file():
        raise ValueError(f"the labels of the token store are not known: there is no {file}")
    labels = {}
    for number, line in read_lines(file):
        video_id, _, label = line.rpartition(" ")
        if not video_id or not label.isdecimal():
            raise ValueError(f"{file}, line {number}: expected `video label`, found {line!r}")
        labels[video_id] = int(label)
    return labels


def _local(source: TokenFolderSource) -> TokenFolderSource:
    """The source with a local folder in place of each URL."""
    if isinstance(source, (str, Path)):
        return local_folder(source) if isinstance(source, str) and is_remote(source) else source
    return [local_folder(s) if isinstance(s, str) and is_remote(s) else s for s in source]


def _is_store(source: TokenFolderSource) -> bool:
    return isinstance(source, (str, Path)) and (Path(source).expanduser() / META_FILE).is_file()


def _read_split(file: Path, known: set[str]) -> set[str]:
    ids = set()
    for number, line in read_lines(file):
        name = re.split(r"[,\t]" if re.search(r"[,\t]", line) else r"\s", line)[0].strip()
        if not name:
            raise ValueError(f"{file}, line {number}: no video name in {line!r}")
        ids.add(name if name in known else PurePosixPath(name).with_suffix("").as_posix())
    if not ids:
        raise ValueError(f"{file}: no videos found")
    return ids


def _labels(
    tokens: TokenStore | OriginalTokens, ids: Sequence[str], labelled: bool | None
) -> dict[str, int]:
    if isinstance(tokens, OriginalTokens):
        has_labels = tokens.is_labelled
    else:
        has_labels = (tokens.folder / VIDEO_LIST).is_file()
    if labelled is False or (labelled is None and not has_labels):
        return {}
    if isinstance(tokens, OriginalTokens):
        return {video_id: tokens.label(video_id) for video_id in ids}
    return _read_video_list(tokens.folder / VIDEO_LIST)
