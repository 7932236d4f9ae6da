"""Maps over tokens, such as attention, laid over the frames that they belong to."""

import numpy as np
from torch import Tensor

from vimpac_ext.visualization.sheet import Images, enlarge

_OPACITY = 0.6
_COLOURS = "inferno"  # rises evenly in brightness, so it survives a grey print


def overlay_heat(images: Images, heat: Tensor, highest: float | None = None) -> Images:
    """Colours frames from black (0) to yellow (``highest``); the frames shine through in grey.

    Args:
        images: uint8 (N, H, W, 3).
        heat: float (N, h, w), 0 or above; h divides H, and w divides W.
        highest: value of the brightest colour; None = the largest one of ``heat``.

    Returns:
        uint8 (N, H, W, 3).
    """
    from matplotlib import colormaps

    values = heat.float().cpu().numpy()
    top = float(values.max(initial=0.0)) if highest is None else highest
    shares = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    colours = colormaps[_COLOURS](shares)[..., :3]  # (N, h, w, 3) in [0, 1]
    height, width = (
        size // cells for size, cells in zip(images.shape[1:3], heat.shape[1:], strict=True)
    )
    grey = images.mean(axis=-1, keepdims=True) / 255
    blended = _OPACITY * enlarge(colours, height, width).astype(float) + (1 - _OPACITY) * grey
    return (255 * blended).round().astype(np.uint8)
