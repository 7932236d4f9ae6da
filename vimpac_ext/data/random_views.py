"""Random crops, flips and RandAugment for backbones that read pixels (by torchvision)."""

from collections.abc import Sequence

import numpy as np
import torch


class RandomView:
    """A random view of a clip, the same for all of its frames.

    A box of random area and aspect is resized to a square, then flipped, then changed by
    RandAugment (Cubuk et al. 2019, arXiv 1909.13719).

    Args:
        size: side of the result in pixels.
        scale: smallest and largest area of the box, as a share of the frame.
        aspect: smallest and largest width / height of the box.
        flip: mirror left and right with probability 1/2. Off where left and right are classes, as
            in Something-Something.
        num_operations: RandAugment's operations for each clip; 0 = none.
        magnitude: of these, 0 to 30.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        size: int,
        scale: Sequence[float] = (0.08, 1.0),
        aspect: Sequence[float] = (0.75, 4 / 3),
        flip: bool = True,
        num_operations: int = 0,
        magnitude: int = 9,
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two rising shares up to 1, found {list(scale)}")
        if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect must be two rising positive numbers, found {list(aspect)}")
        if num_operations < 0 or not 0 <= magnitude <= 30:
            raise ValueError(
                f"RandAugment takes 0 or more operations of magnitude 0 to 30, found "
                f"{num_operations} of {magnitude}"
            )
        # Imported here: only pixel backbones need torchvision.
        from vimpac_ext import compat

        compat.install()
        from torchvision.transforms import v2

        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(size, tuple(scale), tuple(aspect), antialias=True)
        ]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if num_operations:
            steps.append(v2.RandAugment(num_operations, magnitude))
        self.size = size
        self._transform = v2.Compose(steps)

    def __call__(self, frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draws a view.

        Args:
            frames: uint8 (N, H, W, 3).
            generator: decides the view; torch's own random numbers are left as they were.

        Returns:
            uint8 (N, size, size, 3).
        """
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which would seed GPUs, too: dropout draws from theirs.
            torch.default_generator.manual_seed(int(generator.integers(2**63)))
            view: torch.Tensor = self._transform(pixels)
        return view.permute(0, 2, 3, 1).numpy()
