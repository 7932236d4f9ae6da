"""A folder of images as a video."""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count, pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from vimpac_ext.data.frame_reader import FrameReader, fraction, stack_images
from vimpac_ext.data.video_file import decode_error

IMAGE_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class FrameFolder(FrameReader):
    """Images such as img_00001.jpg, img_00002.jpg, ..., shown at a constant rate.

    See `FrameReader` for which of them it gives. The images are ordered by the numbers in their
    names (2 before 10), which must rise in equal steps: a missing frame would shift all later ones.

    Args:
        path: the folder; its other files are not looked at.
        frame_rate: images a second.
        start: beginning of the segment in seconds, None = the first image.
        end: end of the segment in seconds, None = after the last image.

    Raises:
        ValueError: if the rate is not positive.
        VideoDecodeError: if there is no folder or no image in it, images are missing or there
            twice, or the segment begins after the last image.
    """

    def __init__(
        self,
        path: str | Path,
        frame_rate: float,
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        if not frame_rate > 0:
            raise ValueError(f"the frame rate of {path} must be positive, got {frame_rate}")
        super().__init__(path, start, end)
        self._rate = fraction(frame_rate)
        self._images = _find_images(self._path)
        self._set_length(len(self._images) / self._rate, end)

    def decode_all(self) -> int:
        """Decodes every image of the segment; returns their number."""
        return sum(
            1 for _ in self._read(range(self._rank_at(self._start), self._rank_at(self._end)))
        )

    def frames_between(self, start: float, end: float) -> np.ndarray:
        """All images that are shown at ``start`` <= time < ``end``."""
        first = self._start + max(fraction(start), Fraction(0))
        last = min(self._start + fraction(end), self._end)
        return stack_images(self._read(range(self._rank_at(first), self._rank_at(last))))

    def _shown_before(self, limits: Sequence[Fraction], skip: bool) -> Iterator[np.ndarray]:
        first = self._rank_at(self._start)
        if first == len(self._images):
            raise decode_error(self._path, "the segment begins after the last image")
        last = len(self._images) - 1
        ranks = [min(max(self._rank_at(limit) - 1, first), last) for limit in limits]
        return self._read(ranks) if skip else self._read_all(ranks)

    def _rank_at(self, seconds: Fraction) -> int:
        """First image that is not shown before ``seconds``; their number if there is none."""
        return min(-int(-seconds * self._rate // 1), len(self._images))

    def _read(self, ranks: Sequence[int]) -> Iterator[np.ndarray]:
        return self._check_shapes(
            (float(rank / self._rate), _read_image(self._images[rank])) for rank in ranks
        )

    def _read_all(self, ranks: Sequence[int]) -> Iterator[np.ndarray]:
        """As `_read`, but all images from the first to the last of the rising ranks are decoded."""
        images = zip(count(ranks[0]), self._read(range(ranks[0], ranks[-1] + 1)), strict=False)
        reached, image = next(images)
        for rank in ranks:
            while reached < rank:
                reached, image = next(images)
            yield image


def _find_images(folder: Path) -> list[Path]:
    """The images in the order of their numbers.

    Raises:
        VideoDecodeError: if there are none, or their numbers do not rise in equal steps.
    """
    if not folder.is_dir():
        raise decode_error(folder, "the folder of images does not exist")
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    images = [path for path in visible if path.suffix.lower() in IMAGE_EXTENSIONS]
    if not images:
        kinds = ", ".join(sorted(IMAGE_EXTENSIONS))
        raise decode_error(folder, f"there are no images in the folder ({kinds})")
    numbers = {path: _number(folder, path) for path in images}
    images.sort(key=numbers.__getitem__)
    steps = [numbers[after] - numbers[before] for before, after in pairwise(images)]
    for rank, step in enumerate(steps):
        if step == 0 or step != steps[0]:
            raise decode_error(
                folder,
                f"images are missing or there twice: {images[rank].name} is followed by "
                f"{images[rank + 1].name}",
            )
    return images


def _number(folder: Path, image: Path) -> int:
    digits = re.findall(r"\d+", image.stem)
    if not digits:
        raise decode_error(folder, f"the name of image {image.name} has no number")
    return int(digits[-1])


def _read_image(path: Path) -> np.ndarray:
    """uint8 (H, W, 3) RGB.

    Raises:
        VideoDecodeError: naming the image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise decode_error(path, f"not a whole image ({error})") from error
