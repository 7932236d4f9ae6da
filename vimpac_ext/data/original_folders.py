"""What the names of the authors' token folders say, and which folders a user means.

Their extraction writes one LMDB per spatial view::

    dalle_ucf101_train_test_fps16_hflip0_160top128
          data set, split      rate   |     shorter side, crop, size of the crop
                                    mirrored
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vimpac_ext.data.spatial_views import CROPS, SpatialView

EXAMPLE = "dalle_ucf101_train_test_fps16_hflip0_128center128"

_NAME = re.compile(rf"dalle_(.+)_fps(\d+(?:\.\d+)?)_hflip([01])_(\d+(?:{'|'.join(CROPS)})\d+)")


class TokenFolder(NamedTuple):
    """One of the authors' token folders.

    Attributes:
        path: of the folder.
        dataset: data set and split, e.g. "ucf101_train_test".
        fps: frames per second.
        view: spatial view.
    """

    path: Path
    dataset: str
    fps: float
    view: SpatialView

    @classmethod
    def parse(cls, path: Path) -> "TokenFolder | None":
        """Read the name of a folder; None if it is not of the authors' form."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        dataset, fps, flip, view = match.groups()
        name = f"{view}_hflip" if flip == "1" else view
        return cls(path, dataset, float(fps), SpatialView.parse(name))


TokenFolderSource = str | Path | Sequence[str | Path]


def find_token_folders(source: TokenFolderSource) -> list[TokenFolder]:
    """Find the authors' token folders that a user means.

    Args:
        source: such a folder; a folder that has some; a pattern (``*``, ``?``, ``[..]``) for
            them; or a list of these, whose order is kept.

    Returns:
        The folders, those of one pattern or parent in the order of `spatial_views`.

    Raises:
        ValueError: there are none, or none for an item of the list.
    """
    found = []
    for item in [source] if isinstance(source, (str, Path)) else source:
        folders = list_token_folders(item)
        if not folders:
            raise ValueError(
                f"no tokens in {item}: it is no token store, and it is, has or matches no token "
                f"folder of the authors' with a name such as {EXAMPLE}"
            )
        found += folders
    return found


def list_token_folders(source: str | Path) -> list[TokenFolder]:
    """As `find_token_folders` for one item, but empty if there are none."""
    path = Path(source).expanduser().absolute()
    candidates: Iterable[Path] = [path]
    if not path.is_dir():
        candidates = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    elif TokenFolder.parse(path) is None:
        candidates = path.iterdir()
    parsed = [TokenFolder.parse(candidate) for candidate in candidates if candidate.is_dir()]
    return sorted((folder for folder in parsed if folder is not None), key=_order)


def _order(folder: TokenFolder) -> tuple[str, float, bool, int, int]:
    view = folder.view
    return folder.dataset, folder.fps, view.flip, view.resize, CROPS.index(view.crop)


def require_one_dataset(
    folders: Sequence[TokenFolder], source: TokenFolderSource
) -> list[TokenFolder]:
    """Refuse folders that are not the views of one data set at one rate.

    Raises:
        ValueError: there are two data sets, rates or crop sizes, or a view is there twice.
    """
    kinds = {f"{f.dataset} at {f.fps:g} fps, {f.view.size} px" for f in folders}
    if len(kinds) > 1:
        raise ValueError(
            f"{source} stands for tokens of different kinds: {'; '.join(sorted(kinds))}. "
            f"Name those of one kind, for example with a pattern: {_pattern(folders[0])}"
        )
    views = [folder.view.name for folder in folders]
    doubled = sorted({view for view in views if views.count(view) > 1})
    if doubled:
        raise ValueError(f"{source} has more than one folder for the view {', '.join(doubled)}")
    return list(folders)


def require_view(folders: Sequence[TokenFolder], view: str) -> TokenFolder:
    """The folder of a view.

    Raises:
        ValueError: there is none; lists the views that there are.
    """
    for folder in folders:
        if folder.view.name == view:
            return folder
    present = ", ".join(folder.view.name for folder in folders)
    raise ValueError(
        f"no folder with the view {view} of {folders[0].dataset} in {folders[0].path.parent}; "
        f"there is {present}"
    )


def _pattern(folder: TokenFolder) -> str:
    name = f"dalle_{folder.dataset}_fps{folder.fps:g}_hflip*{folder.view.size}"
    return str(folder.path.parent / name)
