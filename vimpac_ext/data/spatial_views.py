"""Spatial views: named, deterministic combinations of resize, crop and flip.

The paper trains on 12 views of a video (2 sizes, 3 crops, with and without flip; 6 unflipped ones
on Something-Something) and tests on 3 crops (Section 4.2, Appendix C).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

CROPS = ("top", "center", "bottom")
NAMED_SETS = ("center", "three_crops", "resize2_crop3", "resize2_crop3_flip2")
_VIEW_NAME = re.compile(rf"(\d+)({'|'.join(CROPS)})(\d+)(_hflip)?")


@dataclass(frozen=True)
class SpatialView:
    """Shorter side to ``resize`` pixels, square crop of ``size``, flip.

    Attributes:
        resize: shorter side in pixels after bicubic, antialiased resizing; the longer side keeps
            the aspect, rounded down.
        crop: "top" (left or upper end), "center" or "bottom" (right or lower end).
        size: side of the crop in pixels.
        flip: whether to mirror left and right.
    """

    resize: int
    crop: str
    size: int
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"unknown crop {self.crop!r}, expected one of {', '.join(CROPS)}")
        if not 0 < self.size <= self.resize:
            raise ValueError(f"a crop of {self.size} px does not fit in {self.resize} px")

    @property
    def name(self) -> str:
        """For example "160top128" or "160top128_hflip"."""
        return f"{self.resize}{self.crop}{self.size}{'_hflip' if self.flip else ''}"

    @classmethod
    def parse(cls, name: str) -> "SpatialView":
        """Inverse of `name`.

        Raises:
            ValueError: if ``name`` is not the name of a view.
        """
        match = _VIEW_NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"unknown view {name!r}, expected a set ({', '.join(NAMED_SETS)}) or a name such "
                f"as 160top128 or 160top128_hflip"
            )
        resize, crop, size, flip = match.groups()
        return cls(int(resize), crop, int(size), flip is not None)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Applies the view.

        Args:
            frames: uint8 (N, H, W, 3).

        Returns:
            uint8 (N, size, size, 3).
        """
        return self.cut(_resize_shorter_side(frames, self.resize))

    def cut(self, resized: np.ndarray) -> np.ndarray:
        """Crops and flips frames whose shorter side is ``resize`` already."""
        position = CROPS.index(self.crop)  # in halves of the room that the crop leaves
        top = position * (resized.shape[1] - self.size) // 2
        left = position * (resized.shape[2] - self.size) // 2
        cropped = resized[:, top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(cropped[:, :, ::-1] if self.flip else cropped)


def cut_views(frames: np.ndarray, views: Sequence[SpatialView]) -> np.ndarray:
    """Applies several views of one size; frames are resized once for all views that share it.

    Args:
        frames: uint8 (N, H, W, 3).
        views: V of them.

    Returns:
        uint8 (N, V, size, size, 3).
    """
    resized = {resize: _resize_shorter_side(frames, resize) for resize in {v.resize for v in views}}
    return np.stack([view.cut(resized[view.resize]) for view in views], axis=1)


def spatial_views(names: str | Sequence[str], size: int) -> tuple[SpatialView, ...]:
    """Views by the name of a set or by their own names.

    Args:
        names: "center" (1 view), "three_crops" (3), "resize2_crop3" (6: shorter side ``size`` and
            1.25 ``size``), "resize2_crop3_flip2" (12: those and their mirror images), the name of
            a view, or a list of such names.
        size: side of every crop in pixels.

    Raises:
        ValueError: if a name is unknown, occurs twice or is of another size.
    """
    views: list[SpatialView] = []
    for name in [names] if isinstance(names, str) else names:
        views += _named_set(name, size) if name in NAMED_SETS else [SpatialView.parse(name)]
    for view in views:
        if view.size != size:
            raise ValueError(f"view {view.name} crops {view.size} px, expected {size} px")
    if not views or len(set(views)) < len(views):
        raise ValueError(f"expected one view or more, each of them once, got {names!r}")
    return tuple(views)


def _named_set(name: str, size: int) -> list[SpatialView]:
    crops = ("center",) if name == "center" else CROPS
    resizes = (size, int(1.25 * size)) if name.startswith("resize2") else (size,)
    flips = (False, True) if name.endswith("flip2") else (False,)
    return [SpatialView(r, crop, size, flip) for flip in flips for r in resizes for crop in crops]


def _resize_shorter_side(frames: np.ndarray, resize: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    shorter = min(height, width)
    if shorter == resize:
        return frames
    target = (height * resize // shorter, width * resize // shorter)
    # On uint8 in this layout torch does PIL's bicubic filter in integer arithmetic.
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, target, mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).numpy()
