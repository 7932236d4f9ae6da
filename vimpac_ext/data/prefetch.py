"""Running iterators ahead in background threads, with bounded memory."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


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
    _future: "Future[None]"

    def check(self) -> None:
        """Raise the error that ended the iterator, if one did."""
        self._future.result()


def run_ahead(
    sources: Iterable[Callable[[], Iterable[Item]]], num_threads: int, max_queued: int
) -> Generator[Taken[Item] | Ended, None, None]:
    """Run the iterators that ``sources`` make in threads, several at a time.

    Items are given as they come, so that a long iterator does not hold up the others; those of one
    iterator stay in order.

    Args:
        sources: each makes one iterator, in a background thread; started in order.
        num_threads: iterators that run at the same time.
        max_queued: items that may wait to be taken, of all iterators together.

    Yields:
        The items of every iterator, then its end. Take everything, or close the generator, which
        stops the threads.
    """
    stop = threading.Event()
    events: queue.Queue[Any] = queue.Queue(max_queued)
    waiting = enumerate(sources)
    running: dict[int, tuple[_Runner, Future[None]]] = {}
    executor = ThreadPoolExecutor(num_threads)

    def start(number: int) -> None:
        for source_number, source in itertools.islice(waiting, number):
            runner = _Runner(source_number, events, stop)
            running[source_number] = (runner, executor.submit(runner.run, source))

    try:
        start(2 * num_threads)  # the next ones are at hand when a thread becomes free
        while running:
            event = events.get()
            if isinstance(event, Taken):
                yield event
                continue
            runner, future = running.pop(event.number)
            start(1)
            yield Ended(event.number, runner.busy_seconds, future)
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


class _Runner:
    """Runs one iterator in a thread; puts itself into the queue at the end."""

    def __init__(self, number: int, events: "queue.Queue[Any]", stop: threading.Event) -> None:
        self.number = number
        self.busy_seconds = 0.0
        self._events = events
        self._stop = stop

    def run(self, source: Callable[[], Iterable[Any]]) -> None:
        start = time.perf_counter()
        try:
            for item in source():
                self.busy_seconds += time.perf_counter() - start
                if not self._put(Taken(self.number, item)):
                    return
                start = time.perf_counter()
        finally:
            self.busy_seconds += time.perf_counter() - start
            self._put(self)

    def _put(self, event: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._events.put(event, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
