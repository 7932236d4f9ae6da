"""Pictures of what models see and make; arrays in, images out."""

from vimpac_ext.visualization import html
from vimpac_ext.visualization.captions import captioner
from vimpac_ext.visualization.copy_paste import nearest_visible
from vimpac_ext.visualization.curves import (
    curve_names,
    draw_curves,
    line_styles,
    png_of,
    run_labels,
    save_plot,
)
from vimpac_ext.visualization.heat import overlay_heat
from vimpac_ext.visualization.reconstruction import (
    Reconstruction,
    draw_reconstructions,
    fill_hidden,
    grey_out,
    to_images,
)
from vimpac_ext.visualization.run_files import (
    Metrics,
    RunFileError,
    read_metrics,
    read_result,
    read_table,
)
from vimpac_ext.visualization.saving import save_animation, save_figure, save_image, save_video
from vimpac_ext.visualization.sheet import Block, Row, draw_sheet, draw_slides

__all__ = [
    "Block",
    "Metrics",
    "Reconstruction",
    "Row",
    "RunFileError",
    "captioner",
    "curve_names",
    "draw_curves",
    "draw_reconstructions",
    "draw_sheet",
    "draw_slides",
    "fill_hidden",
    "grey_out",
    "html",
    "line_styles",
    "nearest_visible",
    "overlay_heat",
    "png_of",
    "read_metrics",
    "read_result",
    "read_table",
    "run_labels",
    "save_animation",
    "save_figure",
    "save_image",
    "save_plot",
    "save_video",
    "to_images",
]
