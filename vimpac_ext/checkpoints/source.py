"""Finds and safely reads the files of a checkpoint that the authors' code wrote.

Their code writes a folder (``snap/pretrain/small/last``) of ``classifier.pt`` (weights),
``args.pickle`` (all options), ``optimizer.pt`` and ``scheduler.pt``; the released checkpoints are
zips of such folders. Nothing is unpacked to disk, and nothing that a file asks for is executed.
"""

import ast
import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from torch import Tensor

from vimpac_ext.untrusted import DAMAGE, first_line, is_plain, load_namespace, load_weights

WEIGHTS = "classifier.pt"
ARGUMENTS = "args.pickle"
ARGUMENTS_TEXT = "args.txt"  # the same, printed; read where the pickle is missing
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"

_MAX_ARGUMENTS_BYTES = 1 << 20  # theirs take 1 kB


class OriginalCheckpointError(ValueError):
    """Files that are not a checkpoint of the authors' code; names the file and the reason."""


@dataclass(frozen=True)
class OriginalFiles:
    """What a checkpoint of the authors' code holds.

    Attributes:
        where: the file of the weights, for messages.
        sha256: of that file, as `sha256sum` prints it.
        state: its state dict, without ``module.`` in front of the keys.
        arguments: the options of the run that wrote it; empty if they are not there.
        optimizer: content of ``optimizer.pt``; None if it is not there or was not asked for.
        scheduler: content of ``scheduler.pt``; None likewise.
    """

    where: str
    sha256: str
    state: dict[str, Tensor]
    arguments: dict[str, Any]
    optimizer: dict[str, Any] | None
    scheduler: dict[str, Any] | None


def read_original(path: str | Path, with_optimizer: bool = False) -> OriginalFiles:
    """Reads a checkpoint of the authors' code.

    Args:
        path: a zip or a folder with one ``classifier.pt`` in it (of several, the one in a folder
            ``last`` is taken), or a ``classifier.pt`` itself under any name. Options, optimizer
            and schedule are looked for beside a file that is called so.
        with_optimizer: also read the optimizer and the schedule.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        OriginalCheckpointError: if it is not such a checkpoint, or damaged; nothing that a file
            asks for is executed.
    """
    files = _open(Path(path))
    where = files.describe(files.weights)
    with files.open(files.weights) as file:
        sha256 = sha256_of_stream(file)
        file.seek(0)
        state = _checked_state(where, _load(where, load_weights, file))
    return OriginalFiles(
        where=where,
        sha256=sha256,
        state=state,
        arguments=_read_arguments(files),
        optimizer=_read_dict(files, OPTIMIZER) if with_optimizer else None,
        scheduler=_read_dict(files, SCHEDULER) if with_optimizer else None,
    )


def sha256_of_stream(file: IO[bytes]) -> str:
    """What `sha256sum` prints of the rest of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Files:
    """A folder or a zip, seen from the place of the weights in it."""

    root: Path
    weights: str
    names: frozenset[str]
    open: Callable[[str], IO[bytes]]

    def describe(self, name: str) -> str:
        return str(self.root / name) if name else str(self.root)

    def beside(self, name: str) -> str | None:
        """The file ``name`` in the folder of the weights, if it is there."""
        sibling = str(PurePosixPath(self.weights).with_name(name)) if self.weights else ""
        return sibling if sibling in self.names else None


def _open(path: Path) -> _Files:
    if path.is_dir():
        found = list(path.rglob(WEIGHTS))
        beside = [file for weights in found for file in weights.parent.iterdir()]
        names = frozenset(
            file.relative_to(path).as_posix() for file in beside or path.iterdir() if file.is_file()
        )
        weights = _weights_among(path, names)
        return _Files(path, weights, names, lambda name: (path / name).open("rb"))
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    names = _names_in_zip(path)
    # torch.save writes zips, too, with a data.pkl in them.
    is_weights = any(name.endswith("data.pkl") for name in names)
    if names and (not is_weights or any(PurePosixPath(name).name == WEIGHTS for name in names)):
        return _Files(path, _weights_among(path, names), names, lambda name: _member(path, name))
    if path.name == WEIGHTS:
        folder = path.parent
        names = frozenset(file.name for file in folder.iterdir())
        return _Files(folder, WEIGHTS, names, lambda name: (folder / name).open("rb"))
    return _Files(path, "", frozenset(), lambda name: path.open("rb"))


def _names_in_zip(path: Path) -> frozenset[str]:
    if not zipfile.is_zipfile(path):
        return frozenset()
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except DAMAGE as error:
        raise OriginalCheckpointError(f"{path}: damaged zip ({first_line(error)})") from error


def _weights_among(path: Path, names: frozenset[str]) -> str:
    found = sorted(name for name in names if PurePosixPath(name).name == WEIGHTS)
    last = [name for name in found if PurePosixPath(name).parent.name == "last"]
    chosen = last if len(found) > 1 else found
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        listed = ", ".join(sorted(names)[:5]) or "nothing"
        raise OriginalCheckpointError(f"{path} has no {WEIGHTS} in it; it holds {listed}")
    raise OriginalCheckpointError(
        f"{path} has {len(found)} files {WEIGHTS}: {', '.join(found[:5])}; give the path of one"
    )


def _member(path: Path, name: str) -> IO[bytes]:
    """A file of a zip, in memory: torch.load jumps about, which a compressed stream cannot."""
    try:
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(name))
    except DAMAGE as error:  # e.g. a wrong check sum, or a password
        raise OriginalCheckpointError(
            f"{path / name} cannot be read from the zip ({first_line(error)})"
        ) from error


def _load(where: str, load: Callable[[IO[bytes]], Any], file: IO[bytes]) -> Any:
    try:
        return load(file)
    except ValueError as error:
        raise OriginalCheckpointError(f"{where}: {error}") from error


def _checked_state(where: str, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not state:
        raise OriginalCheckpointError(f"{where} is not a state dict but a {type(state).__name__}")
    if "model_state" in state:
        raise OriginalCheckpointError(f"{where} is a checkpoint of this library already")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise OriginalCheckpointError(
                f"{where} is not a state dict: {key!r} is a {type(value).__name__}"
            )
    stripped = {key.removeprefix("module."): value.detach() for key, value in state.items()}
    if len(stripped) < len(state):
        raise OriginalCheckpointError(f"{where} has keys both with and without 'module.'")
    return stripped


def _read_arguments(files: _Files) -> dict[str, Any]:
    loaders = {
        ARGUMENTS: load_namespace,
        ARGUMENTS_TEXT: _load_printed,
    }
    for name, load in loaders.items():
        if (found := files.beside(name)) is None:
            continue
        with files.open(found) as file:
            content = file.read(_MAX_ARGUMENTS_BYTES + 1)
        if len(content) > _MAX_ARGUMENTS_BYTES:
            raise OriginalCheckpointError(f"{files.describe(found)} is too large to be options")
        return _load(files.describe(found), load, io.BytesIO(content))
    return {}


def _load_printed(file: IO[bytes]) -> dict[str, Any]:
    try:
        values = ast.literal_eval(file.read().decode("utf-8"))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a printed dict ({first_line(error)})") from error
    if not isinstance(values, dict) or not is_plain(values):
        raise ValueError(f"not a printed dict of plain values but a {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


def _read_dict(files: _Files, name: str) -> dict[str, Any] | None:
    if (found := files.beside(name)) is None:
        return None
    where = files.describe(found)
    with files.open(found) as file:
        content = _load(where, load_weights, file)
    if not isinstance(content, dict):
        raise OriginalCheckpointError(f"{where} is not a dict but a {type(content).__name__}")
    return content
