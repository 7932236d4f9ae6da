"""Pixel clips: the right frames in the right layout, reproducible, errors that name the file."""

import gc
import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vimpac_ext.data import StoreMeta, TokenClips, TokenStore, TokenStoreWriter
from vimpac_ext.data.decode import VideoDecodeError, VideoReader
from vimpac_ext.data.spatial_views import SpatialView
from vimpac_ext.data.synthetic import encode_webm
from vimpac_ext.data.video_dataset import FrameClips
from vimpac_ext.structures import VideoRecord

LENGTHS = (20, 3)
VIEWS = tuple(SpatialView(16, crop, 16, flip=False) for crop in ("top", "bottom"))


def grey_frames(num_frames):
    """Frame i: grey level 10 + 10 i on the left half, 5 more on the right."""
    frames = np.zeros((num_frames, 16, 48, 3), np.uint8)
    frames += (10 + 10 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    frames[:, :, 24:] += 5
    return frames


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    records = []
    for index, length in enumerate(LENGTHS):
        path = folder / f"{index}.webm"
        path.write_bytes(encode_webm(grey_frames(length), fps=8))
        records.append(VideoRecord(str(path), str(index), label=5 + index))
    return records


def decode(clip):
    """(position of the view, frames) of a clip (3, T, 16, 16)."""
    level = clip.numpy().mean(axis=(0, 2, 3)) * 255
    right = (level[0] - 10) % 10 > 2.5 - 0.1 and (level[0] - 10) % 10 < 7.6
    return int(right), np.rint((level - 10 - 5 * right) / 10).astype(int).tolist()


def test_random_clips(records):
    clips = FrameClips(records, VIEWS, num_frames=4, fps=8, sampling_rate=2)
    seen = set()
    for epoch in range(30):
        sample = clips[(epoch, 0)]
        assert sample["clips"].shape == (1, 3, 4, 16, 16)
        assert sample["clips"].dtype == torch.float32
        assert 0 <= sample["clips"].min() <= sample["clips"].max() <= 1
        assert (sample["label"], sample["video_index"]) == (5, 0)
        view, frames = decode(sample["clips"][0])
        assert frames == [frames[0] + 2 * i for i in range(4)]
        seen.add((view, frames[0]))
    assert {view for view, _ in seen} == {0, 1}
    starts = {start for _, start in seen}
    assert len(starts) > 5
    assert starts <= set(range(14))


def test_short_video_repeats_its_last_frame(records):
    clips = FrameClips(records, VIEWS, num_frames=5, fps=8)
    assert decode(clips[1]["clips"][0])[1] == [0, 1, 2, 2, 2]


def test_uniform_and_pairs(records):
    uniform = FrameClips(records, VIEWS, 4, 8, mode="uniform", num_temporal_views=3)
    read = [decode(clip) for clip in uniform[0]["clips"]]
    assert [view for view, _ in read] == [0, 0, 0, 1, 1, 1]
    assert [frames[0] for _, frames in read] == [0, 8, 16] * 2
    pairs = FrameClips(records, VIEWS, 4, 8, mode="pair", max_distance_seconds=0.25)
    for epoch in range(20):
        (view, first), (other_view, second) = map(decode, pairs[(epoch, 0)]["clips"])
        assert view == other_view
        assert abs(first[0] - second[0]) <= 2


def test_equals_the_reader_and_the_view(records):
    view = SpatialView(20, "center", 16, flip=True)
    sample = FrameClips(records, [view], 3, 4, mode="uniform")[0]
    with VideoReader(records[0].path) as reader:
        start = (reader.num_frames_at(4) - 3) // 2
        frames = view(reader.frames_at(4, range(start, start + 3)))
    expected = torch.from_numpy(frames).permute(3, 0, 1, 2) / 255
    torch.testing.assert_close(sample["clips"][0], expected, rtol=0, atol=0)


def test_segments(records):
    segment = VideoRecord(records[0].path, "segment", start=1.0, end=1.5)
    clips = FrameClips([segment], VIEWS, num_frames=4, fps=8)
    assert {tuple(decode(clips[(e, 0)]["clips"][0])[1]) for e in range(5)} == {(8, 9, 10, 11)}


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_batches_do_not_depend_on_workers(records):
    clips = FrameClips(records, VIEWS, num_frames=4, fps=8, seed=2)
    keys = [[(epoch, 1), (epoch, 0)] for epoch in range(4)]
    alone = list(DataLoader(clips, batch_sampler=keys))
    together = list(DataLoader(clips, batch_sampler=keys, num_workers=2))
    for a, b in zip(alone, together, strict=True):
        assert all((a[key] == b[key]).all() for key in a)
    assert not (alone[0]["clips"] == alone[1]["clips"]).all()


@pytest.mark.parametrize("mode", ["random", "pair", "uniform"])
def test_samples_have_the_keys_and_axes_of_token_clips(records, mode, tmp_path):
    """A task may be given either; only what a frame is differs."""
    with TokenStoreWriter(tmp_path, StoreMeta("A", "A:1", 9, 8, 8, ("v",), (2, 2))) as writer:
        for record, length in zip(records, LENGTHS, strict=True):
            writer.add(record.video_id, {"v": np.zeros((length, 2, 2), np.int64)})
    tokens = TokenClips(TokenStore(tmp_path), records, ["v"], 4, 2, mode, num_temporal_views=3)
    frames = FrameClips(records, VIEWS[:1], 4, 8, 2, mode, num_temporal_views=3)
    assert len(tokens) == len(frames) == 2
    for ours, theirs in zip(*(DataLoader(clips, 2) for clips in (frames, tokens)), strict=True):
        assert ours.keys() == theirs.keys() == {"clips", "label", "video_index"}
        for key in ("label", "video_index"):
            assert torch.equal(ours[key], theirs[key])
        assert ours["clips"].shape[:2] == theirs["clips"].shape[:2]  # videos, clips
        assert ours["clips"].shape[3] == theirs["clips"].shape[2] == 4  # frames


def test_bad_videos_raise(records, tmp_path):
    empty = tmp_path / "empty.webm"
    empty.write_bytes(b"")
    bad = [VideoRecord(str(empty), "empty"), VideoRecord(str(tmp_path / "no.webm"), "missing")]
    clips = FrameClips([*records, *bad], VIEWS, num_frames=4, fps=8)
    assert len(clips) == 4
    for index in (2, 3):
        with pytest.raises(VideoDecodeError, match=bad[index - 2].path):
            clips[index]


def test_views_of_different_size(records):
    with pytest.raises(ValueError, match="one size, found 16top16, 20top20"):
        FrameClips(records, [VIEWS[0], SpatialView(20, "top", 20, flip=False)], 4, 8)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forked_workers_can_free_the_parents_frames(records):
    """A frame converted by several threads blocks the child that garbage-collects it for ever."""
    gc.collect()  # what other tests left behind is not this test's business
    gc.disable()
    try:
        with VideoReader(records[0].path) as reader:
            frames = reader.iter_frames(8)
            next(frames)
            cycle = [frames]
            cycle.append(cycle)
        del frames, cycle
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join(timeout=20)
        finished = child.exitcode == 0
        child.kill()
        child.join()
    finally:
        gc.enable()
    assert finished


def test_clips_spread_over_the_video(records):
    """20 frames in 4 parts of 5; the video of 3 frames shows some twice and pads nothing."""
    options = {"num_frames": 4, "fps": 8, "sampling": "segments"}
    one = FrameClips(records, VIEWS, mode="uniform", **options)
    assert [decode(clip) for clip in one[0]["clips"]] == [(v, [2, 7, 12, 17]) for v in (0, 1)]
    assert decode(one[1]["clips"][0])[1] == [0, 1, 1, 2]
    two = FrameClips(records, VIEWS, mode="uniform", num_temporal_views=2, **options)
    starts, middles = [0, 5, 10, 15], [2, 7, 12, 17]
    found = [decode(clip) for clip in two[0]["clips"]]
    assert found == [(0, starts), (0, middles), (1, starts), (1, middles)]
    for mode, num_clips in (("random", 1), ("pair", 2)):
        drawn = FrameClips(records, VIEWS, mode=mode, **options)
        seen, views = set(), set()
        for epoch in range(20):
            clips = [decode(clip) for clip in drawn[(epoch, 0)]["clips"]]
            assert len(clips) == num_clips
            assert len({view for view, _ in clips}) == 1
            views.add(clips[0][0])
            for _, frames in clips:
                assert [frame // 5 for frame in frames] == [0, 1, 2, 3]
                seen.add(tuple(frames))
        assert views == {0, 1}
        assert len(seen) > 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "segment"}, "'segment' is unknown; choose from rate, segments"),
        ({"sampling": "segments", "sampling_rate": 2}, "sampling_rate is 2 and must be 1"),
        ({"sampling": "segments", "max_distance_seconds": 1.0}, "max_distance_frames is 8"),
    ],
)
def test_options_of_spread_clips(options, message, records):
    with pytest.raises(ValueError, match=message):
        FrameClips(records, VIEWS, num_frames=4, fps=8, **options)
