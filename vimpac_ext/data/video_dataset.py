"""Pixel clips decoded from video files, as a map-style data set."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from vimpac_ext.data.clip_sampler import ClipSampler, epoch_and_index, item_generator
from vimpac_ext.data.decode import VideoDecodeError, open_record
from vimpac_ext.data.random_views import RandomView
from vimpac_ext.data.spatial_views import SpatialView
from vimpac_ext.structures import ClipSample, VideoRecord

PADDINGS = ("last", "nan")


class FrameClips(Dataset[ClipSample]):
    """Clips of frames in [0, 1], one item per video. See `ClipSampler` for the modes.

    An item depends only on the seed, the epoch and its index, so batches are the same for any
    number of workers. Videos shorter than a clip are filled up (see ``padding``). A video that
    cannot be decoded raises, unless ``mark_bad`` is set.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        views: Sequence[SpatialView],
        num_frames: int,
        fps: float,
        sampling_rate: int = 1,
        mode: str = "random",
        num_temporal_views: int = 1,
        start_rule: str = "linspace",
        max_distance_seconds: float | None = None,
        single_frame: bool = False,
        num_random_clips: int = 1,
        sampling: str = "rate",
        padding: str = "last",
        mark_bad: bool = False,
        random_view: RandomView | None = None,
        seed: int = 0,
        decoder: str = "pyav",
    ) -> None:
        """Check the options; no video is opened yet.

        Args:
            records: videos of the data set.
            views: spatial views to take clips from, of one size.
            num_frames: frames of a clip.
            fps: rate at which the video is sampled.
            sampling_rate: a clip takes every so many of these frames.
            mode: "random", "pair" or "uniform".
            num_temporal_views: clips per spatial view ("uniform").
            start_rule: where these start ("uniform").
            max_distance_seconds: largest distance of the two starts, None = no limit ("pair").
            single_frame: repeat one frame of each clip (a control experiment).
            num_random_clips: clips per item, each of its own start and view ("random").
            sampling: frames of a clip: "rate", or "segments", spread over the video.
            padding: what follows the end of a short video: "last", its last frame again, or
                "nan", frames of NaN, which `OnlineTokenizer` turns into padding tokens.
            mark_bad: give an item for a video that cannot be decoded, too: clips of NaN, and
                "error", the reason (empty for the others). False = raise.
            random_view: draws a view of each clip, in place of ``views``.
            seed: of all random choices.
            decoder: of video files: "pyav" or "torchcodec".

        Raises:
            ValueError: the views differ in size, or an option is out of its range.
        """
        if len({view.size for view in views}) > 1:
            names = ", ".join(view.name for view in views)
            raise ValueError(f"views of one data set must have one size, found {names}")
        if padding not in PADDINGS:
            raise ValueError(f"padding {padding!r} is unknown; choose from {', '.join(PADDINGS)}")
        distance = None
        if max_distance_seconds is not None:
            distance = int(max_distance_seconds * fps + 1e-6)
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
        self.records = records
        self.views = tuple(views)
        self.fps = fps
        self.padding = padding
        self.mark_bad = mark_bad
        self.random_view = random_view
        self.seed = seed
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> ClipSample:
        """Decode the clips of one video: float32 (C, 3, T, H, W) in [0, 1].

        Args:
            key: index (epoch 0) or (epoch, index).

        Raises:
            VideoDecodeError: the video is missing or broken; names the file.
        """
        epoch, index = epoch_and_index(key, len(self))
        label = self.records[index].label
        try:
            clips = self._decode(epoch, index)
        except VideoDecodeError as error:
            if not self.mark_bad:
                raise
            side = self.views[0].size
            shape = (self.sampler.num_clips, 3, self.sampler.num_frames, side, side)
            clips = torch.full(shape, torch.nan)
            return {"clips": clips, "label": label, "video_index": index, "error": str(error)}
        sample: ClipSample = {"clips": clips, "label": label, "video_index": index}
        if self.mark_bad:
            sample["error"] = ""
        return sample

    def _decode(self, epoch: int, index: int) -> torch.Tensor:
        generator = item_generator(self.seed, epoch, index)
        record = self.records[index]
        with open_record(record, self.decoder) as reader:
            chosen = self.sampler.clips(reader.num_frames_at(self.fps), generator)
            wanted = np.unique(np.concatenate([frames for _, frames in chosen]))
            decoded = reader.frames_at(self.fps, wanted.tolist())
        clips = [
            self._clip(decoded[np.searchsorted(wanted, frames)], self.views[view], generator)
            for view, frames in chosen
        ]
        return torch.stack(clips)

    def _clip(
        self, frames: np.ndarray, view: SpatialView, generator: np.random.Generator
    ) -> torch.Tensor:
        missing = self.sampler.num_frames - len(frames)
        cut = self.random_view(frames, generator) if self.random_view else view(frames)
        pixels = torch.from_numpy(cut).permute(3, 0, 1, 2).float() / 255
        if missing == 0:
            return pixels  # (3, T, H, W)
        last = pixels[:, -1:] if self.padding == "last" else torch.full_like(pixels[:, -1:], np.nan)
        return torch.cat([pixels, last.expand(-1, missing, -1, -1)], dim=1)
