"""Which clips of a video make up one item of a data set, for tokens and pixels alike."""

import numpy as np

from vimpac_ext.data.clip_sampling import (
    SAMPLINGS,
    START_RULES,
    clip_indices,
    pair_starts,
    random_segment_frames,
    random_start,
    segment_frames,
    view_starts,
)

MODES = ("random", "pair", "uniform")


def epoch_and_index(key: int | tuple[int, int], num_items: int) -> tuple[int, int]:
    """Read the key of an item: its index (in epoch 0), or (epoch, index).

    Raises:
        IndexError: there is no such item.
    """
    epoch, index = key if isinstance(key, tuple) else (0, int(key))
    if not 0 <= index < num_items:
        raise IndexError(f"item {index} of a data set of {num_items}")
    return epoch, index


def item_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Randomness of one item in one epoch, the same in whatever process it is drawn."""
    return np.random.default_rng((seed, epoch, index))


class ClipSampler:
    """Chooses the spatial view and the frames of every clip of an item.

    Modes: "random", one clip from a random start (or several, each of its own start and view);
    "pair", two clips of the same random view (Section 3.3); "uniform", for testing,
    ``num_temporal_views`` clips spread over the video in each of the spatial views, all of view 0
    first, then view 1, ...

    Sampling "rate" takes every ``sampling_rate``-th frame from a start; "segments" spreads each
    clip over the whole video (`segment_frames`), so that clips of a video differ only in where
    within the segments their frames lie.
    """

    def __init__(
        self,
        mode: str,
        num_views: int,
        num_frames: int,
        sampling_rate: int = 1,
        num_temporal_views: int = 1,
        start_rule: str = "linspace",
        max_distance_frames: int | None = None,
        single_frame: bool = False,
        num_random_clips: int = 1,
        sampling: str = "rate",
    ) -> None:
        """Check the options.

        Args:
            mode: one of `MODES`.
            num_views: number of spatial views to draw from ("uniform" takes all).
            num_frames: frames of a clip.
            sampling_rate: a clip takes every so many frames.
            num_temporal_views: clips per spatial view ("uniform").
            start_rule: where these start, one of `START_RULES` ("uniform").
            max_distance_frames: largest distance of the two starts, None = no limit ("pair").
            single_frame: repeat one frame of the clip instead (a control experiment): a random
                one, or the middle one in "uniform".
            num_random_clips: clips per item ("random").
            sampling: one of `SAMPLINGS`.

        Raises:
            ValueError: an option is out of its range.
        """
        if mode not in MODES:
            raise ValueError(f"clip mode {mode!r} is unknown; choose from {', '.join(MODES)}")
        if num_random_clips > 1 and mode != "random":
            raise ValueError(
                f"AUG.NUM_SAMPLE is {num_random_clips}, but this task takes no random clips (its "
                f"mode is {mode!r}); set it to 1"
            )
        if start_rule not in START_RULES:
            rules = ", ".join(START_RULES)
            raise ValueError(f"start rule {start_rule!r} is unknown; choose from {rules}")
        counts = {
            "number of spatial views": num_views,
            "num_frames": num_frames,
            "sampling_rate": sampling_rate,
            "num_temporal_views": num_temporal_views,
            "num_random_clips": num_random_clips,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if sampling not in SAMPLINGS:
            choices = ", ".join(SAMPLINGS)
            raise ValueError(f"sampling {sampling!r} is unknown; choose from {choices}")
        if sampling == "segments" and (sampling_rate != 1 or max_distance_frames is not None):
            raise ValueError(
                "clips spread over the video (sampling 'segments') have no rate and no distance: "
                f"sampling_rate is {sampling_rate} and must be 1, max_distance_frames is "
                f"{max_distance_frames} and must be None"
            )
        self.mode = mode
        self.sampling = sampling
        self.num_views = num_views
        self.num_frames = num_frames
        self.sampling_rate = sampling_rate
        self.num_temporal_views = num_temporal_views
        self.start_rule = start_rule
        self.max_distance_frames = max_distance_frames
        self.single_frame = single_frame
        self.num_random_clips = num_random_clips

    @property
    def num_clips(self) -> int:
        """Clips per item."""
        if self.mode == "uniform":
            return self.num_views * self.num_temporal_views
        return 2 if self.mode == "pair" else self.num_random_clips

    def clips(
        self, video_frames: int, generator: np.random.Generator
    ) -> list[tuple[int, np.ndarray]]:
        """Choose the clips of an item.

        Args:
            video_frames: length of the video.
            generator: of `item_generator`.

        Returns:
            For each clip the position of its spatial view and int64 frame indices; these are fewer
            than ``num_frames`` where the video is too short.
        """
        if self.sampling == "segments":
            chosen = self._spread(video_frames, generator)
        else:
            chosen = self._at_rate(video_frames, generator)
        return [(view, self._frames(indices, generator)) for view, indices in chosen]

    def _spread(
        self, video_frames: int, generator: np.random.Generator
    ) -> list[tuple[int, np.ndarray]]:
        length, parts = self.num_frames, self.num_temporal_views
        if self.mode == "uniform":
            clips = [segment_frames(video_frames, length, part, parts) for part in range(parts)]
            return [(view, clip) for view in range(self.num_views) for clip in clips]
        views = [int(generator.integers(self.num_views)) for _ in range(self.num_clips)]
        if self.mode == "pair":  # both of one view
            views = views[:1] * 2
        return [(view, random_segment_frames(video_frames, length, generator)) for view in views]

    def _at_rate(
        self, video_frames: int, generator: np.random.Generator
    ) -> list[tuple[int, np.ndarray]]:
        length, stride = self.num_frames, self.sampling_rate
        if self.mode == "uniform":
            starts = view_starts(
                video_frames, length, stride, self.num_temporal_views, self.start_rule
            )
            choices = [(view, start) for view in range(self.num_views) for start in starts]
        elif self.mode == "random":
            choices = [
                (
                    int(generator.integers(self.num_views)),
                    random_start(video_frames, length, stride, generator),
                )
                for _ in range(self.num_random_clips)
            ]
        else:
            view = int(generator.integers(self.num_views))
            distance = self.max_distance_frames
            starts = [*pair_starts(video_frames, length, stride, generator, distance)]
            choices = [(view, start) for start in starts]
        return [
            (view, clip_indices(start, video_frames, length, stride)) for view, start in choices
        ]

    def _frames(self, indices: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if not self.single_frame:
            return indices
        uniform = self.mode == "uniform"
        position = len(indices) // 2 if uniform else int(generator.integers(len(indices)))
        return np.full(self.num_frames, indices[position])
