"""Runs a function over many items in processes that are killed when an item takes too long."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

_START_SECONDS = 300.0  # for a process to import what it needs, on a busy machine


class Outcome(NamedTuple):
    """What became of an item: its value, or why there is none.

    Attributes:
        rank: position of the item.
        value: what the function returned, None if it did not.
        failure: "" if it did, else what happened to its process.
        timed_out: whether the process was killed because the time was over.
        seconds: that the item took.
    """

    rank: int
    value: Any
    failure: str
    timed_out: bool
    seconds: float


def run_each(
    function: Callable[[Any], Any], items: Sequence[Any], num_workers: int, timeout: float
) -> Iterator[Outcome]:
    """Calls the function on every item, and gives the outcomes as they come.

    An item that takes longer than ``timeout``, or whose process dies, is not tried again.

    Args:
        function: of a module's top level; what it gets and returns must be picklable.
        items: to work on.
        num_workers: processes.
        timeout: seconds for one item.

    Raises:
        RuntimeError: if a process does not start.
    """
    remaining = deque(enumerate(items))
    workers: list[_Worker] = []
    try:
        while remaining or workers:
            while len(workers) < num_workers and _num_idle(workers) < len(remaining):
                workers.append(_Worker(function, timeout))
            for worker in _ready_or_late(workers):
                outcome = worker.collect()
                if outcome is not None:
                    yield outcome
                if worker.is_dead or not remaining:
                    worker.stop()
                    workers.remove(worker)
                else:
                    worker.give(*remaining.popleft())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process and the item that it works on; at first it only starts."""

    def __init__(self, function: Callable[[Any], Any], timeout: float) -> None:
        # Forks come from a process without threads that has imported what the function needs:
        # a new one costs milliseconds.
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__, function.__module__])
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end, function), daemon=True)
        self.process.start()
        other_end.close()
        self.index: int | None = None
        self.is_dead = False
        self._timeout = timeout
        self._since = time.monotonic()

    @property
    def deadline(self) -> float:
        """When the item, or the start, has taken too long."""
        return self._since + (_START_SECONDS if self.index is None else self._timeout)

    def give(self, index: int, item: Any) -> None:
        """Starts an item."""
        self.index, self._since = index, time.monotonic()
        self.pipe.send(item)

    def collect(self) -> Outcome | None:
        """What became of the item, None for a process that has started.

        Raises:
            RuntimeError: if the process did not start.
        """
        value, failure, timed_out = None, "", False
        if self.pipe.poll():
            try:
                value = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join()
                failure = f"its process died with exit code {self.process.exitcode}"
        else:
            failure, timed_out = f"not done after {self._timeout:g} s", True
        self.is_dead = bool(failure)
        if self.index is not None:
            seconds = time.monotonic() - self._since
            return Outcome(self.index, value, failure, timed_out, seconds)
        if failure:
            raise RuntimeError(f"a worker process does not start: {failure}")
        return None

    def stop(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _num_idle(workers: Sequence[_Worker]) -> int:
    return sum(worker.index is None for worker in workers)


def _ready_or_late(workers: Sequence[_Worker]) -> list[_Worker]:
    """Waits until a worker has something to say, or had too much time."""
    patience = min(worker.deadline for worker in workers) - time.monotonic()
    pipes: list[Any] = [worker.pipe for worker in workers]
    ready = wait(pipes, max(patience, 0.0))
    now = time.monotonic()
    return [worker for worker in workers if worker.pipe in ready or worker.deadline <= now]


def _work(pipe: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:  # the parent is gone
            return
        pipe.send(function(item))
