"""The authors' token folders, read as if they were one token store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vimpac_ext.data.original_folders import (
    find_token_folders,
    require_one_dataset,
    require_view,
)
from vimpac_ext.data.original_lmdb import (
    DATA_FILE,
    common_keys,
    list_keys,
    read_array,
    read_shape,
    share_environment,
)
from vimpac_ext.data.spatial_views import SpatialView
from vimpac_ext.data.store_format import StoreMeta, encode_id
from vimpac_ext.data.store_index import Location

TOKENIZER = "DalleTokenizer"
VOCAB_SIZE = 8192
PRECISION = "fp16"  # their extraction ran under autocast; ours never has this
UNKNOWN_LENGTH = 0  # in a `Location`: how many frames there are stands in the record only


class OriginalTokens:
    """Token folders of one data set, one for each spatial view; reads like a `TokenStore`.

    Videos are ordered by name. One that is not in the folders of all views cannot be read and is
    listed in `incomplete`. Safe under fork, spawn and pickle.

    Attributes:
        folder: what was opened, for messages.
        meta: description as of a `TokenStore`; its ``tokenizer_fingerprint`` is the name
            alone, since the folders do not say which weights it had.
        incomplete: video -> the views that lack it.
    """

    def __init__(
        self, source: str | Path | Sequence[str | Path], views: Sequence[str] | None = None
    ) -> None:
        """List the videos of all folders.

        Args:
            source: see `find_token_folders`.
            views: names of the views to open, in this order; None = all.

        Raises:
            ValueError: there are no such folders or views, they do not belong together, or one is
                damaged.
        """
        found = find_token_folders(source)
        if views is not None:  # there may be folders of other crop sizes beside them
            found = [folder for folder in found if folder.view.name in views] or found
        folders = require_one_dataset(found, source)
        if views is not None:
            folders = [require_view(folders, view) for view in views]
        self.folder = " + ".join(str(folder.path) for folder in folders)
        self._paths = {folder.view.name: folder.path.resolve() for folder in folders}
        self._shared = {v: share_environment(p, True) for v, p in self._paths.items()}
        self._keys, self.incomplete = common_keys(
            {view: list_keys(shared) for view, shared in self._shared.items()}
        )
        self._last: tuple[str, int, np.ndarray] | None = None
        stride, grid = self._stride_and_grid(folders[0].view)
        self.meta = StoreMeta(
            tokenizer=TOKENIZER,
            tokenizer_fingerprint=TOKENIZER,
            vocab_size=VOCAB_SIZE,
            stride=stride,
            fps=folders[0].fps,
            views=tuple(self._paths),
            grid=grid,
            annotation_fingerprint=folders[0].dataset,
            precision=PRECISION,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None, "_shared": {}}

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def dataset(self) -> str:
        """Data set and split as in the folders' names, e.g. "ucf101_train_test"."""
        return self.meta.annotation_fingerprint

    @property
    def is_labelled(self) -> bool:
        """Whether the labels mean anything: HowTo100M has none, its records have a constant."""
        return not self.dataset.lower().startswith("howto100m")

    @property
    def paths(self) -> list[Path]:
        """The folders, in the order of the views."""
        return [*self._paths.values()]

    @property
    def video_ids(self) -> list[str]:
        """Names of all videos that every view has, sorted."""
        return [key.decode("utf-8", "surrogateescape") for key in self._keys.tolist()]

    def num_frames(self, video_id: str) -> int:
        """Number of frames of a video, see `num_frames_at`.

        Raises:
            ValueError: the video is not in all views, or damaged.
        """
        return self.locate(video_id).num_frames

    def locate(self, video_id: str) -> Location:
        """Where a video is, for `read_at`.

        Raises:
            ValueError: the video is not in all views, or damaged.
        """
        location = Location(*self.locate_all([video_id])[0].tolist())
        if location.shard < 0:
            views = self.incomplete.get(video_id)
            reason = f"not in the view {', '.join(views)}" if views else "there is none"
            raise ValueError(f"video {video_id!r} of {self.folder}: {reason}")
        return location._replace(num_frames=self.num_frames_at(location))

    def locate_all(self, video_ids: Sequence[str]) -> np.ndarray:
        """Find many videos at once, without opening their records.

        Returns:
            int64 (N, 3): the fields of `Location`, the length as `UNKNOWN_LENGTH`; -1 where a view
            lacks the video.
        """
        locations = np.full((len(video_ids), 3), -1, np.int64)
        if not video_ids or not len(self):
            return locations
        wanted = np.array([encode_id(video_id) for video_id in video_ids])
        numbers = np.searchsorted(self._keys, wanted).clip(max=len(self) - 1)
        found = self._keys[numbers] == wanted
        locations[found] = 0, 0, UNKNOWN_LENGTH
        locations[found, 1] = numbers[found]
        return locations

    def num_frames_at(self, location: Location) -> int:
        """Number of frames of a video: those that it has in every view.

        Raises:
            ValueError: the video is damaged.
        """
        sizes = set()
        for view in self._paths:
            with self._value(view, self._key(location.number)) as value:
                sizes.add(len(value))
        # Records of one size have one length; the first view then speaks for all.
        views = list(self._paths)[: 1 if len(sizes) == 1 else None]
        return min(self.num_frames_in(view, location) for view in views)

    def num_frames_in(self, view: str, location: Location) -> int:
        """Number of frames of a video in one view.

        Raises:
            ValueError: the video is damaged.
        """
        key = self._key(location.number)
        where = self._where(view, key)
        with self._value(view, key) as value:
            num_frames, *grid = read_shape(value, where)
        self._require_grid(grid, where)
        return num_frames

    def read(
        self, video_id: str, view: str, frame_indices: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Read some frames of a video.

        Args:
            video_id: which video.
            view: name of a view.
            frame_indices: frames at the folders' rate, in any order.

        Returns:
            int64 (len(frame_indices), h, w).

        Raises:
            ValueError: the video or the view is not there, a frame is beyond the video's end in
                this view, or the record is damaged.
        """
        return self.read_at(self.locate(video_id), view, frame_indices)

    def read_at(
        self, location: Location, view: str, frame_indices: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """As `read`, for a video located before."""
        if view not in self._paths:
            self.require(views=[view])
        tokens = self._tokens(view, location.number)
        indices = np.asarray(frame_indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(tokens)):
            where = self._where(view, self._key(location.number))
            raise ValueError(
                f"frames {indices.min()} to {indices.max()} asked of {where}, which has "
                f"{len(tokens)} frames"
            )
        return tokens[indices].astype(np.int64)

    def label(self, video_id: str) -> int:
        """The label that the folders have for a video (not for HowTo100M: it has none).

        Raises:
            ValueError: the video is in no folder, or damaged.
        """
        key = encode_id(video_id)
        lacking = self.incomplete.get(video_id, [])
        view = next(view for view in self._paths if view not in lacking)
        with self._value(view, key) as value:
            return int(read_array(value, "label", self._where(view, key)))

    def require(self, views: Sequence[str] = (), **expected: Any) -> None:
        """Check that views are there and fields of `meta` have values; None is not checked.

        Raises:
            ValueError: names everything that differs, and the views that there are.
        """
        problems = [
            f"{name} is {getattr(self.meta, name)!r}, expected {value!r}"
            for name, value in expected.items()
            if value is not None and value != getattr(self.meta, name)
        ]
        missing = [view for view in views if view not in self._paths]
        if missing:
            problems.append(f"no view {', '.join(missing)}; there is {', '.join(self._paths)}")
        if problems:
            raise ValueError(f"tokens of {self.folder} do not fit: {'; '.join(problems)}")

    def _stride_and_grid(self, view: SpatialView) -> tuple[int, tuple[int, int]]:
        """Pixels per token, and tokens of a frame, of the first video that is not damaged."""
        damage = f"{self.folder}: no video is in every view"
        for number in range(len(self)):
            key = self._key(number)
            where = self._where(view.name, key)
            try:
                with self._value(view.name, key) as value:
                    _, height, width = read_shape(value, where)
            except ValueError as error:
                damage = str(error)  # not the exception: it would keep this reader alive
                continue
            if height != width or not height or view.size % height:
                raise ValueError(
                    f"{where} has {height} x {width} tokens a frame, which do not divide the "
                    f"{view.size} pixels that the folder's name says"
                )
            return view.size // height, (height, width)
        raise ValueError(damage)

    def _tokens(self, view: str, number: int) -> np.ndarray:
        """All tokens of a video in a view; the last ones are kept, for its other clips."""
        last = self._last  # another thread may replace it
        if last is not None and last[:2] == (view, number):
            return last[2]
        key = self._key(number)
        where = self._where(view, key)
        with self._value(view, key) as value:
            tokens = read_array(value, "tokens", where)
        self._require_grid(tokens.shape[1:], where)
        if tokens.size and (tokens.min() < 0 or tokens.max() >= VOCAB_SIZE):
            raise ValueError(
                f"{where} has tokens {tokens.min()}..{tokens.max()}, outside the vocabulary "
                f"0..{VOCAB_SIZE - 1}"
            )
        self._last = view, number, tokens
        return tokens

    def _require_grid(self, grid: Sequence[int], where: str) -> None:
        if tuple(grid) != self.meta.grid:
            raise ValueError(
                f"{where} has {grid[0]} x {grid[1]} tokens, the others "
                f"{self.meta.grid[0]} x {self.meta.grid[1]}"
            )

    def _key(self, number: int) -> bytes:
        return bytes(self._keys[number])

    @contextmanager
    def _value(self, view: str, key: bytes) -> Iterator[memoryview]:
        shared = self._shared.get(view)
        if shared is None or not shared.is_usable:
            self._shared[view] = shared = share_environment(self._paths[view])
        with shared.environment.begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                raise ValueError(f"there is no {self._where(view, key)}")
            yield value

    def _where(self, view: str, key: bytes) -> str:
        return f"video {key.decode(errors='replace')!r} in {self._paths[view] / DATA_FILE}"
