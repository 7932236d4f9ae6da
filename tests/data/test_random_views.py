"""Random views of pixel clips."""

import numpy as np
import pytest
import torch

from vimpac_ext.data.random_views import RandomView


def ramp(num_frames=3, height=40, width=60):
    """Frames whose red is the column and whose green is the row; all frames are equal."""
    rows, columns = np.mgrid[:height, :width]
    frame = np.stack([4 * columns, 6 * rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return np.repeat(frame[None], num_frames, axis=0)


def view(seed, **options):
    return RandomView(16, **options)(ramp(), np.random.default_rng(seed)).astype(int)


def test_all_frames_of_a_clip_are_cut_alike():
    for seed in range(10):
        clip = view(seed, num_operations=2)
        assert clip.shape == (3, 16, 16, 3)
        assert (clip == clip[:1]).all()


def test_a_crop_of_the_whole_frame_is_the_frame():
    clip = view(0, scale=(1.0, 1.0), aspect=(1.5, 1.5), flip=False)[0]
    expected = (np.arange(16) + 0.5) * 60 / 16 - 0.5  # columns at the middle of the pixels
    assert np.abs(clip[8, 2:-2, 0] - 4 * expected[2:-2]).max() <= 2


def test_flips_half_of_the_clips_and_none_where_it_is_off():
    def flipped(seed, flip):
        clip = view(seed, flip=flip)[0]
        return clip[8, 0, 0] > clip[8, -1, 0]

    share = np.mean([flipped(seed, True) for seed in range(200)])
    assert 0.38 < share < 0.62
    assert not any(flipped(seed, False) for seed in range(50))


def test_areas_are_those_asked_for():
    shares = []
    for seed in range(100):
        clip = view(seed, scale=(0.25, 0.5), aspect=(1.0, 1.0), flip=False)[0]
        columns = (clip[8, -1, 0] - clip[8, 0, 0]) / 4 * 16 / 15  # covered, in source pixels
        rows = (clip[-1, 8, 1] - clip[0, 8, 1]) / 6 * 16 / 15
        shares.append(columns * rows / (40 * 60))
    assert min(shares) > 0.2
    assert max(shares) < 0.56
    assert max(shares) - min(shares) > 0.15


def test_depends_on_the_generator_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = view(7, num_operations=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert (view(7, num_operations=2) == first).all()
    assert any((view(seed, num_operations=2) != first).any() for seed in range(8, 12))


def test_random_numbers_of_gpus_are_left_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    view(7, num_operations=2)
    assert seeded == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.5, 1.5)}, "rising shares up to 1"),
        ({"aspect": (2.0, 1.0)}, "rising positive numbers"),
        ({"num_operations": 2, "magnitude": 31}, "magnitude 0 to 30"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RandomView(16, **options)
