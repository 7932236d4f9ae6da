"""Reading single clips from token stores. Layout of the files: `vimpac_ext.data.store_format`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from vimpac_ext.data.store_check import video_problems
from vimpac_ext.data.store_format import (
    StoreMeta,
    VideoHeader,
    damaged_frames,
    encode_id,
    read_meta,
    shard_folders,
    shard_name,
    token_key,
    video_key,
)
from vimpac_ext.data.store_index import Location, StoreIndex, iterate_headers
from vimpac_ext.data.store_shards import OpenShard, close_replaced_shard, open_shard
from vimpac_ext.data.token_store_writer import TokenStoreWriter

__all__ = ["Location", "StoreMeta", "TokenStore", "TokenStoreWriter"]

FrameIndices = Sequence[int] | np.ndarray


class TokenStore:
    """A finished token store, opened for reading.

    Sees the videos that were committed when it was opened. Safe under fork, spawn and pickle:
    every process opens the files for itself at its first read.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the description and the index.

        Raises:
            ValueError: the folder is not a token store, is of another format version or damaged.
        """
        self.folder = Path(folder).resolve()
        self.meta = read_meta(self.folder)
        self._shard_folders = shard_folders(self.folder)
        for shard_folder in self._shard_folders.values():
            close_replaced_shard(shard_folder)
        self._index = StoreIndex.load(self.folder, len(self.meta.views))
        self._dtype = self.meta.frame_dtype
        self._views = {name: position for position, name in enumerate(self.meta.views)}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, video_id: str) -> bool:
        return bool(self._index.locate([video_id])[0, 0] >= 0)

    @property
    def num_shards(self) -> int:
        """Shards of the store, empty ones included."""
        return len(self._shard_folders)

    @property
    def num_doubles(self) -> int:
        """Committed videos that another shard has, too; each counts and is read once."""
        return self._index.num_doubles

    def frame_counts(self) -> np.ndarray:
        """Lengths of all videos: (N,), in no particular order."""
        return self._index.frame_counts()

    @property
    def video_ids(self) -> list[str]:
        """Ids of all videos, shard by shard in commit order; reads every header."""
        return [video_id for video_id, _ in self.iterate()]

    def iterate(self) -> Iterator[tuple[str, Location]]:
        """Every video and where it is, shard by shard in commit order, one at a time.

        Raises:
            ValueError: a header is damaged.
        """
        for shard_id, numbers in self._index.numbers_by_shard().items():
            folder, shard = self._shard_folders[shard_id], self._shard(shard_id)
            wanted = iter(numbers.tolist())
            next_wanted = next(wanted, None)
            with shard.errors(folder):
                for number, header in enumerate(iterate_headers(shard, len(self._views))):
                    if number == next_wanted:
                        video_id = header.video_id.decode("utf-8", "surrogateescape")
                        yield video_id, Location(shard_id, number, header.num_frames)
                        next_wanted = next(wanted, None)

    def num_frames(self, video_id: str) -> int:
        """Number of frames of a video at the store's rate.

        Raises:
            ValueError: the video is not in the store.
        """
        return self.locate(video_id).num_frames

    def locate(self, video_id: str) -> Location:
        """Where a video is, for `read_at`.

        Raises:
            ValueError: the video is not in the store.
        """
        location = Location(*self._index.locate([video_id])[0].tolist())
        if location.shard < 0:
            raise ValueError(
                f"video {video_id!r} is not among the {len(self)} videos of the token store "
                f"{self.folder}"
            )
        return location

    def locate_all(self, video_ids: Sequence[str]) -> np.ndarray:
        """Find many videos at once: int64 (N, 3), the fields of `Location`, -1 where missing."""
        return self._index.locate(video_ids)

    def read(
        self, video_id: str, view: str, frame_indices: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Read some frames of a video.

        Args:
            video_id: which video.
            view: name of a stored spatial view.
            frame_indices: frames at the store's rate, in any order.

        Returns:
            int64 (len(frame_indices), h, w).

        Raises:
            ValueError: the video or the view is not in the store, a frame is beyond the video's
                end, or the stored value is damaged.
        """
        return self.read_at(self.locate(video_id), view, frame_indices)

    def read_at(
        self, location: Location, view: str, frame_indices: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """As `read`, for a video located before."""
        if view not in self._views:
            self.require(views=[view])
        indices: list[int] = np.asarray(frame_indices, np.int64).tolist()
        shard_id, number, num_frames = location
        if indices and (min(indices) < 0 or max(indices) >= num_frames):
            raise ValueError(
                f"frames {min(indices)} to {max(indices)} asked of video "
                f"{self._name(location)}, which has "
                f"{num_frames} frames in the token store {self.folder}"
            )
        shard = self._shard(shard_id)
        key = token_key(number, self._views[view])
        try:
            with shard.environment.begin(db=shard.tokens, buffers=True) as transaction:
                value = transaction.get(key)
                if value is None or len(value) != num_frames * self._dtype.itemsize:
                    raise ValueError(f"{self._damage(location)} in view {view}: wrong length")
                # A view of the mapped file: only the pages of the frames taken are read.
                frames = np.frombuffer(value, self._dtype)[np.array(indices, np.int64)]
        except lmdb.Error as error:
            raise ValueError(f"{self._damage(location)} in view {view}: {error}") from error
        if damaged := damaged_frames(frames, indices):
            raise ValueError(
                f"{self._damage(location)} in view {view}: wrong checksum of frame {damaged[0]}"
            )
        return frames["tokens"].astype(np.int64)

    def verify(self, video_id: str) -> None:
        """Compare a video's bytes with the checksums that were stored with it.

        Raises:
            ValueError: a view is damaged, or the video is not in the store.
        """
        location = self.locate(video_id)
        header, shard = self._header(location), self._shard(location.shard)
        if header.video_id != encode_id(video_id) or header.num_frames != location.num_frames:
            raise ValueError(f"{self._damage(location)}: its header is that of another video")
        with shard.environment.begin(buffers=True) as transaction:
            for reason in video_problems(
                transaction, shard.tokens, self.meta, location.number, header
            ):
                raise ValueError(f"{self._damage(location)} in {reason}")

    def stride_for(self, fps: float) -> int:
        """Every how many of the stored frames there is one at a lower rate.

        These are not the very frames that decoding at that rate would take (which lie half a
        period later), but as far apart; the authors' 16 fps tokens are read this way, too.

        Args:
            fps: frames per second that are wanted.

        Raises:
            ValueError: the store's rate is not a multiple of it.
        """
        if not self._is_multiple_of(fps):
            valid = ", ".join(f"{self.meta.fps / n:g}" for n in range(1, 9))
            raise ValueError(
                f"the token store {self.folder} has {self.meta.fps:g} frames per second and cannot "
                f"be read at {fps:g}; it can at {valid}, ..."
            )
        return round(self.meta.fps / fps)

    def _is_multiple_of(self, fps: float) -> bool:
        stride = round(self.meta.fps / fps) if fps > 0 else 0
        return stride >= 1 and abs(stride * fps - self.meta.fps) <= 1e-6 * self.meta.fps

    def require(
        self,
        tokenizer: str | None = None,
        tokenizer_fingerprint: str | None = None,
        vocab_size: int | None = None,
        stride: int | None = None,
        fps: float | None = None,
        grid: tuple[int, int] | None = None,
        views: Sequence[str] = (),
    ) -> None:
        """Check that the store is what a configuration expects; None is not checked.

        Raises:
            ValueError: names everything that differs, and the views that the store has.
        """
        expected = {
            "tokenizer": tokenizer,
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "vocab_size": vocab_size,
            "stride": stride,
            "fps": fps,
            "grid": None if grid is None else tuple(grid),
        }
        problems = [
            f"{name} is {getattr(self.meta, name)!r}, expected {value!r}"
            for name, value in expected.items()
            if value is not None and value != getattr(self.meta, name)
        ]
        if fps is not None and fps != self.meta.fps and self._is_multiple_of(fps):
            stride = self.stride_for(fps)
            problems.append(
                f"to take every {stride}th of its frames, set DATA.TARGET_FPS {self.meta.fps:g} "
                f"and multiply DATA.SAMPLING_RATE by {stride}"
            )
        missing = [view for view in views if view not in self._views]
        if missing:
            problems.append(f"no view {', '.join(missing)}; it has {', '.join(self._views)}")
        if problems:
            raise ValueError(f"token store {self.folder} does not fit: {'; '.join(problems)}")

    def _shard(self, shard_id: int) -> OpenShard:
        shard = open_shard(self._shard_folders[shard_id])
        if shard is None:
            raise ValueError(f"{self._shard_folders[shard_id]} was emptied since it was opened")
        return shard

    def _header(self, location: Location) -> VideoHeader:
        folder = self._shard_folders[location.shard]
        shard = self._shard(location.shard)
        with shard.errors(folder), shard.environment.begin(db=shard.videos) as transaction:
            value = transaction.get(video_key(location.number), b"")
            return VideoHeader.unpack(value, len(self._views))

    def _name(self, location: Location) -> str:
        try:
            return repr(self._header(location).video_id.decode(errors="replace"))
        except ValueError:  # its header is damaged, too
            return f"number {location.number} of {shard_name(location.shard)}"

    def _damage(self, location: Location) -> str:
        return f"video {self._name(location)} of the token store {self.folder} is damaged"
