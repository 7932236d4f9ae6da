"""Checkpoint files: finding, reading and judging them; nothing in them is ever executed."""

import itertools
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.files import is_remote, local_path, remote_names

FORMAT = "vimpac_ext checkpoint 1"
_READ_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError)
_OF_ONE_RUN = ("checkpoints", "metrics.jsonl", "bad_videos.jsonl")
State = dict[str, Tensor]


class CheckpointError(ValueError):
    """A file that is not the checkpoint that is needed; the message says why."""


class DamagedCheckpointError(CheckpointError):
    """A file that cannot be read, or whose content is not what was written."""


def newest_first(names: Iterable[str]) -> list[str]:
    """Those names that are of checkpoints: by epochs done, then by updates, newest first."""
    found = {}
    for name in names:
        match = re.fullmatch(r"checkpoint_epoch_(\d+)(?:_update_(\d+))?\.pyth", name)
        if match:
            found[int(match[1]), int(match[2] or 0)] = name
    return [found[key] for key in sorted(found, reverse=True)]


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    return [folder / name for name in newest_first(path.name for path in folder.glob("*.pyth"))]


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in ``folder`` with the most training, or None."""
    return next(iter(checkpoints_in(folder)), None)


def set_aside(folder: Path) -> list[Path]:
    """Renames the checkpoints and logs of a run, so that they are not mixed with another's.

    Args:
        folder: of the run.

    Returns:
        The new paths, all with the first number that none of them has: ``checkpoints_1``,
        ``metrics_1.jsonl`` and ``bad_videos_1.jsonl``, of what there is.
    """
    checkpoints, *logs = paths = [folder / name for name in _OF_ONE_RUN]
    for number in itertools.count(1):
        names = {path: path.with_name(f"{path.stem}_{number}{path.suffix}") for path in paths}
        if not any(name.exists() for name in names.values()):
            break
    left = [checkpoints] if checkpoints_in(checkpoints) else []
    left += [log for log in logs if log.is_file() and log.stat().st_size]
    return [path.rename(names[path]) for path in left]


def stage_folders(path: Path) -> list[Path]:
    """The folders of the stages that a run with TRAIN.STAGES has begun, in their order."""
    folders = [f for f in path.glob("stage_*") if f.name.removeprefix("stage_").isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("stage_")))


def find_checkpoint(source: str | Path) -> Path:
    """The file that a user means: a checkpoint, or the newest one of a run's folder.

    Of a run with TRAIN.STAGES it is that of the last stage that has one.

    Args:
        source: path or URL; a URL that does not end in a file name with a suffix is a folder's, of
            a run or a stage. What is remote is downloaded.

    Raises:
        FileNotFoundError: if there is none.
    """
    if isinstance(source, str) and is_remote(source):
        return _find_remote(source.rstrip("/"))
    path = Path(source)
    if path.is_file():
        return path
    newest = newest_checkpoint(path / "checkpoints") or newest_checkpoint(path)
    for folder in stage_folders(path) if newest is None else ():
        newest = newest_checkpoint(folder / "checkpoints") or newest
    if newest is None:
        raise FileNotFoundError(f"no checkpoint: {path} is neither a file nor a folder with one")
    return newest


def _find_remote(source: str) -> Path:
    if PurePosixPath(source).suffix:
        return local_path(source)
    found = (re.fullmatch(r"stage_(\d+)/", name) for name in remote_names(source))
    stages = sorted((int(match[1]) for match in found if match), reverse=True)
    of_stages = (f"{source}/stage_{stage}/checkpoints" for stage in stages)
    for folder in (f"{source}/checkpoints", source, *of_stages):
        newest = newest_first(remote_names(folder))
        if newest:
            return local_path(f"{folder}/{newest[0]}")
    raise FileNotFoundError(f"no checkpoint: {source} is neither a file nor a folder with one")


def require_whole(path: Path) -> None:
    """Compares every byte of a checkpoint with its checksums, which torch's reader does not do.

    Raises:
        DamagedCheckpointError: if the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (*_READ_ERRORS, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedCheckpointError(_damaged(path, error)) from error
    if damaged is not None:
        raise DamagedCheckpointError(f"{path} is damaged: {damaged} is not what was written")


def read_checkpoint(path: Path, check: bool = True) -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it.

    Args:
        path: of the file.
        check: compare it with its checksums first.

    Raises:
        DamagedCheckpointError: if the file is damaged.
        CheckpointError: if it is not one of ours.
    """
    if check:
        require_whole(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise DamagedCheckpointError(_damaged(path, error)) from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this program (no format {FORMAT!r})")
    return checkpoint


def _damaged(path: Path, error: Exception) -> str:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{path} is damaged or not a checkpoint: {first_line}"


def weights_in(checkpoint: Mapping[str, Any]) -> State:
    """The weights to use a checkpoint's model with: the averaged ones, where there are any."""
    return dict(checkpoint.get("ema_state") or checkpoint["model_state"])


def names_in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order in which its state numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def require_same_facts(
    path: Path, stored: Mapping[str, Any], own: Mapping[str, Any], hint: str = ""
) -> None:
    """Raises CheckpointError if the data of the checkpoint and of this run differ."""
    for name, value in own.items():
        if name in stored and not _agree(stored[name], value):
            raise CheckpointError(
                f"{path} was trained with {name} {stored[name]!r}, this run has {value!r}{hint}"
            )


def _agree(stored: Any, own: Any) -> bool:
    """Whether two facts can both be true.

    A tokenizer's fingerprint is its name, a colon and the hash of its weights. Which weights made
    the authors' tokens is not known: theirs is the name alone, which agrees with any weights.
    """
    (name, _, weights), (own_name, _, own_weights) = (str(f).partition(":") for f in (stored, own))
    return stored == own or (name == own_name and not (weights and own_weights))


def require_same_model(path: Path, own: State, stored: State, hint: str = "") -> None:
    """Raises CheckpointError unless keys and shapes are the same."""
    problems = [f"{key} is missing" for key in own if key not in stored]
    problems += [f"{key} is not in the model" for key in stored if key not in own]
    problems += [
        f"{key} has shape {tuple(stored[key].shape)}, the model needs {tuple(own[key].shape)}"
        for key in own
        if key in stored and own[key].shape != stored[key].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} is a checkpoint of another model: {'; '.join(problems[:3])}{more}{hint}"
        )
