"""Lines of text on the frames of a video."""

import numpy as np

from vimpac_ext.visualization import captioner

GREY = np.full((360, 640, 3), 128, np.uint8)
LINE = 360 // 18  # pixels


def test_bars_are_as_long_as_their_shares_and_the_rest_is_untouched():
    before = GREY.copy()
    drawn = captioner([("a", 1.0), ("b", 0.5), ("", 0.0), ("no room " * 40, 0.001)])(GREY)
    assert np.array_equal(GREY, before)
    assert np.array_equal(drawn[4 * LINE :], GREY[4 * LINE :])
    blueness = drawn[:, :, 2].astype(int) - drawn[:, :, 0]
    for number, length in enumerate((640, 320, 0, 1)):
        row = number * LINE  # above the letters
        assert (blueness[row] > 50).sum() == length
        assert (drawn[row, length:] < 100).all()


def test_a_text_that_is_too_long_is_cut():
    short = captioner([("w" * 10, 0.0)])(GREY)
    long = captioner([("w" * 400, 0.0)])(GREY)
    assert (short[:LINE, 400:] < 100).all()
    assert (long[:LINE, 560:600] > 200).any()
    assert (long[:LINE, 632:] < 100).all()


def test_small_frames_are_enlarged_until_text_has_room():
    small = np.zeros((32, 48, 3), np.uint8)
    small[-1, -1] = (10, 200, 30)
    drawn = captioner([("a", 0.3)])(small)
    assert drawn.shape == (32 * 8, 48 * 8, 3)
    assert (drawn[-8:, -8:] == (10, 200, 30)).all()


def test_letters_of_every_kind_and_bytes_that_are_none():
    captioner([("$x^2$ \u5c04\u7bad gr\u00fcn \udcff", 0.5)])(GREY)
