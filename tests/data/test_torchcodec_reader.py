"""The torchcodec reader: a stand-in is asked for the right frames, the real one gives ours."""

import importlib
import sys
import types

import numpy as np
import pytest
from made_videos import MadeVideo, burnt_number
from test_decode import MADE_VIDEOS, REAL_VIDEOS, digests

from vimpac_ext.data import FrameClips, spatial_views
from vimpac_ext.data.decode import VideoDecodeError, VideoReader, open_reader, open_record
from vimpac_ext.structures import VideoRecord

MODULE = "vimpac_ext.data.torchcodec_reader"
UNSUITABLE = {  # read by PyAV: other demuxers, or packets without right display times
    *("transport.ts", "short_sound.ts", "program.mpg", "flash.flv", "raw.h264"),
    *("mpeg4_b_frames.avi", "h264_b_frames.avi"),
    *("opencv_box.mp4", "ucf101_ApplyEyeMakeup_g01_c01.avi"),
}
NOT_EXACT = "intra_refresh.mp4"


class StandIn:
    """Frames of 8 x 8 pixels that are their rank; remembers what it was asked for."""

    length = 100
    damaged = None
    metadata = types.SimpleNamespace(rotation=None)

    def __init__(self, source, **options):
        self.options = options
        self.asked = []
        StandIn.latest = self

    def __len__(self):
        return self.length

    def get_frame_at(self, rank):
        if rank == self.damaged:
            raise RuntimeError("no more frames")
        self.asked.append(rank)
        data = types.SimpleNamespace(numpy=lambda: np.full((8, 8, 3), rank, np.uint8))
        return types.SimpleNamespace(data=data)


@pytest.fixture
def stand_in(monkeypatch):
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = StandIn
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    sys.modules.pop(MODULE, None)
    yield StandIn
    sys.modules.pop(MODULE, None)


@pytest.fixture
def torchcodec():
    """The real one, where it can be loaded."""
    sys.modules.pop(MODULE, None)
    try:
        importlib.import_module(MODULE)
    except ImportError as error:
        pytest.skip(str(error))
    yield
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize(
    ("fps", "segment"), [(2, {}), (29.97, {}), (8, {"start": 1.3, "end": 3.1}), (8, {"start": 3.9})]
)
@pytest.mark.parametrize("name", ["b_frames.mp4", "uneven.mkv", "late.mp4", "mpeg4.avi"])
def test_it_is_asked_for_the_frames_of_the_fps_filter(name, fps, segment, folder, stand_in):
    """Those that the reader by PyAV gives, which is compared with ffmpeg's filter elsewhere."""
    made = {made.file_name: made for made in MADE_VIDEOS}[name]
    path = made.write(folder)
    ours = VideoReader(path, **segment)
    expected = [burnt_number(frame) for frame in ours.iter_frames(fps)]
    reader = open_reader(path, "torchcodec", **segment)
    assert reader.uses_torchcodec
    assert stand_in.latest.options["seek_mode"] == "exact"
    assert stand_in.latest.options["stream_index"] == 0
    assert (reader.duration, reader.num_frames_at(fps)) == (ours.duration, len(expected))
    assert [int(frame[0, 0, 0]) for frame in reader.iter_frames(fps)] == expected
    every = range(expected[0], expected[-1] + 1)
    assert stand_in.latest.asked == list(every)  # those between, too: damage there is noticed
    stand_in.latest.asked.clear()
    indices = np.random.default_rng(0).integers(0, len(expected), 5)
    chosen = reader.frames_at(fps, indices)
    assert chosen[:, 0, 0, 0].tolist() == [expected[index] for index in indices]
    assert stand_in.latest.asked == sorted({expected[index] for index in indices})
    between = ours.frames_between(0.1, 0.7)
    found = reader.frames_between(0.1, 0.7)
    assert [int(frame[0, 0, 0]) for frame in found] == [burnt_number(frame) for frame in between]
    assert reader.decode_all() == ours.decode_all()


def test_where_it_would_be_wrong_pyav_reads(folder, stand_in):
    for name in ("transport.ts", "mpeg4_b_frames.avi"):
        made = {made.file_name: made for made in MADE_VIDEOS}[name]
        reader = open_reader(made.write(folder), "torchcodec")
        assert not reader.uses_torchcodec
        assert [burnt_number(frame) for frame in reader.frames_at(25, [70, 3])] == [70, 3]
        assert [burnt_number(frame) for frame in reader.frames_between(0.4, 0.48)] == [10, 11]
        assert reader.decode_all() == len(list(reader.iter_frames(25))) == 100


def test_another_number_of_frames_than_packets(folder, stand_in, monkeypatch):
    """Then its ranks are not ours."""
    monkeypatch.setattr(stand_in, "length", 99)
    path = MADE_VIDEOS[0].write(folder)
    assert not open_reader(path, "torchcodec").uses_torchcodec


def test_its_errors_name_file_and_time(folder, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "damaged", 50)
    reader = open_reader(MADE_VIDEOS[0].write(folder), "torchcodec")
    with pytest.raises(VideoDecodeError, match=r"b_frames\.mp4 at 2\.00 s: torchcodec: no more"):
        list(reader.iter_frames(5))
    assert reader.frames_at(25, [49]).max() == 49


def test_versions_that_do_not_turn_frames_are_refused(folder, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "metadata", types.SimpleNamespace())
    with pytest.raises(ImportError, match=r"must be 0\.11 or newer"):
        open_reader(MADE_VIDEOS[0].write(folder), "torchcodec")


def test_clips_are_read_with_it(folder, stand_in):
    record = VideoRecord(str(MADE_VIDEOS[0].write(folder)), "a")
    options = {"views": spatial_views("center", 8), "num_frames": 4, "fps": 25, "mode": "uniform"}
    clips = FrameClips([record], decoder="torchcodec", **options)[0]["clips"]
    assert (clips[0, 0, :, 0, 0] * 255).round().tolist() == [48, 49, 50, 51]


def test_without_torchcodec_the_error_says_what_to_do(folder, monkeypatch):
    path = MADE_VIDEOS[0].write(folder)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    sys.modules.pop(MODULE, None)
    with pytest.raises(ImportError, match=r"pip install 'vimpac_ext\[decode\]'.*FFmpeg.*pyav"):
        open_record(VideoRecord(str(path), "a"), "torchcodec")
    with pytest.raises(ValueError, match="'decord' is unknown; choose from pyav, torchcodec"):
        open_reader(path, "decord")


@pytest.mark.parametrize("made", MADE_VIDEOS, ids=lambda made: made.file_name)
def test_frames_of_made_videos_are_ours(made, folder, torchcodec):
    if made.file_name == NOT_EXACT:
        pytest.skip("documented: intra refresh is not exact at random access")
    assert_same_frames(made.write(folder), 29.97)


def test_frames_are_upright(tmp_path, torchcodec):
    for number, rotation in enumerate([(90, False, False), (180, False, False)]):
        turned = MadeVideo(f"{number}.mp4", times=range(3), rotation=rotation)
        assert_same_frames(turned.write(tmp_path), 25)


@pytest.mark.parametrize("name", REAL_VIDEOS)
def test_frames_of_real_videos_are_ours(name, real_videos, torchcodec):
    assert_same_frames(real_videos / name, 5)


def assert_same_frames(path, fps):
    """Every pixel, in order and at random."""
    reader = open_reader(path, "torchcodec")
    assert reader.uses_torchcodec == (path.name not in UNSUITABLE)
    expected = digests(VideoReader(path).iter_frames(fps))
    assert digests(reader.iter_frames(fps)) == expected
    indices = np.random.default_rng(0).integers(0, len(expected), 5)
    chosen = open_reader(path, "torchcodec").frames_at(fps, indices)
    assert digests(chosen) == [expected[index] for index in indices]
