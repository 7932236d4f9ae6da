"""Which frames of a video make a clip: T frames, every s-th (Sections 3.2 and 4.2), or spread.

Everything here is the authors' rule unless said otherwise.
"""

import numpy as np

START_RULES = ("vimpac", "linspace", "uniform")
SAMPLINGS = ("rate", "segments")


def max_start(num_frames: int, clip_length: int, stride: int) -> int:
    """Last start at which the clip ends inside the video, 0 where the video is too short."""
    return max(num_frames + stride - 1 - clip_length * stride, 0)


def random_start(
    num_frames: int, clip_length: int, stride: int, generator: np.random.Generator
) -> int:
    """A start from 0 to `max_start`, all equally likely."""
    last = max_start(num_frames, clip_length, stride)
    return int(generator.integers(0, last, endpoint=True))


def pair_starts(
    num_frames: int,
    clip_length: int,
    stride: int,
    generator: np.random.Generator,
    max_distance_frames: int | None = None,
) -> tuple[int, int]:
    """Starts of two clips of one video, for contrast.

    Args:
        num_frames: frames of the video.
        clip_length: frames of a clip.
        stride: step from one frame of the clip to the next.
        generator: source of randomness.
        max_distance_frames: largest distance between the two starts, None = independent.
    """
    last = max_start(num_frames, clip_length, stride)
    first = random_start(num_frames, clip_length, stride, generator)
    distance = last if max_distance_frames is None else max_distance_frames
    low, high = max(first - distance, 0), min(first + distance, last)
    return first, int(generator.integers(low, high, endpoint=True))


def view_starts(
    num_frames: int, clip_length: int, stride: int, num_views: int, rule: str
) -> list[int]:
    """Starts of the clips of a test, spread over the video.

    Args:
        num_frames: frames of the video.
        clip_length: frames of a clip.
        stride: step from one frame of the clip to the next.
        num_views: clips.
        rule: with d = `max_start`, clip i of n starts at
            "vimpac": d i / (n-1), one clip at 0 (the authors' rule, and pytorchvideo's on its
            main branch);
            "linspace": d i / (n-1), one clip in the middle;
            "uniform": d i / n (pytorchvideo 0.1.5, PySlowFast by default). All rounded down.

    Raises:
        ValueError: if the rule is unknown or there is no view.
    """
    if rule not in START_RULES:
        raise ValueError(f"unknown start rule {rule!r}, expected one of {', '.join(START_RULES)}")
    if num_views < 1:
        raise ValueError(f"num_views must be at least 1, got {num_views}")
    last = max_start(num_frames, clip_length, stride)
    if rule == "linspace" and num_views == 1:
        return [last // 2]
    parts = num_views if rule == "uniform" else max(num_views - 1, 1)
    return [last * view // parts for view in range(num_views)]


def middle_view(num_views: int, rule: str) -> int:
    """Which of the clips of `view_starts` lies nearest to the middle; the earlier of two.

    With an odd number of views and "linspace" or "vimpac", or an even one and "uniform", it is the
    clip in the middle itself. (One view of "vimpac" or "uniform" lies at the start.) Of the views
    of `segment_frames` (rule "segments") it is the one nearest to the middles of the segments.
    """
    parts = num_views if rule in ("uniform", "segments") else max(num_views - 1, 1)
    return min(range(num_views), key=lambda view: abs(2 * view - parts))


def clip_indices(start: int, num_frames: int, clip_length: int, stride: int) -> np.ndarray:
    """Frames of a clip; fewer than ``clip_length`` where the video ends before (the caller pads).

    Returns:
        int64 (n,), n <= ``clip_length``.
    """
    return np.arange(start, min(start + clip_length * stride, num_frames), stride)


def segment_frames(
    num_frames: int, clip_length: int, view: int = 0, num_views: int = 1
) -> np.ndarray:
    """A clip spread over the whole video: one frame of each of ``clip_length`` equal segments.

    As in TSN (Wang et al. 2016, arXiv 1608.00859), which most models of Something-Something follow.
    One view takes the middle of each segment. View v of n > 1 takes what lies v/n into it: with two
    these are the views of VideoMAE's test (arXiv 2203.12602).

    Args:
        num_frames: frames of the video; some are taken twice where there are fewer than segments.
        clip_length: frames of a clip.
        view: which view.
        num_views: clips of a test.

    Returns:
        int64 (``clip_length``,).
    """
    into, parts = (1, 2) if num_views == 1 else (view, num_views)
    segments = range(clip_length)
    return np.array([num_frames * (i * parts + into) // (clip_length * parts) for i in segments])


def random_segment_frames(
    num_frames: int, clip_length: int, generator: np.random.Generator
) -> np.ndarray:
    """As `segment_frames`, but anywhere in each segment, all places equally likely."""
    places = (np.arange(clip_length) + generator.random(clip_length)) / clip_length
    return np.minimum((places * num_frames).astype(np.int64), num_frames - 1)
