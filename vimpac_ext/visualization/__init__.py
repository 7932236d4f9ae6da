"""Pictures of what models see and make; arrays in, images out."""

from vimpac_ext.visualization.reconstruction import (
    Reconstruction,
    draw_reconstructions,
    fill_hidden,
    grey_out,
    save_image,
    to_images,
)

__all__ = [
    "Reconstruction",
    "draw_reconstructions",
    "fill_hidden",
    "grey_out",
    "save_image",
    "to_images",
]
