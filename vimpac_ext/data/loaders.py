"""Batches: one stream over all epochs that can start at any update."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vimpac_ext.data.bad_videos import BadVideo, note_bad_video
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.structures import ClipSample

_logger = logging.getLogger(__name__)

_MAX_REPLACEMENTS = 10  # so many bad videos in a row are no accident
_REPLACEMENT = 1  # tells this use of the random numbers of an item from its clips


class UpdateSampler(Sampler[list[tuple[int, int]]]):
    """Yields the micro-batches of every update of a run, as lists of (epoch, item index) keys.

    The order of an epoch depends on (seed, epoch) only, so a run that starts at ``first_update``
    sees what an unbroken one would have seen. The items of a last incomplete batch are left out
    (others each epoch). With several processes, each takes an equal part of every micro-batch;
    together they see what one process would have seen.

    Args:
        num_items: size of the data set.
        batch_size: items per parameter update.
        micro_batch_size: items per forward pass of all processes; divides ``batch_size``.
        num_epochs: passes over the data set.
        seed: of the order.
        first_update: updates to leave out at the start.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: if there are fewer items than one batch needs, or a micro-batch cannot be
            divided among the processes.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        micro_batch_size: int,
        num_epochs: int,
        seed: int,
        first_update: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_items < batch_size:
            raise ValueError(
                f"TRAIN.BATCH_SIZE is {batch_size} but there are only {num_items} training videos; "
                "lower TRAIN.BATCH_SIZE"
            )
        if micro_batch_size % world_size:
            key = "BATCH_SIZE" if micro_batch_size == batch_size else "MICRO_BATCH_SIZE"
            raise ValueError(
                f"TRAIN.{key} is {micro_batch_size}, which cannot be divided among {world_size} "
                "processes; change one of them"
            )
        assert batch_size % micro_batch_size == 0
        self.num_items = num_items
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.num_epochs = num_epochs
        self.seed = seed
        self.first_update = first_update
        self.rank = rank
        self.world_size = world_size

    @property
    def updates_per_epoch(self) -> int:
        """Complete batches in one pass."""
        return self.num_items // self.batch_size

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        return self.updates_per_epoch * self.num_epochs

    def __len__(self) -> int:
        updates = self.num_updates - self.first_update
        return updates * self.batch_size // self.micro_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, skipped = divmod(self.first_update, self.updates_per_epoch)
        for epoch in range(first_epoch, self.num_epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_items)
            used = order[skipped * self.batch_size : self.updates_per_epoch * self.batch_size]
            size = self.micro_batch_size // self.world_size
            first = self.rank * size
            for start in range(first, len(used), self.micro_batch_size):
                micro_batch = used[start : start + size]
                yield [(epoch, int(index)) for index in micro_batch]
            skipped = 0


def train_loader(
    dataset: Any,
    sampler: UpdateSampler,
    num_workers: int,
    pin_memory: bool,
    bad_videos_file: Path | None = None,
) -> DataLoader:
    """Loader of micro-batches in the sampler's order; batches do not depend on ``num_workers``.

    An item that is marked as bad ("error") is replaced by another one of the same epoch, so that
    batches stay whole. Which one follows from the sampler's seed, the epoch and the index. If ten
    others are bad, too, `VideoDecodeError` is raised.

    Args:
        dataset: of clips; has ``records`` if it marks bad items.
        sampler: of the keys.
        num_workers: processes, 0 = in this one.
        pin_memory: batches in page-locked memory, where there is a GPU.
        bad_videos_file: list that gets every bad video once, by whichever process meets it
            first; only then it is warned of. None = no list.
    """
    return DataLoader(
        _Replaced(dataset, sampler.seed, bad_videos_file),
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        # A loader draws its workers' seed when it starts. From the global generator, that would
        # shift every dropout mask after it, and a resumed run would differ from an unbroken one.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_main_process,
    )


def evaluation_loader(
    dataset: Dataset, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Loader of every item once, in order; the last batch may be smaller."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_main_process,
    )


class _Replaced(Dataset[ClipSample]):
    """A data set with another item in place of each that is marked as bad, which is noted."""

    def __init__(self, dataset: Any, seed: int, bad_videos_file: Path | None) -> None:
        self._dataset = dataset
        self._seed = seed
        self._bad_videos_file = bad_videos_file

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        """The item, or the one in its place.

        Raises:
            VideoDecodeError: none that was tried could be decoded.
        """
        errors: list[str] = []
        for candidate in self._candidates(*key):
            sample: ClipSample = self._dataset[candidate]
            error = sample.pop("error", "")
            if not error:
                return sample
            errors.append(error)
            if self._is_news(sample["video_index"], error):
                _logger.warning("another video takes the place of one that is bad: %s", error)
        raise VideoDecodeError(
            f"none of {len(errors)} videos tried for one place in a batch can be decoded; "
            f"the first: {errors[0]}"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        """Keys of the item and of those that may replace it, different ones."""
        yield epoch, index
        # The items' own generators are made of (seed, epoch, index).
        generator = np.random.default_rng((self._seed, epoch, index, _REPLACEMENT))
        others = len(self) - 1
        for other in generator.choice(others, min(others, _MAX_REPLACEMENTS), replace=False):
            yield epoch, int(other) + int(other >= index)

    def _is_news(self, index: int, error: str) -> bool:
        if self._bad_videos_file is None:
            return True
        record = self._dataset.records[index]
        entry = BadVideo(record.video_id, record.path, error)
        return note_bad_video(self._bad_videos_file, entry)


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A scheduler and Ctrl-C signal all processes; the main one still needs batches to stop well.

    SIGTERM from the main process itself ends the worker: when that stops with an error, it sends it
    and then waits, for ever if its workers did not listen.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return  # macOS, where no scheduler sends SIGTERM: it ends the worker
    # Blocked, it waits for the thread, which also learns who sent it; threads to come inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_main_process_says_so, daemon=True).start()


def _end_when_the_main_process_says_so() -> None:
    main = multiprocessing.parent_process()
    assert main is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    os._exit(0)
