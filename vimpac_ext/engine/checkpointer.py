"""Saving a run and continuing it."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vimpac_ext.engine.checkpoint_files import (
    FORMAT,
    CheckpointError,
    DamagedCheckpointError,
    checkpoints_in,
    names_in_order,
    read_checkpoint,
    require_same_facts,
    require_same_model,
    require_whole,
    set_aside,
)
from vimpac_ext.engine.distributed import from_main, gather, is_main, rank, world_size
from vimpac_ext.engine.remote import Mirror
from vimpac_ext.engine.rng import rng_state
from vimpac_ext.engine.sharding import whole_state
from vimpac_ext.files import atomic_write, sha256_of

_logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores runs in ``folder/checkpoints``.

    Args:
        folder: OUTPUT_DIR of the run.
        config_text: YAML of the run's config, stored in every checkpoint.
        facts: further plain values to store, e.g. the tokenizer's fingerprint.
        keep: newest checkpoints that are kept; 0 = all.
        order: what decides which videos are in which update, name -> plain value.
        mirror: copy of the run in remote storage; the folder is its own or a stage's below that.
    """

    def __init__(
        self,
        folder: Path,
        config_text: str,
        facts: Mapping[str, Any],
        keep: int = 0,
        order: Mapping[str, Any] | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.folder = folder / "checkpoints"
        self.config_text = config_text
        self.facts = dict(facts)
        self.keep = keep
        self.order = dict(order or {})
        self.mirror = mirror

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        update: int,
        *,
        inside_epoch: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes a checkpoint whole or not at all, then removes the oldest beyond ``keep``.

        Those of later updates do not count: the run has passed them over, since they are damaged.

        With a process group, every process calls this; the main one writes.

        Args:
            model: its weights are stored.
            optimizer: its state is stored.
            epoch: whole epochs done.
            update: updates done.
            inside_epoch: the name says the update too.
            more: further tensors and plain values; by default those of one process.

        Raises:
            CheckpointError: if it cannot be written; older ones are untouched.
        """
        name = f"checkpoint_epoch_{epoch:05d}" + f"_update_{update:08d}" * inside_epoch
        path = self.folder / f"{name}.pyth"
        checkpoint = {
            "format": FORMAT,
            "model_state": whole_state(model.state_dict()),
            "optimizer_state": whole_state(optimizer.state_dict()),
            "optimizer_names": names_in_order(model, optimizer),
            "epoch": epoch,
            "update": update,
            "cfg": self.config_text,
            "facts": self.facts,
            "order": self.order,
            **(more or {"scaler_state": {}, "ema_state": None, "rng_states": [rng_state()]}),
        }
        if not is_main():
            return path
        try:
            with atomic_write(path, "wb") as file:
                torch.save(checkpoint, file)
            _force_to_disk(path.parent)
        except (OSError, RuntimeError) as error:  # torch's writer turns one into the other
            raise CheckpointError(
                f"cannot write {path}: {_reason(error)}. The run can go on from the checkpoint "
                "before it"
            ) from error
        if self.keep:
            found = checkpoints_in(self.folder)
            for old in found[found.index(path) :][self.keep :]:
                old.unlink()
        if self.mirror is not None:
            self.mirror.push_or_warn(self.keep, self._place(self.mirror), path.name)
        return path

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Continues from the newest checkpoint that is not damaged, if there is any.

        Only model and optimizer are restored; `rng_state_of_process` gives the random state.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            CheckpointError: if all are damaged, or the newest is of another model or other data.
        """
        # The main process looks, so that all take the same, each from its own folder.
        newest = self._newest_whole() if is_main() else None
        name = from_main(newest.name if newest else None)
        if name is None:
            return None
        path = self.folder / name
        self.share(path)
        hint = "; choose another OUTPUT_DIR, or TRAIN.AUTO_RESUME False to start again"
        checkpoint = read_checkpoint(path, check=False)  # the main process has checked
        if "rng_states" not in checkpoint:
            raise CheckpointError(
                f"{path} has the weights of a run but not its state; give it as "
                f"TRAIN.CHECKPOINT_FILE_PATH{hint}"
            )
        require_same_facts(path, {**checkpoint["facts"], **checkpoint["order"]}, self._all, hint)
        require_same_model(path, model.state_dict(), checkpoint["model_state"], hint)
        model.load_state_dict(checkpoint["model_state"])
        _restore_optimizer(path, checkpoint, model, optimizer, hint)
        _logger.info(
            "resumed from %s (%d epochs, %d updates done)",
            path,
            checkpoint["epoch"],
            checkpoint["update"],
        )
        return checkpoint

    def begin_anew(self) -> None:
        """Sets what an earlier run left in the folder aside; every process calls this.

        Else its checkpoints would be taken for newer ones of the run that begins, and its log be
        overwritten.

        Raises:
            CheckpointError: there are checkpoints in remote storage.
        """
        gather(None)  # nobody reads weights from there any more
        if is_main():
            self._set_aside()
        gather(None)  # nobody writes there before

    def _set_aside(self) -> None:
        if self.mirror is not None and self.mirror.has_checkpoints(self._place(self.mirror)):
            raise CheckpointError(
                f"REMOTE_DIR {self.mirror.remote} has checkpoints that this run does not continue "
                "(TRAIN.AUTO_RESUME is False, or they are damaged); give it a folder of its own"
            )
        for path in set_aside(self.folder.parent):
            what = "lines" if path.suffix else f"{len(checkpoints_in(path))} checkpoints"
            _logger.warning("%s of an earlier run are now in %s", what, path)

    def share(self, path: Path) -> None:
        """Brings the main process's checkpoint to machines that do not have it.

        With a process group, every process calls this. It does nothing without a mirror, nor for
        a file that is not of this run.

        Raises:
            OSError: it is not in the mirror.
        """
        if self.mirror is None or not path.is_relative_to(self.mirror.folder):
            return
        digest = from_main(sha256_of(path) if is_main() and path.is_file() else "")
        if digest and not is_main():
            self.mirror.fetch_same(path, digest)

    def _place(self, mirror: Mirror) -> str:
        """The stage's folder below the run's; "" is the run's own."""
        place = self.folder.parent.relative_to(mirror.folder)
        return "" if place == Path() else place.as_posix()

    @property
    def _all(self) -> dict[str, Any]:
        return {**self.facts, **self.order}

    def rng_state_of_process(self, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
        """This process's random state; None if the checkpoint is of another number of them."""
        states = checkpoint["rng_states"]
        if len(states) == world_size():
            return states[rank()]
        _logger.warning(
            "saved by %d processes, resumed by %d: videos, masks and learning rates are those of "
            "an unbroken run; rounding and what a step draws (dropout, MixUp) are not",
            len(states),
            world_size(),
        )
        return None

    def _newest_whole(self) -> Path | None:
        for left_over in self.folder.glob(".checkpoint_epoch_*.tmp"):
            left_over.unlink(missing_ok=True)  # by a run that was killed while it saved
        found = checkpoints_in(self.folder)
        for path in found:
            try:
                require_whole(path)
            except DamagedCheckpointError as error:
                _logger.warning("%s; the one before it is tried", error)
            else:
                return path
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {self.folder} is whole; remove them, or "
                "TRAIN.AUTO_RESUME False to start again"
            )
        return None


def _restore_optimizer(
    path: Path,
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    hint: str,
) -> None:
    """Restores the state of each parameter; the options are those of the optimizer as built."""
    stored = checkpoint["optimizer_state"]
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (stored["param_groups"], optimizer.param_groups)
    ]
    names = names_in_order(model, optimizer)
    if sizes[0] != sizes[1] or checkpoint["optimizer_names"] != names:
        raise CheckpointError(
            f"{path} has other groups of parameters than SOLVER.NO_DECAY, LR_SCALES and "
            f"LAYER_DECAY make now{hint}"
        )
    entries = stored["state"].values()
    if entries and any("exp_avg" in entry for entry in entries) != ("betas" in optimizer.defaults):
        raise CheckpointError(
            f"{path} has the state of another kind of optimizer than {type(optimizer).__name__} "
            f"(SOLVER.OPTIMIZING_METHOD){hint}"
        )
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(stored)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)


def _reason(error: BaseException) -> str:
    """The operating system's, which torch's writer hides behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return getattr(cause, "strerror", None) or str(cause or error).splitlines()[0]


def _force_to_disk(folder: Path) -> None:
    """The new name of a file is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
