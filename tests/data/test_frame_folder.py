"""Folders of images give the frames that a video of the same frames gives."""

from fractions import Fraction

import numpy as np
import pytest
from made_videos import burnt_number, filtered_numbers, numbered_image
from PIL import Image

from vimpac_ext.data import FrameClips, FrameFolder, PathLabelList, VideoFolder, spatial_views
from vimpac_ext.data.annotations import missing_videos
from vimpac_ext.data.decode import VideoDecodeError, open_record
from vimpac_ext.structures import VideoRecord


def write_images(folder, number=100, name="img_{:05}.png", first=1, step=1):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        image = Image.fromarray(numbered_image(index, 64, 24))
        image.save(folder / name.format(first + index * step))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("frames") / "a clip")


def numbers(frames):
    return [burnt_number(frame) for frame in frames]


@pytest.mark.parametrize("frame_rate", [25, 29.97])
@pytest.mark.parametrize("fps", [2, 25, 60, 7.5])
def test_frames_are_those_of_the_fps_filter(folder, frame_rate, fps):
    reader = FrameFolder(folder, frame_rate)
    rate = Fraction(frame_rate).limit_denominator(1000)
    expected = filtered_numbers(range(100), 1 / rate, 1, [("fps", str(Fraction(fps)))])
    assert numbers(reader.iter_frames(fps)) == expected
    assert reader.num_frames_at(fps) == len(expected)
    assert reader.duration == pytest.approx(100 / frame_rate)
    indices = np.random.default_rng(0).integers(0, len(expected), 6)
    assert numbers(reader.frames_at(fps, indices)) == [expected[index] for index in indices]


def test_pixels_are_those_of_the_images(folder):
    (frame,) = FrameFolder(folder, 10).frames_at(10, [42])
    np.testing.assert_array_equal(frame, numbered_image(42, 64, 24))


def test_segments_and_times(folder):
    segment = FrameFolder(folder, 10, start=2.0, end=5.0)
    assert segment.duration == 3
    assert numbers(segment.iter_frames(10)) == list(range(20, 50))
    assert numbers(segment.frames_between(0.5, 0.8)) == [25, 26, 27]
    assert numbers(segment.frames_between(2.8, 9)) == [48, 49]
    assert segment.frames_between(4, 5).shape == (0, 0, 0, 3)
    with pytest.raises(VideoDecodeError, match=r"a clip: the segment starts at 11 s .* 10\.00 s"):
        FrameFolder(folder, 10, start=11.0)


@pytest.mark.parametrize(
    ("name", "first", "step"), [("{}.png", 8, 1), ("f {:03}.png", 0, 5), ("2x{}.png", 95, 10)]
)
def test_images_are_ordered_by_number(tmp_path, name, first, step):
    write_images(tmp_path / "clip", 12, name, first, step)
    (tmp_path / "clip/notes.txt").write_text("not an image")
    (tmp_path / "clip/.hidden.png").write_text("neither")
    assert numbers(FrameFolder(tmp_path / "clip", 5).iter_frames(5)) == list(range(12))


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "1.png")
    Image.fromarray(np.full((4, 6, 4), 9, np.uint8)).save(tmp_path / "2.png")
    frames = FrameFolder(tmp_path, 2).frames_at(2, [0, 1])
    assert frames.shape == (2, 4, 6, 3)
    assert frames[0].max() == frames[0].min() == 7


def test_bad_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(VideoDecodeError, match="nowhere: the folder of images does not exist"):
        FrameFolder(tmp_path / "nowhere", 5)
    with pytest.raises(VideoDecodeError, match=r"no images in the folder \(\.bmp, "):
        FrameFolder(tmp_path, 5)
    with pytest.raises(ValueError, match="frame rate of .* must be positive, got 0"):
        FrameFolder(tmp_path, 0)
    gap = write_images(tmp_path / "gap", 10)
    (gap / "img_00004.png").unlink()
    with pytest.raises(VideoDecodeError, match=r"img_00003\.png is followed by img_00005\.png"):
        FrameFolder(gap, 5)
    (write_images(tmp_path / "twice", 3) / "img_00002.jpg").write_bytes(b"")
    with pytest.raises(VideoDecodeError, match=r"img_00001\.png is followed by|there twice"):
        FrameFolder(tmp_path / "twice", 5)
    (write_images(tmp_path / "name", 3) / "cover.png").write_bytes(b"")
    with pytest.raises(VideoDecodeError, match=r"the name of image cover\.png has no number"):
        FrameFolder(tmp_path / "name", 5)


def test_bad_images_are_named(tmp_path):
    cut = write_images(tmp_path / "cut", 8) / "img_00006.png"
    cut.write_bytes(cut.read_bytes()[:90])
    reader = FrameFolder(tmp_path / "cut", 4)
    assert len(reader.frames_at(1, [0])) == 1  # not looked at
    for read in (lambda: reader.frames_at(4, [5]), lambda: list(reader.iter_frames(1))):
        with pytest.raises(VideoDecodeError, match=r"img_00006\.png: not a whole image"):
            read()
    Image.fromarray(numbered_image(0, 80, 24)).save(cut)
    with pytest.raises(
        VideoDecodeError, match=r"cut at 1\.25 s: the frame size changes from 64x24 to 80"
    ):
        list(reader.iter_frames(4))


def test_lists_and_folders_of_folders(tmp_path):
    for name in ("run/clip.1", "run/clip.2", "jump/x"):
        write_images(tmp_path / "train" / name, 6)
    (tmp_path / "train.csv").write_text("train/run/clip.1 1\ntrain/run/clip.2 1\ntrain/jump/x 0\n")
    listed = PathLabelList(str(tmp_path), "train", frame_rate=2)
    found = VideoFolder(str(tmp_path), "train", labelled=True, frame_rate=2)
    assert [record.video_id for record in found.records] == ["jump/x", "run/clip.1", "run/clip.2"]
    assert [record.label for record in found.records] == [0, 1, 1]
    by_path = {record.path: record.label for record in listed.records}
    assert by_path == {record.path: record.label for record in found.records}
    assert missing_videos(found.records) == []
    (tmp_path / "train/jump/y.mp4").touch()
    (tmp_path / "train/jump/y.jpg").touch()  # a thumbnail makes no folder of images
    found_too = VideoFolder(str(tmp_path), "train", labelled=True, frame_rate=2)
    assert [record.video_id for record in found_too.records][:2] == ["jump/x", "jump/y"]
    slower = VideoFolder(str(tmp_path), "train", labelled=True, frame_rate=1)
    assert slower.fingerprint != found.fingerprint
    with pytest.raises(ValueError, match="frame_rate must be positive"):
        VideoFolder(str(tmp_path), frame_rate=-1)

    clips = FrameClips(found.records, spatial_views("center", 16), num_frames=4, fps=2)
    assert clips[0]["clips"].shape == (1, 3, 4, 16, 16)
    with pytest.raises(VideoDecodeError, match="it is a folder; give the data set's frame_rate"):
        open_record(VideoRecord(found.records[0].path, "x"))
