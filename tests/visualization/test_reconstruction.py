"""Images of masked and completed clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from vimpac_ext.visualization import (
    Block,
    Reconstruction,
    Row,
    draw_reconstructions,
    draw_sheet,
    fill_hidden,
    grey_out,
    save_image,
    to_images,
)

RNG = np.random.default_rng(0)


def clip(num_images=3, num_frames=3, size=16, title="a.mp4"):
    """Every row of one colour, so that it can be found in the picture."""
    rows = [np.full((num_images, size, size, 3), 40 * (i + 1), np.uint8) for i in range(4)]
    return Reconstruction(title, num_frames, *rows, mask_ratio=0.42, accuracy=0.5)


def test_frames_become_the_pixels_that_they_came_from():
    pixels = RNG.integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    frames = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_array_equal(to_images(frames), pixels)
    assert to_images(torch.tensor([-0.5, 1.5]).view(1, 1, 1, 2)).ravel().tolist() == [0, 255]


def test_hidden_squares_are_grey_and_all_else_is_untouched():
    images = RNG.integers(200, 256, (2, 8, 12, 3)).astype(np.uint8)
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 0, 0] = True
    masked = grey_out(images, mask)
    hidden = np.zeros((2, 8, 12), bool)
    hidden[0, 4:, 8:] = hidden[1, :4, :4] = True
    assert (masked[hidden] == 128).all()
    np.testing.assert_array_equal(masked[~hidden], images[~hidden])


def test_only_hidden_tokens_are_replaced_in_order():
    tokens = torch.randint(100, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    mask = tokens % 3 == 0
    before = tokens.clone()
    predicted = 1000 + torch.arange(int(mask.sum()))
    filled = fill_hidden(tokens, mask, predicted)
    torch.testing.assert_close(filled[~mask], before[~mask], rtol=0, atol=0)
    torch.testing.assert_close(filled[mask], predicted, rtol=0, atol=0)
    torch.testing.assert_close(tokens, before, rtol=0, atol=0)


def frame_columns(picture, colour):
    """Number of frames of a grey level side by side, from a line through their middle."""
    rows = np.flatnonzero((picture == colour).all(-1).sum(1) > 16)
    line = (picture[rows[len(rows) // 2]] == colour).all(-1).astype(int)
    starts = np.flatnonzero(np.diff(line, prepend=0) == 1)
    lengths = np.flatnonzero(np.diff(line, append=0) == -1) - starts + 1
    return lengths[lengths > 16].tolist()


def test_the_picture_has_a_row_a_version_and_a_column_a_frame():
    picture = draw_reconstructions([clip()])
    assert picture.dtype == np.uint8
    assert 900 < picture.shape[1] < 1300
    for colour in (40, 80, 120, 160):
        widths = frame_columns(picture, colour)
        assert widths == [288, 288, 288]  # 18 times 16 pixels, without smoothing
        rows = np.flatnonzero((picture == colour).all(-1).sum(1) > 16)
        assert len(rows) == 288
        # Left of each row there is text.
        label = picture[rows[0] : rows[-1], :150]
        assert (label < 60).all(-1).sum() > 100


def test_frames_that_a_short_video_lacks_are_white():
    picture = draw_reconstructions([clip(), clip(num_images=2)])
    lower = picture[len(picture) // 2 :]
    for colour in (40, 80, 120, 160):
        assert len(frame_columns(lower, colour)) == 2
    assert (lower[:, -250:] == 255).all()


@pytest.mark.parametrize(
    ("num_frames", "size", "width"),
    # 5 * 256 is not twice 840; 10 * 256 is 3 times, but 3 is no divisor; 16 * 256 is 4 times.
    [(5, 64, 192), (5, 128, 128), (1, 16, 832), (5, 256, 256), (10, 256, 128), (16, 256, 64)],
)
def test_small_frames_are_enlarged_and_large_ones_shrunk(num_frames, size, width):
    picture = draw_reconstructions([clip(num_frames, num_frames, size)])
    assert frame_columns(picture, 40) == [width] * num_frames


def test_shrunk_images_are_means_of_squares():
    images = RNG.integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    picture = draw_sheet([Block("a", 1, (Row("", images),))], frames_width=2)
    mean = images.reshape(2, 4, 2, 4, 3).astype(float).mean((1, 3))
    np.testing.assert_array_equal(picture[34:36, 10:12], mean.round())


@pytest.mark.parametrize("title", ["$x$_{3}.mp4", "видео/影片.mp4", "cut\udcff.mp4", "a" * 300])
def test_any_file_name_can_be_drawn(title):
    plain = draw_reconstructions([clip(title="")])
    named = draw_reconstructions([replace(clip(), title=title)])
    assert named.shape == plain.shape
    np.testing.assert_array_equal(named[34:], plain[34:])
    assert (named[:34] != plain[:34]).any()
    assert (named[:, -10:] == 255).all()


def test_a_saved_image_is_read_back_unchanged(tmp_path):
    image = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    path = tmp_path / "new folder" / "picture.png"
    save_image(path, image)
    read = (imread(path)[..., :3] * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(read, image)
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
