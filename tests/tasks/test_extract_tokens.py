"""Extraction: right tokens, nothing lost or doubled whatever happens, bad videos named."""

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vimpac_ext.data.decode import VideoDecodeError, VideoReader
from vimpac_ext.data.spatial_views import SpatialView, spatial_views
from vimpac_ext.data.store_check import check_store
from vimpac_ext.data.synthetic import encode_webm
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.structures import VideoRecord
from vimpac_ext.tasks.extract_tokens import extract
from vimpac_ext.tokenizers import VQVAETokenizer

VIEWS = (SpatialView(16, "top", 16, flip=False), SpatialView(20, "bottom", 16, flip=True))
FPS = 6


class MeanColour(nn.Module):
    """Token = brightness of an 8x8 patch in 64 steps."""

    vocab_size = 64
    stride = 8

    def __init__(self, fingerprint="MeanColour-1"):
        super().__init__()
        self.fingerprint = fingerprint
        self.batches = []

    def encode(self, frames):
        assert frames.min() >= 0
        assert frames.max() <= 1
        self.batches.append(len(frames))
        brightness = nn.functional.avg_pool2d(frames, self.stride).mean(dim=1)
        return (brightness * 63).round().long()


def make_videos(folder, number):
    """Records of small clips of noise, 4 to 12 frames."""
    records = []
    for index in range(number):
        generator = np.random.default_rng(index)
        frames = generator.integers(0, 256, (4 + index % 9, 3, 5, 3), np.uint8)
        path = folder / f"video {index}.webm"
        path.write_bytes(encode_webm(frames.repeat(8, axis=1).repeat(8, axis=2), fps=FPS))
        records.append(VideoRecord(str(path), f"class/{index}", label=index))
    return records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), 9)


def run(records, folder, tokenizer=None, **options):
    options = {"fps": FPS, "views": VIEWS, "batch_size": 6, "progress": False} | options
    return extract(records, tokenizer or MeanColour(), folder, **options)


def content(folder):
    """Everything in a store."""
    store = TokenStore(folder)
    ids = store.video_ids
    assert len(set(ids)) == len(ids) == len(store)
    for video_id in ids:
        store.verify(video_id)
    return {
        (video_id, view): store.read(video_id, view, range(store.num_frames(video_id)))
        for video_id in sorted(ids)
        for view in store.meta.views
    }


def assert_same(first, second):
    assert list(first) == list(second)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def by_hand(records):
    """Every frame of every view on its own."""
    expected = {}
    for record in sorted(records, key=lambda record: record.video_id):
        with VideoReader(record.path, start=record.start, end=record.end) as reader:
            frames = list(reader.iter_frames(FPS))
        for view in VIEWS:
            tokens = [
                MeanColour().encode(torch.from_numpy(view(f[None])).permute(0, 3, 1, 2) / 255)
                for f in frames
            ]
            expected[record.video_id, view.name] = torch.cat(tokens).numpy()
    return expected


@pytest.mark.parametrize("options", [{}, {"num_workers": 1, "batch_size": 1}, {"batch_size": 999}])
def test_every_frame_of_every_view(records, tmp_path, options):
    tokenizer = MeanColour()
    summary = run(records, tmp_path / "s", tokenizer, annotation_fingerprint="abc", **options)
    expected = by_hand(records)
    assert_same(content(tmp_path / "s"), expected)
    meta = TokenStore(tmp_path / "s").meta
    assert (meta.tokenizer, meta.tokenizer_fingerprint) == ("MeanColour", "MeanColour-1")
    assert (meta.vocab_size, meta.stride, meta.grid, meta.fps) == (64, 8, (2, 2), 6.0)
    assert (meta.views, meta.precision) == (("16top16", "20bottom16_hflip"), "fp32")
    assert meta.annotation_fingerprint == "abc"
    assert (summary.num_videos, summary.num_extracted, summary.num_already_done) == (9, 9, 0)
    assert summary.bad_videos == []
    assert summary.num_frames == sum(len(tokens) for tokens in expected.values()) / 2
    assert summary.seconds >= summary.tokenizer_seconds > 0
    assert summary.decode_seconds > 0
    assert summary.frames_per_second == summary.num_frames / summary.seconds
    assert set(tokenizer.batches) == {max(options.get("batch_size", 6) // 2 * 2, 2)}
    assert 0 < summary.decoder_share < 1
    assert summary.tokenizer_share == summary.tokenizer_seconds / summary.seconds


class BatchSensitive(MeanColour):
    """Like real libraries, only worse: another number of images gives other tokens."""

    def encode(self, frames):
        return (super().encode(frames) + len(frames)) % self.vocab_size


def test_tokens_do_not_depend_on_the_videos_beside(records, tmp_path):
    """So that an interrupted extraction, or one with other shards, gives the same tokens."""
    tokenizer = BatchSensitive()
    run(records, tmp_path / "together", tokenizer)
    assert set(tokenizer.batches) == {6}
    for record in records:
        run([record], tmp_path / "one by one", BatchSensitive())
    run(records[::-1], tmp_path / "backwards", BatchSensitive(), num_workers=4)
    expected = content(tmp_path / "together")
    assert_same(content(tmp_path / "one by one"), expected)
    assert_same(content(tmp_path / "backwards"), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batches_over_several_videos_are_exact(records, tmp_path, precision):
    """With a real network, whose logits do differ for another batch size."""
    options = {"batch_size": 7, "precision": precision, "views": VIEWS[:1]}
    run(records, tmp_path / "together", VQVAETokenizer(), **options)
    run(records[3:4], tmp_path / "alone", VQVAETokenizer(), **options)
    alone, together = content(tmp_path / "alone"), content(tmp_path / "together")
    assert_same(alone, {key: together[key] for key in alone})


def test_views_of_one_size_share_the_resizing(records, tmp_path, monkeypatch):
    sizes = []
    module = importlib.import_module("vimpac_ext.data.spatial_views")
    resize = module._resize_shorter_side
    monkeypatch.setattr(
        module,
        "_resize_shorter_side",
        lambda frames, size: sizes.append(size) or resize(frames, size),
    )
    views = spatial_views("resize2_crop3_flip2", 16)
    run(records[:1], tmp_path / "s", views=views, batch_size=12)
    assert sorted(sizes) == [16, 20]
    for view in views:
        with VideoReader(records[0].path) as reader:
            frames = view(np.stack(list(reader.iter_frames(FPS))))
        expected = MeanColour().encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)
        np.testing.assert_array_equal(
            content(tmp_path / "s")["class/0", view.name], expected.numpy()
        )


@pytest.mark.parametrize("counts", [(3, 3), (2, 5), (4, 1)])
def test_another_number_of_shards_loses_and_doubles_nothing(records, tmp_path, counts):
    """The first number of processes does a part, the second the rest."""
    before, after = counts
    for shard_id in range(before - 1):  # the last one never got to work
        run(records, tmp_path / "s", shard_id=shard_id, num_shards=before)
    summaries = [
        run(records, tmp_path / "s", shard_id=shard_id, num_shards=after)
        for shard_id in range(after)
    ]
    store = TokenStore(tmp_path / "s")
    assert store.num_doubles == 0
    assert_same(content(tmp_path / "s"), by_hand(records))
    assert sum(summary.num_videos for summary in summaries) == len(records)
    assert sum(summary.num_extracted for summary in summaries) == len(records[before - 1 :: before])


def test_video_committed_before_its_index_record_is_not_done_again(records, tmp_path):
    """Killed between the two, and started again with another number of shards."""
    run(records[:4], tmp_path / "s", shard_id=0, num_shards=2)
    (tmp_path / "s/shard_00000/index.bin").write_bytes(b"")
    summary = run(records[:4], tmp_path / "s", shard_id=1, num_shards=3)
    assert (summary.num_videos, summary.num_already_done) == (1, 0)
    summary = run(records[:4], tmp_path / "s", shard_id=2, num_shards=3)
    assert (summary.num_videos, summary.num_already_done) == (1, 1)


def test_segment(records, tmp_path):
    segment = VideoRecord(records[8].path, "segment", start=0.5, end=1.0)
    run([segment], tmp_path / "s")
    whole, part = by_hand([records[8]]), content(tmp_path / "s")
    for view in VIEWS:
        np.testing.assert_array_equal(part["segment", view.name], whole["class/8", view.name][3:6])


def test_second_run_does_nothing_twice(records, tmp_path):
    run(records[:4], tmp_path / "s")
    before = content(tmp_path / "s")
    tokenizer = MeanColour()
    summary = run(records[:4], tmp_path / "s", tokenizer)
    assert tokenizer.batches == []
    assert (summary.num_already_done, summary.num_extracted, summary.num_frames) == (4, 0, 0)
    summary = run(records, tmp_path / "s")
    assert (summary.num_already_done, summary.num_extracted) == (4, 5)
    after = content(tmp_path / "s")
    assert_same(after, by_hand(records))
    assert_same(before, {key: after[key] for key in before})


@pytest.fixture
def with_bad(records, tmp_path):
    """Good and bad videos in turn; the bad ones: text, empty, missing, cut short."""
    whole = Path(records[8].path).read_bytes()
    contents = {"text": b"no video", "empty": b"", "missing": None, "cut": whole[: len(whole) // 2]}
    bad = []
    for name, data in contents.items():
        path = tmp_path / f"{name}.webm"
        if data is not None:
            path.write_bytes(data)
        bad.append(VideoRecord(str(path), name))
    return [records[0], bad[0], bad[1], records[1], bad[2], records[2], bad[3]], bad


def test_bad_videos_are_skipped_and_listed(records, with_bad, tmp_path):
    mixed, bad = with_bad
    for _ in range(2):  # the second run tries them again
        summary = run(mixed, tmp_path / "s", on_bad_video="skip")
        assert {entry.video_id for entry in summary.bad_videos} == {b.video_id for b in bad}
        lines = (tmp_path / "s" / "bad_videos.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["path"] for line in lines) == sorted(b.path for b in bad)
        assert all(json.loads(line)["reason"] for line in lines)
        assert_same(content(tmp_path / "s"), by_hand(records[:3]))
    assert (summary.num_already_done, summary.num_extracted) == (3, 0)
    # A video that was repaired is no longer bad.
    Path(bad[0].path).write_bytes(Path(records[0].path).read_bytes())
    run(mixed, tmp_path / "s", on_bad_video="skip")
    lines = (tmp_path / "s" / "bad_videos.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["video_id"] for line in lines) == ["cut", "empty", "missing"]
    assert "text" in TokenStore(tmp_path / "s")


def test_bad_video_stops_with_its_name(records, with_bad, tmp_path):
    mixed, bad = with_bad
    with pytest.raises(VideoDecodeError, match=bad[0].path):
        run(mixed, tmp_path / "s", num_workers=1)
    assert_same(content(tmp_path / "s"), by_hand(records[:1]))  # what was done stays
    assert "text" in (tmp_path / "s" / "bad_videos.jsonl").read_text()
    summary = run([r for r in mixed if r not in bad], tmp_path / "s")
    assert (summary.num_already_done, summary.num_extracted) == (1, 2)


@pytest.fixture
def hangs(monkeypatch):
    """A reader that never comes back from class/2; gives how often it tried."""
    module = importlib.import_module("vimpac_ext.tasks.extract_tokens")
    freed, tried = threading.Event(), []

    def open_record(record):
        if record.video_id == "class/2":
            tried.append(1)
            freed.wait(60)
        return open_really(record)

    open_really = module.open_record
    monkeypatch.setattr(module, "open_record", open_record)
    yield tried
    freed.set()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_video_that_hangs_the_decoder_is_listed_and_the_rest_is_done(
    records, tmp_path, hangs, num_workers
):
    options = {"timeout": 0.5, "num_workers": num_workers}
    summary = run(records, tmp_path / "s", on_bad_video="skip", **options)
    (bad,) = summary.bad_videos
    assert (bad.video_id, bad.path) == ("class/2", records[2].path)
    assert bad.reason == f"cannot decode {records[2].path}: not done in 0.5 s"
    assert hangs == [1]
    assert summary.num_extracted == len(records) - 1
    assert_same(content(tmp_path / "s"), by_hand([*records[:2], *records[3:]]))
    (line,) = (tmp_path / "s" / "bad_videos.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == bad.reason
    with pytest.raises(VideoDecodeError, match=r"video 2\.webm: not done in 0\.5 s"):
        run(records, tmp_path / "s", **options)  # on_bad_video="error"


HANGING = """
import sys, threading
sys.path.insert(0, {folder!r})
from test_extract_tokens import VideoRecord, run
from vimpac_ext.tasks import extract_tokens
open_really = extract_tokens.open_record
def open_record(record):
    if record.video_id == "hangs":
        threading.Event().wait()
    return open_really(record)
extract_tokens.open_record = open_record
records = [VideoRecord({path!r}, name) for name in ("a", "hangs", "b")]
print(len(run(records, {store!r}, on_bad_video="skip", timeout=0.5).bad_videos))
"""


def test_thread_that_hangs_does_not_keep_the_process(records, tmp_path):
    folder, store = str(Path(__file__).parent), str(tmp_path / "s")
    program = HANGING.format(folder=folder, path=records[0].path, store=store)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, b"1")
    assert TokenStore(tmp_path / "s").video_ids == ["a", "b"]


def test_folder_with_the_authors_tokens_is_refused(records, tmp_path):
    # Here, since other processes import this module without the folder of that one.
    from original_format import record, write_token_folder

    theirs = tmp_path / "dalle_ucf101_train_test_fps16_hflip0_128center128"
    write_token_folder(theirs, {"a": record(np.zeros((2, 16, 16)))})
    before = {path: path.read_bytes() for path in theirs.iterdir()}
    for folder, word in ((theirs, "is"), (tmp_path, "has")):
        text = f"{folder} {word} a token folder in the authors' format .*convert_tokens"
        with pytest.raises(ValueError, match=text):
            run(records[:1], folder)
    assert {path: path.read_bytes() for path in theirs.iterdir()} == before
    assert list(tmp_path.iterdir()) == [theirs]
    # A store of ours may have such a name.
    ours = tmp_path / "below" / theirs.name
    run(records[:1], ours)
    assert run(records[:2], ours).num_already_done == 1


def test_another_tokenizer_is_refused(records, tmp_path):
    run(records[:1], tmp_path / "s")
    for tokenizer, options, text in [
        (MeanColour("MeanColour-2"), {}, "'MeanColour-1' != 'MeanColour-2'"),
        (None, {"fps": 3}, "fps: 6.0 != 3.0"),
        (None, {"views": VIEWS[:1]}, "views: "),
        (None, {"precision": "bf16"}, "precision: 'fp32' != 'bf16'"),
    ]:
        with pytest.raises(ValueError, match=text):
            run(records, tmp_path / "s", tokenizer, **options)
    assert_same(content(tmp_path / "s"), by_hand(records[:1]))


def test_bf16_reaches_the_tokenizer(records, tmp_path):
    class Probe(MeanColour):
        def encode(self, frames):
            self.used = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else 0
            return super().encode(frames)

    for precision, dtype in (("fp32", 0), ("bf16", torch.bfloat16)):
        tokenizer = Probe()
        run(records[:1], tmp_path / precision, tokenizer, precision=precision)
        assert tokenizer.used == dtype


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"timeout": -1}, "timeout is -1"),
        ({"shard_id": 2, "num_shards": 2}, "shard_id 2 is not in 0..1"),
        ({"precision": "fp8"}, "'fp8' is unknown; choose from fp32, bf16"),
        ({"on_bad_video": "hide"}, "'hide' is unknown; choose from error, skip"),
        ({"views": ()}, "of one size"),
        ({"views": VIEWS[:1] * 2}, "different .* found 16top16, 16top16"),
        ({"views": (SpatialView(12, "top", 12, flip=False),)}, "12 is not a multiple of .* 8"),
    ],
)
def test_wrong_options(records, tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        run(records, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_doubled_video_ids(records, tmp_path):
    with pytest.raises(ValueError, match="1 video ids occur more than once.*'class/3'"):
        run([*records, records[3]], tmp_path / "s")


def test_tokens_outside_the_vocabulary(records, tmp_path):
    tokenizer = MeanColour()
    tokenizer.vocab_size = 2
    with pytest.raises(ValueError, match="outside the vocabulary 0..1"):
        run(records, tmp_path / "s", tokenizer)


FORK_SERVER = """
import json, os, sys, time
sys.path.insert(0, {folder!r})
from test_extract_tokens import MeanColour, VideoRecord, run
class Slow(MeanColour):
    def encode(self, frames):
        time.sleep(0.02)
        return super().encode(frames)
Slow.__name__ = "MeanColour"
records = [VideoRecord(path, video_id) for path, video_id in json.loads({records!r})]
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(records, {store!r}, Slow())
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def kill_again_and_again(records, folder, num_kills, longest):
    """SIGKILL at random moments; checks the store after each, and the end result."""
    store = folder / "s"
    pairs = [(r.path, f"{copy}/{r.video_id}") for copy in range(6) for r in records]
    program = FORK_SERVER.format(
        folder=str(Path(__file__).parent), records=json.dumps(pairs), store=str(store)
    )
    records = [VideoRecord(path, video_id) for path, video_id in pairs]
    run(records, folder / "unbroken")
    unbroken = content(folder / "unbroken")
    clock, sizes, statuses = random.Random(0), [0], []
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        while len(statuses) < num_kills:
            server.stdin.write("go\n")
            server.stdin.flush()
            pid = int(server.stdout.readline())
            time.sleep(clock.uniform(0.0, longest))
            with contextlib.suppress(ProcessLookupError):  # it may have finished
                os.kill(pid, signal.SIGKILL)
            statuses.append(int(server.stdout.readline()))
            if (store / "meta.json").exists():
                so_far = content(store)
                sizes.append(len(so_far))
                assert_same(so_far, {key: unbroken[key] for key in so_far})
    assert sizes == sorted(sizes)
    summary = run(records, store)
    assert summary.num_already_done + summary.num_extracted == len(records)
    assert_same(content(store), unbroken)
    assert check_store(store).problems == []
    return statuses.count(signal.SIGKILL)


def test_killed_at_three_random_moments(records, tmp_path):
    assert kill_again_and_again(records, tmp_path, 3, longest=0.4) == 3


@pytest.mark.slow
def test_killed_at_twenty_random_moments(records, tmp_path):
    assert kill_again_and_again(records, tmp_path, 20, longest=0.25) >= 18
