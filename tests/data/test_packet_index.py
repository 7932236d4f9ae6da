"""The index of an MP4 file tells of its packets what reading them all tells."""

import resource
from itertools import islice

import av
import numpy as np
import pytest
from made_videos import MadeVideo, burnt_number

from vimpac_ext.data import packet_index
from vimpac_ext.data.decode import VideoReader
from vimpac_ext.data.packet_index import PacketFacts, read_packets
from vimpac_ext.data.video_file import open_video

INDEXED = [
    MadeVideo("no_b_frames.mp4", codec_options={"x264-params": "bframes=0"}),
    MadeVideo("b_frames.mp4", num_b_frames=3),
    MadeVideo("b_frames.mov", num_b_frames=3),
    MadeVideo("late.mp4", times=range(50, 150), num_b_frames=3),
    MadeVideo("uneven.mp4", times=[0, 3, 4, 9, 20, 21, 22, 30, 44, 45] * 1, num_b_frames=2),
    MadeVideo("one_frame.mp4", times=[0]),
    MadeVideo("first.mp4", num_b_frames=3, container_options={"movflags": "faststart"}),
    MadeVideo(
        "negative.mp4", num_b_frames=3, container_options={"movflags": "negative_cts_offsets"}
    ),
]
NOT_INDEXED = [
    MadeVideo(
        "fragments.mp4", num_b_frames=3, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    MadeVideo("b_frames.mkv", num_b_frames=3),
]


def all_packets(path):
    with open_video(path) as container:
        return [
            PacketFacts(p.pts, p.dts, p.duration, p.pos, p.is_keyframe, p.is_discard, p.is_corrupt)
            for p in container.demux(video=0)
            if p.size
        ]


def indexed(path, monkeypatch):
    """What `read_packets` gives, and how many packets it read for that."""
    num_read = []
    facts = packet_index._facts

    def count(packets):
        for fact in facts(packets):
            num_read.append(fact)
            yield fact

    monkeypatch.setattr(packet_index, "_facts", count)
    with open_video(path) as container:
        return read_packets(container, path), len(num_read)


def without_duration(packets):
    return [packet._replace(duration=0) for packet in packets]


@pytest.mark.parametrize("made", INDEXED, ids=lambda made: made.file_name)
def test_index_equals_reading_everything(made, tmp_path, monkeypatch):
    path = made.write(tmp_path)
    expected = all_packets(path)
    found, num_read = indexed(path, monkeypatch)
    assert without_duration(found) == without_duration(expected)
    last_shown = max(range(len(found)), key=lambda rank: found[rank].pts)
    assert found[last_shown] == expected[last_shown]
    if len(expected) == 100:  # a key frame every 12 frames: the beginning and the last 4 frames
        assert num_read == 16 + 4


@pytest.mark.parametrize("made", NOT_INDEXED, ids=lambda made: made.file_name)
def test_other_files_are_read(made, tmp_path, monkeypatch):
    path = made.write(tmp_path)
    found, num_read = indexed(path, monkeypatch)
    assert found == all_packets(path)
    assert num_read == len(found) == 100


def test_real_files(real_videos, monkeypatch):
    for path in sorted([*real_videos.glob("*.mp4"), *real_videos.glob("*.mov")]):
        found, num_read = indexed(path, monkeypatch)
        assert without_duration(found) == without_duration(all_packets(path)), path
        monkeypatch.undo()


def test_an_index_that_does_not_fit_is_not_believed(tmp_path, monkeypatch):
    """Here libav's reader is made to disagree; then all packets are read, as before."""
    path = MadeVideo("b_frames.mp4", num_b_frames=3).write(tmp_path)
    expected = all_packets(path)
    offsets = packet_index._display_offsets
    for rank in (1, 97):  # among the first, among the last

        def wrong(*arguments, rank=rank):
            found = offsets(*arguments)
            found[rank] += 512
            return found

        monkeypatch.setattr(packet_index, "_display_offsets", wrong)
        with open_video(path) as container:
            assert read_packets(container, path) == expected


def test_a_wrong_entry_between_costs_time_but_no_frame(tmp_path, monkeypatch):
    path = MadeVideo("b_frames.mp4", num_b_frames=3).write(tmp_path)
    offsets = packet_index._display_offsets

    def wrong(*arguments):
        found = offsets(*arguments)
        found[48] += 256  # a key frame, half a frame late
        return found

    monkeypatch.setattr(packet_index, "_display_offsets", wrong)
    reader = VideoReader(path)
    chosen = reader.frames_at(25, [50, 10, 47, 70])
    assert [burnt_number(frame) for frame in chosen] == [50, 10, 47, 70]


def test_an_hour_opens_without_being_read(tmp_path, monkeypatch):
    """Only the first packets and the last group of pictures are."""
    source = MadeVideo("b_frames.mp4", num_b_frames=3).write(tmp_path)
    path = tmp_path / "hour.mp4"
    repeat(source, path, 900)
    found, num_read = indexed(path, monkeypatch)
    assert len(found) == 90_000
    assert num_read == 20
    reader = VideoReader(path)
    assert reader.duration == 3600
    indices = np.random.default_rng(0).integers(0, 90_000, 3)
    chosen = reader.frames_at(25, indices)
    assert [burnt_number(frame) for frame in chosen] == (indices % 100).tolist()


@pytest.mark.slow
def test_an_hour_is_decoded_frame_by_frame(tmp_path):
    """Memory does not grow with the length."""
    path = tmp_path / "hour.mkv"
    repeat(MadeVideo("b_frames.mp4", num_b_frames=3).write(tmp_path), path, 900)
    frames = VideoReader(path).iter_frames(25)
    assert len(list(islice(frames, 1000))) == 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    for number, frame in enumerate(frames, start=1000):
        if number % 997 == 0:
            assert burnt_number(frame) == number % 100
    assert number == 89_999
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def repeat(source, target, times):
    """Writes the packets of a video of 100 frames one after the other, ``times`` times."""
    with av.open(str(source)) as container, av.open(str(target), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        period = 100 * packets[0].duration
        contents = [bytes(packet) for packet in packets]
        for shift in range(0, times * period, period):
            for packet, content in zip(packets, contents, strict=True):
                moved = av.Packet(content)
                moved.pts, moved.dts = packet.pts + shift, packet.dts + shift
                moved.time_base, moved.duration = packet.time_base, packet.duration
                moved.is_keyframe, moved.stream = packet.is_keyframe, stream
                copy.mux(moved)
