"""Running iterators ahead in background threads, with bounded memory."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
_END: Any = object()


class Stream(Generic[Item]):
    """The items of one iterator that a background thread runs.

    Attributes:
        busy_seconds: time that the thread spent in the iterator, known after the last item.
    """

    def __init__(self, stop: threading.Event, max_queued: int) -> None:
        self.busy_seconds = 0.0
        self.future: Future[None]
        self._stop = stop
        self._items: queue.Queue[Item] = queue.Queue(max_queued)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items as they come; an error of the iterator is raised in their place."""
        while (item := self._items.get()) is not _END:
            yield item
        self.future.result()

    def run(self, source: Callable[[], Iterable[Item]]) -> None:
        """Fill the stream (in the background thread)."""
        try:
            start = time.perf_counter()
            for item in source():
                self.busy_seconds += time.perf_counter() - start
                if not self._put(item):
                    return
                start = time.perf_counter()
            self.busy_seconds += time.perf_counter() - start
        finally:
            self._put(_END)

    def _put(self, item: Item) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def prefetch(
    sources: Iterable[Callable[[], Iterable[Item]]], num_threads: int, max_queued: int
) -> Generator[Stream[Item], None, None]:
    """Run the iterators that ``sources`` make in threads, several at a time.

    Args:
        sources: each makes one iterator, in a background thread.
        num_threads: iterators that run at the same time.
        max_queued: items of one iterator that may wait to be taken.

    Yields:
        For each source, in order, the stream of its items; take all of them, or close the
        generator, which stops the threads.
    """
    stop, pending = threading.Event(), deque[Stream[Item]]()
    executor = ThreadPoolExecutor(num_threads)
    try:
        for source in sources:
            stream = Stream[Item](stop, max_queued)
            stream.future = executor.submit(stream.run, source)
            pending.append(stream)
            if len(pending) == 2 * num_threads:  # some may be done and wait to be taken
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
