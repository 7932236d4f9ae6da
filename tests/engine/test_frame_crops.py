"""Frames are cropped at any size: only tokens are a number of pixels wide."""

from pathlib import Path

import pytest
from test_pixel_runs import FRAMES, config, videos  # noqa: F401  (a fixture)

from vimpac_ext.config import ConfigError
from vimpac_ext.engine import prepare, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_run_on_frames_takes_crops_that_are_no_whole_tokens(videos, tmp_path):  # noqa: F811
    crops = {"TRAIN_CROP_SIZE": 34, "TEST_CROP_SIZE": 37}
    result = run(config(videos, tmp_path, FRAMES, DATA=crops))
    assert result["protocol"]["crop_size"] == 37
    assert result["protocol"]["decoded_videos"] == 4


def test_x3d_takes_182_pixels_and_tokens_do_not():
    words = ["DATA.TEST_CROP_SIZE", "182"]
    assert prepare(CONFIGS / "benchmark/k400_x3d.yaml", words).cfg.DATA.TEST_CROP_SIZE == 182
    with pytest.raises(ConfigError, match=r"TEST_CROP_SIZE .*a multiple of DATA.TOKEN_STRIDE"):
        prepare(CONFIGS / "vimpac/ucf101_small.yaml", words)
