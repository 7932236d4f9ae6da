from fractions import Fraction

import pytest
import torch
from made_videos import MadeVideo, burnt_number, numbered_image
from PIL import Image

from vimpac_ext.data.decode import VideoDecodeError


@pytest.fixture(scope="module")
def adapter():
    from vimpac_ext.data import pytorchvideo_video

    return pytorchvideo_video


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return MadeVideo("b_frames.mp4", num_b_frames=3).write(tmp_path_factory.mktemp("videos"))


def numbers(clip):
    return [burnt_number(frame.numpy()) for frame in clip.permute(1, 2, 3, 0)]


def test_clips_are_those_of_encoded_video(adapter, mp4):
    from pytorchvideo.data.encoded_video import EncodedVideo

    theirs = EncodedVideo.from_path(str(mp4), decode_audio=False)
    ours = adapter.PyAVVideo(mp4)
    assert ours.name == theirs.name
    assert ours.duration == pytest.approx(float(theirs.duration))
    for start, end in ((0, 1), (0.4, 0.6), (1.23, 3.21), (Fraction(7, 3), 4), (3.9, 100)):
        expected, found = theirs.get_clip(start, end), ours.get_clip(start, end)
        assert found["video"].dtype == expected["video"].dtype
        assert torch.equal(found["video"], expected["video"])
        assert found["audio"] is None
    assert ours.get_clip(5, 6) == theirs.get_clip(5, 6) == {"video": None, "audio": None}
    ours.close()


def test_avi_with_b_frames_is_in_order(adapter, tmp_path):
    made = MadeVideo("b_frames.avi", num_b_frames=3)
    clip = adapter.PyAVVideo(made.write(tmp_path)).get_clip(1, 2)["video"]
    assert numbers(clip) == list(range(25, 50))


def test_works_with_pytorchvideos_data_set(adapter, mp4):
    from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

    def samples(handler):
        sampler = make_clip_sampler("uniform", 1.0)
        paths = [(str(mp4), {"label": 7})]
        dataset = LabeledVideoDataset(paths, sampler, torch.utils.data.SequentialSampler)
        if handler is not None:
            dataset.video_path_handler = handler
        return list(dataset)

    found, expected = samples(adapter.PyAVPathHandler()), samples(None)
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["label"] == 7
        assert ours["clip_index"] == theirs["clip_index"]
        assert torch.equal(ours["video"], theirs["video"])


def test_handler_reports_bad_files_and_opens_folders_of_images(adapter, tmp_path):
    handler = adapter.PyAVPathHandler()
    with pytest.raises(VideoDecodeError, match="does not exist"):
        handler.video_from_path(str(tmp_path / "missing.mp4"))
    for number in range(12):
        Image.fromarray(numbered_image(number, 64, 24)).save(tmp_path / f"img_{number:05}.png")
    video = handler.video_from_path(str(tmp_path), fps=4)
    assert video.duration == 3
    assert video.name == tmp_path.name
    assert numbers(video.get_clip(1, 2)["video"]) == [4, 5, 6, 7]
