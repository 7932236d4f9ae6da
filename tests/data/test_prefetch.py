"""Iterators run ahead in threads."""

import threading
import time
from contextlib import closing
from functools import partial

import pytest

from vimpac_ext.data.prefetch import Ended, run_ahead


def count(first, number):
    yield from range(first, first + number)


def fails_after(number):
    yield from range(number)
    raise KeyError("broken source")


def collect(events):
    """Items of each source, and the ends."""
    items, ends = {}, {}
    for event in events:
        assert event.source not in ends
        if isinstance(event, Ended):
            ends[event.source] = event
        else:
            items.setdefault(event.source, []).append(event.item)
    return items, ends


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("max_queued", [1, 3])
def test_everything_of_every_source_in_order(num_threads, max_queued):
    sources = [partial(count, 100 * i, i % 7) for i in range(30)]
    items, ends = collect(run_ahead(sources, num_threads, max_queued))
    assert items == {i: list(source()) for i, source in enumerate(sources) if i % 7}
    assert sorted(ends) == list(range(30))
    for end in ends.values():
        end.check()


def test_one_thread_does_one_source_after_the_other():
    events = list(run_ahead([partial(count, 0, 3)] * 4, 1, 2))
    assert [event.source for event in events] == [i for i in range(4) for _ in range(4)]


def test_a_long_source_does_not_hold_up_the_others():
    """While it waits, the others come to their ends."""
    others_done = threading.Event()

    def waits():
        yield 1
        assert others_done.wait(10)
        yield 2

    order = []
    for event in run_ahead([waits, *[partial(count, 0, 9)] * 6], 2, 4):
        if isinstance(event, Ended):
            event.check()
            order.append(event.source)
            if len(order) == 6:
                others_done.set()
    assert order == [1, 2, 3, 4, 5, 6, 0]


def test_error_comes_at_the_end_of_its_source_and_the_rest_goes_on():
    items, ends = collect(run_ahead([partial(fails_after, 3), partial(count, 0, 2)], 2, 1))
    assert items == {0: [0, 1, 2], 1: [0, 1]}
    ends[1].check()
    with pytest.raises(KeyError, match="broken source"):
        ends[0].check()


def test_closing_early_stops_the_threads():
    before = threading.active_count()
    with closing(run_ahead([partial(count, 0, 10**9)] * 5, 3, 2)) as events:
        assert next(events).item == 0
    assert threading.active_count() == before


def test_queue_is_bounded():
    made = []

    def source():
        for item in range(100):
            made.append(item)
            yield item

    with closing(run_ahead([source] * 3, 2, 4)) as events:
        next(events)
        time.sleep(0.2)
        assert len(made) <= 1 + 4 + 2  # taken, queued, and one in the hands of each thread


def test_sources_are_made_when_they_are_needed():
    made = []

    def sources():
        for number in range(1000):
            made.append(number)
            yield partial(count, number, 5)

    with closing(run_ahead(sources(), 2, 1)) as events:
        next(events)
        assert len(made) <= 4


def test_busy_time_leaves_out_waiting():
    def source():
        for item in range(3):
            time.sleep(0.02)
            yield item

    for event in run_ahead([source], 1, 1):
        time.sleep(0.1)
        if isinstance(event, Ended):
            assert 0.05 < event.busy_seconds < 0.2
