"""Running iterators ahead in background threads, with bounded memory."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

_LONGEST_POLL = 5.0  # seconds between two looks at the clock of the iterators
_PATIENCE = 10.0  # seconds that a closed generator waits for its threads


class OverdueError(RuntimeError):
    """An iterator has been at work for too long."""


@dataclass(frozen=True)
class Taken(Generic[Item]):
    """An item that came out of an iterator."""

    source: int
    item: Item


@dataclass(frozen=True)
class Ended:
    """An iterator came to its end, or failed; `check` raises its error in that case.

    Attributes:
        source: which one.
        busy_seconds: time that its thread spent in it.
    """

    source: int
    busy_seconds: float
    _error: BaseException | None

    def check(self) -> None:
        """Raise the error that ended the iterator, if one did."""
        if self._error is not None:
            raise self._error


def run_ahead(
    sources: Iterable[Callable[[], Iterable[Item]]],
    num_threads: int,
    max_queued: int,
    timeout: float = 0.0,
) -> Generator[Taken[Item] | Ended, None, None]:
    """Run the iterators that ``sources`` make in threads, several at a time.

    Items are given as they come, so that a long iterator does not hold up the others; those of one
    iterator stay in order.

    A thread cannot be killed. One whose iterator is overdue is left behind: another takes its
    place, and should it ever come back, it ends. The threads are daemons, so it does not keep the
    process alive.

    Args:
        sources: each makes one iterator, in a background thread; started in order.
        num_threads: iterators that run at the same time.
        max_queued: items that may wait to be taken, of all iterators together.
        timeout: seconds that an iterator may be at work, not counting how long its items wait to
            be taken; after that it ends with `OverdueError`. 0 = no limit.

    Yields:
        The items of every iterator, then its end. Take everything, or close the generator, which
        stops the threads.
    """
    pool = _Pool(sources, max_queued, timeout)
    pool.start(num_threads)
    try:
        while pool.workers:
            yield from pool.next_events()
    finally:
        pool.stop()


class _Job:
    """An iterator at work, and its clock."""

    def __init__(self, number: int, source: Callable[[], Iterable[Any]]) -> None:
        self.number = number
        self.source = source
        self.error: BaseException | None = None
        self.busy_seconds = 0.0
        self._since: float | None = None  # None while it is not at work

    def go_on(self) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()

    def rest(self) -> None:
        """Stops the clock."""
        since, self._since = self._since, None
        if since is not None:
            self.busy_seconds += time.perf_counter() - since

    def is_overdue(self, timeout: float) -> bool:
        """Whether it is at work and has been for too long."""
        since = self._since
        return since is not None and self.busy_seconds + time.perf_counter() - since > timeout


class _Pool:
    """The threads, what they share, and the main thread's side of it.

    Attributes:
        workers: the threads that have not ended and are not left behind.
    """

    def __init__(
        self, sources: Iterable[Callable[[], Iterable[Any]]], max_queued: int, timeout: float
    ) -> None:
        self.workers: list[_Worker] = []
        self._waiting = enumerate(sources)
        self._taking = threading.Lock()
        self._events: queue.Queue[Any] = queue.Queue(max_queued)
        self._timeout = timeout
        self._given_up: set[int] = set()

    def start(self, number: int) -> None:
        """Adds threads."""
        self.workers += [_Worker(self._take, self._events) for _ in range(number)]

    def next_events(self) -> Iterator[Taken[Any] | Ended]:
        """Waits for what a thread has to say; also tells who is overdue."""
        patience = min(self._timeout / 4, _LONGEST_POLL) if self._timeout else None
        try:
            event = self._events.get(timeout=patience)
        except queue.Empty:
            event = None
        if isinstance(event, _Worker):
            if event in self.workers:
                self.workers.remove(event)
            if event.error is not None:
                raise event.error
        elif isinstance(event, Taken) and event.source not in self._given_up:
            yield event
        elif isinstance(event, _Job) and event.number not in self._given_up:
            yield Ended(event.number, event.busy_seconds, event.error)
        if self._timeout:
            yield from self._give_up()

    def stop(self) -> None:
        """Ends the threads; those that do not come back are left behind."""
        for worker in self.workers:
            worker.stop.set()
        deadline = time.monotonic() + _PATIENCE
        for worker in self.workers:
            worker.thread.join(max(deadline - time.monotonic(), 0.0))
            if worker.thread.is_alive():
                logger.warning("a thread does not stop and is left behind")

    def _give_up(self) -> Iterator[Ended]:
        for worker in list(self.workers):
            with self._taking:  # so that it does not begin the next one meanwhile
                job = worker.job
                if job is None or not job.is_overdue(self._timeout):
                    continue
                worker.stop.set()
            self._given_up.add(job.number)
            self.workers.remove(worker)
            self.start(1)
            yield Ended(job.number, self._timeout, OverdueError(f"not done in {self._timeout:g} s"))

    def _take(self, worker: "_Worker") -> _Job | None:
        """The next iterator; None if there is none, or the thread is to stop."""
        with self._taking:
            taken = None if worker.stop.is_set() else next(self._waiting, None)
            worker.job = None if taken is None else _Job(*taken)
            return worker.job


class _Worker:
    """A thread that runs one iterator after the other; puts itself into the queue at the end."""

    def __init__(
        self, take: Callable[["_Worker"], _Job | None], events: "queue.Queue[Any]"
    ) -> None:
        self.job: _Job | None = None
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._events = events
        self.thread = threading.Thread(target=self._run, args=(take,), daemon=True)
        self.thread.start()

    def _run(self, take: Callable[["_Worker"], _Job | None]) -> None:
        try:
            while job := take(self):
                self._work(job)
                self._put(job)
        except BaseException as error:  # of the sources themselves; raised by the main thread
            self.error = error
        self._put(self)

    def _work(self, job: _Job) -> None:
        job.go_on()
        try:
            for item in job.source():
                job.rest()
                if not self._put(Taken(job.number, item)):
                    return
                job.go_on()
        except BaseException as error:  # raised by `Ended.check`
            job.error = error
        finally:
            job.rest()

    def _put(self, event: Any) -> bool:
        while not self.stop.is_set():
            try:
                self._events.put(event, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
