"""The figures under the names that `tools/visualize.py` gives them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vimpac_ext.config import LoadedConfig
from vimpac_ext.engine.figures.attention import draw_attention
from vimpac_ext.engine.figures.copies import draw_copies
from vimpac_ext.engine.figures.frames import draw_frames
from vimpac_ext.engine.figures.masks import draw_masks
from vimpac_ext.engine.figures.runs import draw_run_confusion, draw_run_curves
from vimpac_ext.engine.visualize import visualize

_OF_CLIPS: dict[str, Callable[..., Any]] = {
    "reconstruction": visualize,
    "masks": draw_masks,
    "frames": draw_frames,
    "copy-paste": draw_copies,
    "attention": draw_attention,
}


def draw_figure(
    name: str,
    picture: Path,
    loaded: LoadedConfig | None,
    runs: Sequence[Path] = (),
    **options: Any,
) -> None:
    """Draws one figure.

    Args:
        name: of the figure, such as "masks".
        picture: file to write.
        loaded: configuration, where the figure needs one.
        runs: OUTPUT_DIRs, for "curves" and "confusion".
        options: further arguments of the function that draws it.

    Raises:
        OSError: as that function.
        ValueError: as that function.
    """
    if name == "curves":
        draw_run_curves(runs, picture, **options)
    elif name == "confusion":
        draw_run_confusion(runs[0], picture, **options)
    else:
        _OF_CLIPS[name](loaded, picture, **options)
