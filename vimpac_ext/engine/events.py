"""Where numbers go: json_stats lines, metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vimpac_ext.engine.distributed import is_main
from vimpac_ext.engine.wandb_log import WandbLog, WandbOptions
from vimpac_ext.files import atomic_write
from vimpac_ext.visualization.sheet import Image

_logger = logging.getLogger(__name__)

_NO_EVALUATIONS = ("train_iter", "test_final")  # kinds that are not logged every few epochs


class EventLog:
    """Writes the scalars of a run to every reader at once.

    Args:
        folder: made if needed; receives ``metrics.jsonl`` and ``tensorboard/``.
        tensorboard: whether to write event files.
        first_update: the update that a training run starts or continues with. Lines of this and
            later updates, left by a run that was killed after its last checkpoint, are removed,
            since they are about to be written again. None = keep all lines.
        wandb: where Weights & Biases shows the run; None = nowhere.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard: bool,
        first_update: int | None = None,
        wandb: WandbOptions | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._evaluations: list[dict[str, Any]] = []
        if first_update is not None:
            self._evaluations = _drop_updates_from(self._path, first_update)
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = None
        if tensorboard:
            # Imported here: it takes a second that runs without it need not pay.
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first_update)
        self._wandb = WandbLog(folder, wandb, is_new=first_update == 1) if wandb else None

    def write(self, kind: str, update: int, scalars: dict[str, Any]) -> None:
        """Records one set of scalars.

        Args:
            kind: PySlowFast's ``_type``: train_iter, train_epoch, test_final, ...
            update: parameter updates so far.
            scalars: name -> plain value; numbers also go to TensorBoard and Weights & Biases.
        """
        rounded = {name: _rounded(value) for name, value in scalars.items()}
        line = json.dumps({"_type": kind, "update": update, **rounded}, sort_keys=True)
        tqdm.write(f"json_stats: {line}", file=sys.stdout)
        _logger.info("json_stats: %s", line, extra={"is_printed": True})  # to stdout.log
        self._file.write(line + "\n")
        self._file.flush()
        if kind not in _NO_EVALUATIONS:
            self._evaluations.append(json.loads(line))
        if self._tensorboard is not None:
            for name, value in scalars.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, update)
        if self._wandb is not None:
            self._wandb.write(kind, update, scalars)

    def write_image(self, tag: str, update: int, image: Image) -> None:
        """Records a picture, where pictures can be shown.

        Args:
            tag: its name.
            update: parameter updates so far.
            image: uint8 (H, W, 3).
        """
        if self._tensorboard is not None:
            self._tensorboard.add_image(tag, image, update, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.write_image(tag, update, image)

    def evaluated(self, update: int) -> bool:
        """Whether the log of a continued run already has an evaluation after ``update``."""
        return any(event["update"] == update for event in self._evaluations)

    def least(self, kind: str, name: str, value: float) -> float:
        """The smallest value of a scalar in this run, with what the log of a continued run has.

        Args:
            kind: of evaluation.
            name: of the scalar.
            value: that is about to be written.
        """
        earlier = [e[name] for e in self._evaluations if e["_type"] == kind and name in e]
        return min([value, *earlier])

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Flushes and closes all files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.close(failed)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


class SilentLog(EventLog):
    """Takes events and writes none; for the processes beside the main one."""

    def __init__(self) -> None:
        self._evaluations = []

    def write(self, kind: str, update: int, scalars: dict[str, Any]) -> None:
        """Does nothing."""

    def write_image(self, tag: str, update: int, image: Image) -> None:
        """Does nothing."""

    def close(self, failed: bool = False) -> None:
        """Does nothing."""


def open_events(
    folder: Path,
    tensorboard: bool,
    first_update: int | None = None,
    wandb: WandbOptions | None = None,
) -> EventLog:
    """The log of a run in the main process, one that writes nothing in the others.

    Args:
        folder: see `EventLog`, as the other arguments.
        tensorboard: whether to write event files.
        first_update: of a training run.
        wandb: where Weights & Biases shows the run.
    """
    return EventLog(folder, tensorboard, first_update, wandb) if is_main() else SilentLog()


def _drop_updates_from(path: Path, first_update: int) -> list[dict[str, Any]]:
    """Removes the lines of later updates; returns the evaluations that are left."""
    if not path.is_file():
        return []
    kept, evaluations = [], []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short when the run was killed
        if event["update"] < first_update:
            kept.append(line)
            if event["_type"] not in _NO_EVALUATIONS:
                evaluations.append(event)
    with atomic_write(path) as file:
        file.writelines(kept)
    return evaluations
