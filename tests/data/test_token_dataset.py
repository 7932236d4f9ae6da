"""Token clips: the authors' clips, the right frames, uniform and reproducible choices."""

import io
import json
from collections import Counter
from dataclasses import replace

import lmdb
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.data.token_dataset import TokenClips
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.data.token_store_writer import TokenStoreWriter
from vimpac_ext.structures import VideoRecord

CROPS = ("top", "center", "bottom")
VIEWS = tuple(f"128{crop}128" for crop in CROPS)
META = StoreMeta("Fake", "Fake-1", 8192, 8, 16.0, VIEWS, (16, 16))
PAD = 8193


def coded_tokens(video, num_frames, grid=(16, 16)):
    """Tokens that tell their video, view and frame."""
    return {
        view: np.broadcast_to(
            (1000 * video + 100 * position + np.arange(num_frames))[:, None, None],
            (num_frames, *grid),
        )
        for position, view in enumerate(VIEWS)
    }


def decode(frame):
    """Back from a coded frame to (video, position of the view, frame)."""
    assert (frame == frame[0, 0]).all()
    code = int(frame[0, 0])
    return code // 1000, code % 1000 // 100, code % 100


LENGTHS = (3, 40, 21, 1, 60)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Store of coded videos and its records."""
    folder = tmp_path_factory.mktemp("coded")
    with TokenStoreWriter(folder, META) as writer:
        for video, length in enumerate(LENGTHS):
            writer.add(str(video), coded_tokens(video, length))
    records = [VideoRecord(f"{v}.avi", str(v), label=10 * v) for v in range(len(LENGTHS))]
    return TokenStore(folder), records


@pytest.fixture(scope="module")
def original(tmp_path_factory, fixtures_dir):
    """The authors' LMDBs as one of our stores, its records in their order, and their samples."""
    tokens, labels = {}, {}
    for crop, view in zip(CROPS, VIEWS, strict=True):
        name = f"dalle_ucf101_train_test_fps16_hflip0_128{crop}128"
        path = str(fixtures_dir / "original" / "video_tokens" / name)
        with (
            lmdb.open(path, readonly=True, lock=False) as environment,
            environment.begin() as transaction,
        ):
            for key, value in transaction.cursor():
                archive = np.load(io.BytesIO(value))
                tokens.setdefault(key.decode(), {})[view] = archive["tokens"]
                labels[key.decode()] = int(archive["label"])
    folder = tmp_path_factory.mktemp("original")
    with TokenStoreWriter(folder, META) as writer:
        for key, arrays in tokens.items():
            writer.add(key, arrays)
    samples = np.load(fixtures_dir / "original" / "token_samples.npz")
    keys = json.loads(str(samples["keys"]))
    assert sorted(tokens) == keys
    records = [VideoRecord(f"{key}.avi", key, labels[key]) for key in keys]
    return TokenStore(folder), records, samples


@pytest.mark.parametrize("num_temporal_views", [1, 3])
def test_test_clips_are_the_authors(original, num_temporal_views):
    store, records, samples = original
    clips = TokenClips(
        store, records, VIEWS, 5, 4, "uniform", num_temporal_views, start_rule="vimpac"
    )
    assert len(clips) == 4
    for index in range(4):
        sample = clips[index]
        expected = samples[f"test_n{num_temporal_views}/{index}/tokens"]
        np.testing.assert_array_equal(sample["clips"].numpy(), expected)
        assert sample["label"] == samples[f"test_n{num_temporal_views}/{index}/label"]
        assert sample["video_index"] == index


@pytest.mark.parametrize("distance", [None, 0, 4])
def test_authors_pairs_are_among_ours(original, distance):
    """The authors' relevance range is in frames, ours in seconds."""
    store, records, samples = original
    seconds = None if distance is None else distance / 16
    clips = TokenClips(
        store, records, VIEWS[1:2], 5, 1, "pair", max_distance_seconds=seconds, seed=3
    )
    for index in range(4):
        wanted = samples[f"pretrain_R{distance}/{index}/tokens"].astype(np.int64)
        firsts = {clips[(epoch, index)]["clips"][0].numpy().tobytes() for epoch in range(600)}
        assert wanted[0].tobytes() in firsts
        pairs = (clips[(epoch, index)]["clips"].numpy() for epoch in range(600, 20000))
        if distance is not None:  # all pairs of independent starts would take too long
            assert any((pair == wanted).all() for pair in pairs)


def test_authors_training_clips_are_among_ours(original):
    store, records, samples = original
    clips = TokenClips(store, records, VIEWS, 5, 4, "random")
    for index in range(4):
        wanted = samples[f"finetune/{index}/tokens"]
        ours = (clips[(epoch, index)]["clips"][0].numpy() for epoch in range(2000))
        assert any((clip == wanted).all() for clip in ours)


def frames_by_hand(length, start, num_frames, rate):
    frames = [start + rate * i for i in range(num_frames)]
    return [frame if frame < length else None for frame in frames]


def read_clip(clip):
    """(video, view, frames with None for PAD) of a clip of coded tokens."""
    frames = [None if (frame == PAD).all() else decode(frame) for frame in clip.numpy()]
    videos = {frame[:2] for frame in frames if frame}
    assert len(videos) == 1
    return *videos.pop(), [frame and frame[2] for frame in frames]


@pytest.mark.parametrize(("num_frames", "rate"), [(5, 1), (5, 4), (10, 3), (1, 1)])
@pytest.mark.parametrize("mode", ["random", "pair"])
def test_random_clips(coded, mode, num_frames, rate):
    store, records = coded
    clips = TokenClips(store, records, VIEWS, num_frames, rate, mode)
    for index, length in enumerate(LENGTHS):
        last = max(length + rate - 1 - num_frames * rate, 0)
        for epoch in range(20):
            sample = clips[(epoch, index)]
            num_clips = 2 if mode == "pair" else 1
            assert sample["clips"].shape == (num_clips, num_frames, 16, 16)
            assert sample["clips"].dtype == torch.int64
            assert (sample["label"], sample["video_index"]) == (10 * index, index)
            views = set()
            for clip in sample["clips"]:
                video, view, frames = read_clip(clip)
                assert video == index
                assert 0 <= frames[0] <= last
                assert frames == frames_by_hand(length, frames[0], num_frames, rate)
                views.add(view)
            assert len(views) == 1


@pytest.mark.parametrize("mode", ["random", "pair"])
def test_starts_and_views_are_uniform(coded, mode):
    store, records = coded
    clips = TokenClips(store, records, VIEWS, 5, 4, mode, seed=1)
    index, number = 2, 6000  # 21 frames: starts 0..4
    drawn = [read_clip(c) for e in range(number) for c in clips[(e, index)]["clips"][-1:]]
    counts = Counter((view, frames[0]) for _, view, frames in drawn)
    assert sorted(counts) == [(view, start) for view in range(3) for start in range(5)]
    expected = number / 15
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 36.1  # 14 degrees of freedom, p = 0.001


def test_distance_of_pairs_in_seconds(coded):
    store, records = coded
    clips = TokenClips(store, records, VIEWS, 5, 1, "pair", max_distance_seconds=0.25)
    starts = [
        [read_clip(clip)[2][0] for clip in clips[(epoch, 4)]["clips"]] for epoch in range(2000)
    ]
    distances = Counter(second - first for first, second in starts)
    assert set(distances) == set(range(-4, 5))  # 0.25 s at 16 frames a second


def test_uniform_clips_go_crop_by_crop(coded):
    store, records = coded
    clips = TokenClips(store, records, VIEWS[::-1], 5, 4, "uniform", 3, start_rule="linspace")
    sample = clips[4]  # 60 frames: the last start is 43
    read = [read_clip(clip) for clip in sample["clips"]]
    assert [view for _, view, _ in read] == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert [frames[0] for *_, frames in read] == [0, 21, 43] * 3
    for *_, frames in read:
        assert frames == frames_by_hand(60, frames[0], 5, 4)
    assert [read_clip(clip)[2] for clip in clips[0]["clips"]] == [[0, None, None, None, None]] * 9
    assert (clips[(7, 4)]["clips"] == sample["clips"]).all()  # nothing random in it


def test_single_frame_control(coded):
    store, records = coded
    uniform = TokenClips(store, records, VIEWS, 5, 4, "uniform", 2, single_frame=True)
    assert [read_clip(clip)[2] for clip in uniform[1]["clips"]][:2] == [[8] * 5, [31] * 5]
    assert [read_clip(clip)[2] for clip in uniform[0]["clips"]][:1] == [[0] * 5]  # no PAD
    random = TokenClips(store, records, VIEWS, 5, 4, "random", single_frame=True)
    chosen = Counter()
    for epoch in range(600):
        _, _, frames = read_clip(random[(epoch, 2)]["clips"][0])
        assert len(set(frames)) == 1
        chosen.update(frames[:1])
    assert set(chosen) == set(range(21))


def test_depends_on_seed_epoch_and_index_only(coded):
    store, records = coded

    def draw(seed, epoch):
        clips = TokenClips(store, records, VIEWS, 5, 1, "pair", seed=seed)
        return torch.stack([clips[(epoch, index)]["clips"] for index in range(len(clips))])

    assert (draw(0, 3) == draw(0, 3)).all()
    assert (draw(0, 3) != draw(0, 4)).any()
    assert (draw(0, 3) != draw(1, 3)).any()
    clips = TokenClips(store, records, VIEWS, 5, 1, "pair")
    for index in range(len(clips)):
        assert (clips[index]["clips"] == clips[(0, index)]["clips"]).all()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_batches_do_not_depend_on_workers(coded, method):
    store, records = coded
    clips = TokenClips(store, records, VIEWS, 5, 2, "pair", seed=5)
    keys = [[(epoch, index) for index in (3, 1, 4)] for epoch in range(6)]
    alone = list(DataLoader(clips, batch_sampler=keys))
    together = list(
        DataLoader(clips, batch_sampler=keys, num_workers=2, multiprocessing_context=method)
    )
    assert alone[0]["clips"].shape == (3, 2, 5, 16, 16)
    assert len(alone) == len(together) == 6
    for a, b in zip(alone, together, strict=True):
        assert set(a) == {"clips", "label", "video_index"}
        assert all((a[key] == b[key]).all() for key in a)


def test_default_collate(coded):
    store, records = coded
    clips = TokenClips(store, records, VIEWS, 5, 1, "random")
    batch = default_collate([clips[0], clips[4]])
    assert batch["label"].tolist() == [0, 40]
    assert batch["video_index"].tolist() == [0, 4]


def test_missing_videos(coded):
    store, records = coded
    more = [*records[:2], VideoRecord("x.avi", "gone"), *records[2:], VideoRecord("y.avi", "lost")]
    with pytest.raises(ValueError, match="2 of 7 videos are not in .*'gone', 'lost'"):
        TokenClips(store, more, VIEWS, 5, 1, "random")
    clips = TokenClips(store, more, VIEWS, 5, 1, "random", allow_missing=True)
    assert [record.video_id for record in clips.missing] == ["gone", "lost"]
    assert len(clips) == 5
    for sample in (clips[index] for index in range(len(clips))):
        record = more[sample["video_index"]]
        assert sample["label"] == record.label
        assert read_clip(sample["clips"][0])[0] == int(record.video_id)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"views": ["128top128", "64top64"]}, "no view 64top64; it has 128top128"),
        ({"views": []}, "number of spatial views is 0"),
        ({"mode": "middle"}, "mode 'middle' is unknown; choose from random, pair, uniform"),
        ({"start_rule": "late"}, "start rule 'late' is unknown; choose from .*linspace"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"sampling_rate": 0}, "sampling_rate is 0"),
        ({"num_temporal_views": 0}, "num_temporal_views is 0"),
    ],
)
def test_wrong_options(coded, options, reason):
    store, records = coded
    good = {"views": VIEWS, "num_frames": 5, "sampling_rate": 1, "mode": "uniform"}
    with pytest.raises(ValueError, match=reason):
        TokenClips(store, records, **(good | options))


def test_no_such_item(coded):
    store, records = coded
    clips = TokenClips(store, records, VIEWS, 5, 1, "random")
    for key in (5, -1, (0, 5)):
        with pytest.raises(IndexError, match="data set of 5"):
            clips[key]


def test_store_that_grew_meanwhile(tmp_path):
    """Items stay at their videos when a writer adds to the store."""
    with TokenStoreWriter(tmp_path, replace(META)) as writer:
        writer.add("5", coded_tokens(5, 9))
        clips = TokenClips(TokenStore(tmp_path), [VideoRecord("", "5")], VIEWS, 5, 1, "random")
        for video in range(5):
            writer.add(str(video), coded_tokens(video, 9))
        assert read_clip(clips[0]["clips"][0])[0] == 5
