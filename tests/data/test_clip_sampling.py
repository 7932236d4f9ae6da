import io
import shutil
from fractions import Fraction

import lmdb
import numpy as np
import pytest

from vimpac_ext.data.clip_sampling import (
    START_RULES,
    clip_indices,
    max_start,
    middle_view,
    pair_starts,
    random_segment_frames,
    random_start,
    segment_frames,
    view_starts,
)

PAD = 8193
CROPS = ("top", "center", "bottom")


def authors_tokens(folder):
    """Token maps (frames, 16, 16) of every video and crop, from the authors' LMDB format."""
    videos = {}
    for crop in CROPS:
        path = folder / f"dalle_ucf101_train_test_fps16_hflip0_128{crop}128"
        with (
            lmdb.open(str(path), readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                tokens = np.load(io.BytesIO(value))["tokens"].astype(np.int64)
                videos.setdefault(key.decode(), {})[crop] = tokens
    return [videos[key] for key in sorted(videos)]


@pytest.fixture(scope="module")
def authors(fixtures_dir, tmp_path_factory):
    original = fixtures_dir / "original"
    # A copy, because LMDB refuses to open a folder that another test still has open.
    folder = tmp_path_factory.mktemp("authors") / "video_tokens"
    shutil.copytree(original / "video_tokens", folder)
    return authors_tokens(folder), np.load(original / "token_samples.npz")


def clip(tokens, start, stride):
    chosen = tokens[clip_indices(start, len(tokens), 5, stride)]
    return np.pad(chosen, ((0, 5 - len(chosen)), (0, 0), (0, 0)), constant_values=PAD)


@pytest.mark.parametrize("num_views", [1, 3])
def test_vimpac_rule_gives_the_authors_test_clips(num_views, authors):
    videos, samples = authors
    for rank, video in enumerate(videos):
        starts = view_starts(len(video["top"]), 5, 4, num_views, "vimpac")
        clips = [clip(video[crop], start, 4) for crop in CROPS for start in starts]
        np.testing.assert_array_equal(samples[f"test_n{num_views}/{rank}/tokens"], clips)


def possible_starts(tokens, wanted, stride):
    last = max_start(len(tokens), 5, stride)
    return [s for s in range(last + 1) if np.array_equal(clip(tokens, s, stride), wanted)]


@pytest.mark.parametrize("distance", [None, 0, 4])
def test_the_authors_random_clips_are_possible(distance, authors):
    videos, samples = authors
    for rank, video in enumerate(videos):
        first, second = samples[f"pretrain_R{distance}/{rank}/tokens"]
        first_starts = possible_starts(video["center"], first, 1)
        second_starts = possible_starts(video["center"], second, 1)
        assert len(first_starts) == len(second_starts) == 1
        if distance is not None:
            assert abs(first_starts[0] - second_starts[0]) <= distance
        tuned = samples[f"finetune/{rank}/tokens"]
        assert any(possible_starts(video[crop], tuned, 4) for crop in CROPS)


@pytest.mark.parametrize("num_frames", [1, 3, 5, 9, 40])
@pytest.mark.parametrize("stride", [1, 4])
def test_starts_cover_the_video(num_frames, stride):
    last = max_start(num_frames, 5, stride)
    assert last == max(num_frames + stride - 1 - 5 * stride, 0)
    if num_frames > 5 * stride:  # the last clip ends with the last frame
        assert clip_indices(last, num_frames, 5, stride)[-1] == num_frames - 1
        assert len(clip_indices(last, num_frames, 5, stride)) == 5
        assert len(clip_indices(last + 1, num_frames, 5, stride)) == 4
    generator = np.random.default_rng(0)
    drawn = {random_start(num_frames, 5, stride, generator) for _ in range(500)}
    assert drawn == set(range(last + 1))


@pytest.mark.parametrize("distance", [None, 0, 3, 100])
def test_pairs_reach_all_allowed_distances(distance):
    generator = np.random.default_rng(0)
    pairs = [pair_starts(20, 5, 1, generator, distance) for _ in range(3000)]
    reach = 15 if distance is None else min(distance, 15)
    assert {abs(first - second) for first, second in pairs} == set(range(reach + 1))
    assert {first for first, _ in pairs} == set(range(16))
    assert all(0 <= second <= 15 for _, second in pairs)


def test_same_generator_gives_the_same_clips():
    pairs = [pair_starts(1000, 5, 1, np.random.default_rng((1, 2, 3))) for _ in range(2)]
    assert pairs[0] == pairs[1]


def test_rules():
    # max_start is 23
    assert view_starts(40, 5, 4, 1, "vimpac") == [0]
    assert view_starts(40, 5, 4, 1, "linspace") == [11]
    assert view_starts(40, 5, 4, 1, "uniform") == [0]
    assert view_starts(40, 5, 4, 4, "vimpac") == [int(23 * i / 3) for i in range(4)]
    assert view_starts(40, 5, 4, 4, "linspace") == [int(23 * i / 3) for i in range(4)]
    assert view_starts(40, 5, 4, 4, "uniform") == [int(23 * i / 4) for i in range(4)]
    for rule in START_RULES:
        assert view_starts(3, 5, 4, 3, rule) == [0, 0, 0]


VIEW_CASES = [
    (num_frames, length, stride, num_views)
    for num_frames in (3, 20, 97, 300, 1001)
    for length, stride in ((5, 1), (16, 1), (5, 4), (8, 7))
    for num_views in (1, 2, 3, 10)
]


def in_frames(num_frames, length, stride, fps=30):
    """What a sampler that works in seconds is told, so that it may use the same frames."""
    return Fraction(length * stride, fps), Fraction(num_frames + stride - 1, fps)


@pytest.mark.parametrize("case", VIEW_CASES)
def test_uniform_is_pytorchvideo_0_1_5(case):
    """Its released ConstantClipsPerVideoSampler, run; it divides the room by the clips."""
    from vimpac_ext import compat

    compat.install()
    from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler

    num_frames, length, stride, num_views = case
    clip, video = in_frames(num_frames, length, stride)
    sampler = ConstantClipsPerVideoSampler(clip, num_views)
    clips = [sampler(0.0, video, {}) for _ in range(num_views)]
    expected = [int(info.clip_start_sec * 30) for info in clips]
    assert view_starts(num_frames, length, stride, num_views, "uniform") == expected


@pytest.mark.parametrize("case", VIEW_CASES)
def test_vimpac_and_linspace_are_pytorchvideo_main(case):
    """Its unreleased ConstantClipsPerVideoSampler divides by the clips less one, at least 1."""
    num_frames, length, stride, num_views = case
    clip, video = in_frames(num_frames, length, stride)
    step = max(video - clip, 0) / max(num_views - 1, 1)
    expected = [int(step * view * 30) for view in range(num_views)]
    assert view_starts(num_frames, length, stride, num_views, "vimpac") == expected
    if num_views > 1:
        assert view_starts(num_frames, length, stride, num_views, "linspace") == expected


def test_random_starts_are_those_of_pytorchvideo():
    """RandomClipSampler draws evenly from the same room."""
    from vimpac_ext import compat

    compat.install()
    from pytorchvideo.data.clip_sampling import RandomClipSampler

    sampler = RandomClipSampler(Fraction(5, 30))
    theirs = {int(sampler(0.0, Fraction(12, 30), {}).clip_start_sec * 30) for _ in range(500)}
    generator = np.random.default_rng(0)
    ours = {random_start(12, 5, 1, generator) for _ in range(500)}
    assert ours == theirs | {7}  # they would need the very end of an interval of real numbers


@pytest.mark.parametrize("rule", START_RULES)
def test_starts_do_not_drift(rule):
    """Exact for numbers that floats cannot divide."""
    num_frames, num_views = 10**17 + 61, 7
    parts = num_views if rule == "uniform" else num_views - 1
    exact = [Fraction(num_frames - 5, 1) * view / parts for view in range(num_views)]
    assert view_starts(num_frames, 5, 1, num_views, rule) == [int(start) for start in exact]


def test_short_videos_give_short_clips():
    np.testing.assert_array_equal(clip_indices(0, 9, 5, 4), [0, 4, 8])
    np.testing.assert_array_equal(clip_indices(0, 3, 5, 1), [0, 1, 2])
    assert clip_indices(2, 40, 5, 4).dtype == np.int64


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown start rule 'middle', expected one of vimpac"):
        view_starts(40, 5, 4, 1, "middle")
    with pytest.raises(ValueError, match="num_views"):
        view_starts(40, 5, 4, 0, "vimpac")


@pytest.mark.parametrize("rule", ["linspace", "uniform", "vimpac"])
@pytest.mark.parametrize("num_views", [1, 2, 3, 4, 5, 10])
def test_the_middle_view_is_the_nearest_to_the_middle(num_views, rule):
    num_frames, middle = 10_005, 5_000  # clips of 5 frames start at 0 to 10 000
    starts = view_starts(num_frames, 5, 1, num_views, rule)
    chosen = middle_view(num_views, rule)
    distances = [abs(start - middle) for start in starts]
    assert distances[chosen] <= min(distances) + 1  # starts are rounded down
    if rule == "linspace" and num_views % 2:
        assert starts[chosen] == middle


@pytest.mark.parametrize("clip_length", [1, 4, 8, 32])
@pytest.mark.parametrize("num_frames", [1, 3, 8, 37, 48, 96])
def test_spread_frames_are_the_middles_of_equal_parts(num_frames, clip_length):
    """The frame that is shown halfway through each T-th of the video."""
    part = Fraction(num_frames, clip_length)
    middles = [part * i + part / 2 for i in range(clip_length)]
    shown = [next(f for f in range(num_frames) if f <= time < f + 1) for time in middles]
    found = segment_frames(num_frames, clip_length)
    assert found.dtype == np.int64
    assert found.tolist() == shown


@pytest.mark.parametrize(("num_frames", "clip_length"), [(48, 16), (37, 8), (96, 16), (5, 8)])
def test_two_spread_clips_are_those_of_videomaes_test(num_frames, clip_length):
    """It starts each segment in one view and takes its middle in the other."""
    tick = num_frames / clip_length
    starts = [int(tick * i) for i in range(clip_length)]
    middles = [int(tick * i + tick / 2) for i in range(clip_length)]
    views = [segment_frames(num_frames, clip_length, view, 2).tolist() for view in (0, 1)]
    assert views == [starts, middles]


def test_three_spread_clips_take_all_frames_of_their_parts():
    views = np.stack([segment_frames(24, 8, view, 3) for view in range(3)])
    assert views.T.ravel().tolist() == list(range(24))


@pytest.mark.parametrize("num_frames", [1, 5, 8, 27, 48])
def test_random_spread_frames_lie_anywhere_in_their_parts(num_frames):
    generator = np.random.default_rng(0)
    clips = np.stack([random_segment_frames(num_frames, 8, generator) for _ in range(2000)])
    assert clips.dtype == np.int64
    for i in range(8):
        low, high = num_frames * i / 8, num_frames * (i + 1) / 8
        touched = [f for f in range(num_frames) if f < high and f + 1 > low]
        assert sorted(set(clips[:, i].tolist())) == touched
        shares = [min(f + 1, high) - max(f, low) for f in touched]  # of the part, by frame
        for frame, share in zip(touched, shares, strict=True):
            expected = share / (high - low)
            assert (clips[:, i] == frame).mean() == pytest.approx(expected, abs=0.05)


def test_the_middle_of_spread_clips():
    """The one whose frames lie nearest to the middles of the segments."""
    assert [middle_view(n, "segments") for n in (1, 2, 3, 4, 10)] == [0, 1, 1, 2, 5]
