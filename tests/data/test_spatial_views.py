import numpy as np
import pytest
from PIL import Image

from vimpac_ext.data.spatial_views import SpatialView, spatial_views


def pictures(height, width, num=2):
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1)
    noise = np.random.default_rng(0).integers(0, 256, (num, height, width, 3))
    return ((smooth + noise) // 2).astype(np.uint8)


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (171, 304), (128, 128), (96, 131)])
@pytest.mark.parametrize("resize", [128, 160])
def test_resize_is_pils_bicubic(size, resize):
    frames = pictures(*size)
    height, width = size
    shorter = min(size)
    target = (width * resize // shorter, height * resize // shorter)
    for crop, factor in {"top": 0, "center": 1, "bottom": 2}.items():
        views = SpatialView(resize, crop, 128)(frames)
        for frame, view in zip(frames, views, strict=True):
            resized = np.asarray(Image.fromarray(frame).resize(target, Image.Resampling.BICUBIC))
            top = int(factor * (target[1] - 128) / 2)
            left = int(factor * (target[0] - 128) / 2)
            expected = resized[top : top + 128, left : left + 128]
            assert np.abs(view.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("crop", "top", "left"), [("top", 0, 0), ("center", 5, 12), ("bottom", 11, 25)]
)
def test_crop_is_exact(crop, top, left):
    frames = pictures(27, 41)
    view = SpatialView(27, crop, 16)(frames)
    np.testing.assert_array_equal(view, frames[:, top : top + 16, left : left + 16])
    assert view.flags.c_contiguous
    flipped = SpatialView(27, crop, 16, flip=True)(frames)
    np.testing.assert_array_equal(flipped, view[:, :, ::-1])


@pytest.mark.parametrize("name", ["160top128", "128center128", "320bottom256_hflip"])
def test_name_and_parse_are_inverse(name):
    assert SpatialView.parse(name).name == name


def test_sets():
    names = {
        "center": ["128center128"],
        "three_crops": ["128top128", "128center128", "128bottom128"],
    }
    names["resize2_crop3"] = names["three_crops"] + [f"160{c}128" for c in ("top", "center")]
    names["resize2_crop3"] += ["160bottom128"]
    names["resize2_crop3_flip2"] = names["resize2_crop3"] + [
        f"{name}_hflip" for name in names["resize2_crop3"]
    ]
    for set_name, expected in names.items():
        assert [view.name for view in spatial_views(set_name, 128)] == expected
    assert spatial_views("160top128", 128) == (SpatialView(160, "top", 128),)
    assert spatial_views(["center", "160top128"], 128)[1].resize == 160
    assert spatial_views("resize2_crop3", 256)[-1].resize == 320


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("middle", "unknown view 'middle', expected a set .*three_crops"),
        ("128centre128", "unknown view"),
        ("100top128", "does not fit"),
        ("160top112", "crops 112 px, expected 128 px"),
        ([], "one view or more"),
        (["center", "128center128"], "each of them once"),
    ],
)
def test_bad_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        spatial_views(names, 128)


def test_bad_crop_is_refused():
    with pytest.raises(ValueError, match="unknown crop 'left', expected one of top, center"):
        SpatialView(128, "left", 128)
