"""Sheets, slides and animations, read back from their files."""

from dataclasses import replace

import av
import numpy as np
import PIL.Image
import pytest
import torch

from vimpac_ext.visualization import Block, Row, draw_sheet, draw_slides, overlay_heat, save_figure
from vimpac_ext.visualization.sheet import enlarge

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


def block(num_images=3, num_columns=3, labels=("first", "second"), captions=()):
    """Rows whose images have one colour each, the second one darker."""
    images = np.zeros((num_images, 16, 16, 3), np.uint8)
    images[:] = np.array(COLOURS[:num_images], np.uint8)[:, None, None]
    rows = tuple(Row(label, images // (i + 1), captions) for i, label in enumerate(labels))
    return Block("a clip", num_columns, rows)


def share_of(picture, colour, tolerance=0):
    return (np.abs(picture.astype(int) - colour).max(-1) <= tolerance).mean()


def test_a_sheet_has_every_image_once_and_its_captions_below():
    plain = draw_sheet([block()])
    captioned = draw_sheet([block(captions=("10%", "20%", "70%"))])
    assert captioned.shape[0] == plain.shape[0] + 2 * 20
    for colour in COLOURS:
        for part in (1, 2):
            pixels = (plain == np.array(colour) // part).all(-1).sum()
            assert pixels == (16 * round(840 / 48)) ** 2
    # Each caption is dark text between the rows, in the middle of its column.
    line = captioned[34 + 18 * 16 + 4 :][:20]
    starts = [160 + column * (18 * 16 + 4) for column in range(3)]
    for start in starts:
        dark = (line[:, start : start + 288] < 80).all(-1).any(0)
        assert dark[100:188].any()
        assert not dark[:100].any()


def test_long_labels_widen_the_column_of_labels():
    wide = draw_sheet([block(labels=("a label of many more letters than usual", "b"))])
    assert wide.shape[1] > draw_sheet([block()]).shape[1] + 150
    image = (wide == COLOURS[0]).all(-1)
    label = (wide < 60).all(-1)
    assert label.any(0).nonzero()[0].max() < image.any(0).nonzero()[0].min()


@pytest.mark.parametrize("draw", [draw_sheet, lambda blocks: draw_slides(blocks)[0]])
@pytest.mark.parametrize("letter", ["W", "i", "\u5f71"])
def test_titles_are_cut_at_their_ends_and_at_no_edge(draw, letter):
    """Of letters of any width; the beginning, by which videos are told apart, stays."""
    titled = [replace(block(), title=f"Beginning {n} {letter * 300}") for n in (1, 2)]
    first, second = (draw([one]) for one in titled)
    short = draw([replace(block(), title="Beginning 1 ")])
    assert first.shape == second.shape == short.shape
    text = (first[:34] < 100).all(-1).any(0)
    assert not text[-10:].any()
    assert text[-60:].any()  # nearly all of the width is used
    np.testing.assert_array_equal(first[:34, :100], short[:34, :100])
    assert (first != second).any()


def test_wide_letters_widen_the_columns_of_labels_and_captions():
    labels, captions = ("W" * 30, "b"), ("W" * 30,) * 3
    for picture in (draw_sheet([block(labels=labels)]), draw_slides([block(labels=labels)])[0]):
        letters = (picture[34:] < 60).all(-1)
        assert not letters[:, -8:].any()
    sheet = draw_sheet([block(labels=labels)])
    assert dark_columns(sheet[34 : 34 + 288]).max() < (sheet == COLOURS[0]).all(-1).any(0).argmax()
    # Captions do not run into each other: between those of columns there is white.
    sheet = draw_sheet([block(captions=captions)])
    columns = dark_columns(sheet[34 + 288 + 4 :][:20])
    assert (np.diff(columns) >= 4).sum() >= 2
    assert columns.max() < sheet.shape[1] - 8


def dark_columns(picture):
    """Columns of pixels with letters."""
    return (picture < 60).all(-1).any(0).nonzero()[0]


def test_slides_show_one_moment_each_of_all_rows():
    slides = draw_slides([block(num_images=2)])
    assert len({slide.shape for slide in slides}) == 1
    assert len(slides) == 3
    for moment, slide in enumerate(slides):
        for index, colour in enumerate(COLOURS):
            shown = share_of(slide, colour) > 0 and share_of(slide, np.array(colour) // 2) > 0
            assert shown == (index == moment and moment < 2)


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".png"])
def test_files_hold_what_was_drawn(tmp_path, suffix):
    path = tmp_path / "new" / f"figure{suffix}"
    save_figure(path, [block()], fps=2.0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if suffix == ".mp4":
        with av.open(path) as container:
            assert float(container.streams.video[0].average_rate) == 2.0
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    else:
        with PIL.Image.open(path) as file:
            count = getattr(file, "n_frames", 1)
            frames = []
            for index in range(count):
                file.seek(index)
                frames.append(np.array(file.convert("RGB")))
            assert suffix == ".png" or (file.info["duration"], file.info["loop"]) == (500, 0)
    if suffix == ".png":
        np.testing.assert_array_equal(frames[0], draw_sheet([block()]))
        return
    for frame, slide, colour in zip(frames, draw_slides([block()]), COLOURS, strict=True):
        assert share_of(frame, colour, 12) == pytest.approx(share_of(slide, colour), rel=0.05)


def test_other_suffixes_and_rates_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jpg: .*must end in \.png or \.gif or \.mp4"):
        save_figure(tmp_path / "a.jpg", [block()], 2.0)
    with pytest.raises(ValueError, match="positive rate, got 0 images"):
        save_figure(tmp_path / "a.gif", [block()], 0)
    assert not list(tmp_path.iterdir())


def test_heat_is_brighter_where_it_is_larger_and_the_frame_shines_through():
    images = np.zeros((1, 4, 4, 3), np.uint8)
    images[0, :, 1] = 255
    heat = torch.tensor([[[0.0, 0.5], [1.0, 0.2]]])
    shown = overlay_heat(images, heat).astype(float).mean(-1)[0]
    dark = shown[::2, ::2]  # of the black column of each cell
    assert dark[0, 0] < dark[1, 1] < dark[0, 1] < dark[1, 0]
    assert (shown[:, 1] > shown[:, 0] + 50).all()  # the white column
    flat = overlay_heat(images, torch.zeros(1, 2, 2))
    np.testing.assert_array_equal(flat[0, :, 0], flat[0, :, 2])
    # A given maximum: half of it is the middle colour, whatever the largest value is.
    np.testing.assert_array_equal(
        overlay_heat(images, heat / 2, highest=0.5), overlay_heat(images, heat)
    )
    assert enlarge(heat.numpy(), 2, 3).shape == (1, 4, 6)
