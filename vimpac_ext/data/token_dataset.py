"""Token clips of a store, as a map-style data set."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from vimpac_ext.data.clip_sampler import ClipSampler, epoch_and_index, item_generator
from vimpac_ext.data.original_tokens import OriginalTokens
from vimpac_ext.data.store_index import Location
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.structures import ClipSample, SpecialTokens, VideoRecord


class TokenClips(Dataset[ClipSample]):
    """Clips of stored tokens, one item per video. See `ClipSampler` for the modes.

    An item depends only on the seed, the epoch and its index, so batches are the same for any
    number of workers. Videos shorter than a clip are padded at the end with `SpecialTokens.pad`.

    Attributes:
        records: all records as given; ``video_index`` of a sample is a position in it.
        missing: the records that the store does not have; they are no items.
    """

    def __init__(
        self,
        store: TokenStore | OriginalTokens,
        records: Sequence[VideoRecord],
        views: Sequence[str],
        num_frames: int,
        sampling_rate: int,
        mode: str,
        num_temporal_views: int = 1,
        start_rule: str = "linspace",
        max_distance_seconds: float | None = None,
        single_frame: bool = False,
        num_random_clips: int = 1,
        sampling: str = "rate",
        seed: int = 0,
        allow_missing: bool = False,
    ) -> None:
        """Find the videos in the store.

        Args:
            store: where the tokens are, see also `open_token_dataset`.
            records: videos of the data set.
            views: spatial views to take clips from, names in the store.
            num_frames: frames of a clip.
            sampling_rate: a clip takes every so many of the store's frames.
            mode: "random", "pair" or "uniform".
            num_temporal_views: clips per spatial view ("uniform").
            start_rule: where these start ("uniform").
            max_distance_seconds: largest distance of the two starts, None = no limit ("pair").
            single_frame: repeat one frame of each clip (a control experiment).
            num_random_clips: clips per item, each of its own start and view ("random").
            sampling: frames of a clip: "rate", or "segments", spread over the video.
            seed: of all random choices.
            allow_missing: leave out videos that the store does not have.

        Raises:
            ValueError: videos or views are not in the store, or an option is out of its range.
        """
        store.require(views=views)
        distance = None
        if max_distance_seconds is not None:
            distance = int(max_distance_seconds * store.meta.fps + 1e-6)
        self.sampler = ClipSampler(
            mode=mode,
            num_views=len(views),
            num_frames=num_frames,
            sampling_rate=sampling_rate,
            num_temporal_views=num_temporal_views,
            start_rule=start_rule,
            max_distance_frames=distance,
            single_frame=single_frame,
            num_random_clips=num_random_clips,
            sampling=sampling,
        )
        self.store = store
        self.records = records
        self.views = tuple(views)
        self.seed = seed
        self.pad = SpecialTokens(store.meta.vocab_size).pad
        locations = store.locate_all([record.video_id for record in records])
        present = locations[:, 0] >= 0
        self.missing = [records[i] for i in np.flatnonzero(~present).tolist()]
        if self.missing and not allow_missing:
            first = ", ".join(repr(record.video_id) for record in self.missing[:5])
            raise ValueError(
                f"{len(self.missing)} of {len(records)} videos are not in the token store "
                f"{store.folder} (first: {first}); extract them first"
            )
        # Arrays, not objects: workers forked from this process then share the memory.
        self._locations = locations[present]
        self._video_indices = np.flatnonzero(present)
        self._labels = np.array([record.label for record in records], np.int64)[present]

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, key: int | tuple[int, int]) -> ClipSample:
        """Draw the clips of one video.

        Args:
            key: index (epoch 0) or (epoch, index).
        """
        epoch, index = epoch_and_index(key, len(self))
        generator = item_generator(self.seed, epoch, index)
        location = Location(*self._locations[index].tolist())
        shape = (self.sampler.num_clips, self.sampler.num_frames, *self.store.meta.grid)
        clips = np.full(shape, self.pad, np.int64)
        num_frames = location.num_frames
        if isinstance(self.store, OriginalTokens):  # lengths stand in its records only
            num_frames = self.store.num_frames_at(location)
        chosen = self.sampler.clips(num_frames, generator)
        for clip, (view, frames) in zip(clips, chosen, strict=True):
            clip[: len(frames)] = self.store.read_at(location, self.views[view], frames)
        return {
            "clips": torch.from_numpy(clips),
            "label": int(self._labels[index]),
            "video_index": int(self._video_indices[index]),
        }
