"""Iterators run ahead in threads."""

import threading
import time
from contextlib import closing
from functools import partial

import pytest

from vimpac_ext.data.prefetch import Ended, OverdueError, run_ahead


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


def test_threads_go_on_without_the_main_one():
    """While it is busy with an item, they come to their next sources by themselves."""
    started = []

    def source(number):
        started.append(number)
        yield number

    with closing(run_ahead([partial(source, number) for number in range(9)], 1, 6)) as events:
        next(events)
        time.sleep(0.3)
        assert len(started) >= 3


@pytest.mark.parametrize("num_threads", [1, 2])
def test_source_that_hangs_is_given_up_and_the_rest_goes_on(num_threads):
    freed = threading.Event()

    def hangs():
        yield "before"
        freed.wait(30)
        yield "too late"

    def waits_to_be_taken():  # longer than the limit, but not at work
        yield from range(6)

    before = threading.active_count()
    try:
        items, ends = {}, {}
        sources = [partial(count, 0, 2), hangs, waits_to_be_taken, partial(count, 7, 1), hangs]
        for event in run_ahead(sources, num_threads, 1, timeout=0.3):
            time.sleep(0.1)
            if isinstance(event, Ended):
                assert event.source not in ends
                ends[event.source] = event
            else:
                assert event.source not in ends
                items.setdefault(event.source, []).append(event.item)
    finally:
        freed.set()
    assert items == {0: [0, 1], 1: ["before"], 2: [0, 1, 2, 3, 4, 5], 3: [7], 4: ["before"]}
    for source in (0, 2, 3):
        ends[source].check()
    for source in (1, 4):
        assert ends[source].busy_seconds == 0.3
        with pytest.raises(OverdueError, match=r"not done in 0\.3 s"):
            ends[source].check()
    deadline = time.monotonic() + 5  # set free, the threads end
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_slow_from_item_to_item_is_overdue_too():
    def slow():
        for item in range(100):
            time.sleep(0.05)
            yield item

    items, ends = collect(run_ahead([slow], 1, 4, timeout=0.3))
    assert 2 <= len(items[0]) <= 7
    with pytest.raises(OverdueError):
        ends[0].check()


def test_closing_does_not_wait_for_a_thread_that_hangs(monkeypatch, caplog):
    monkeypatch.setattr("vimpac_ext.data.prefetch._PATIENCE", 0.2)
    freed = threading.Event()

    def hangs():
        yield 1
        freed.wait(30)

    try:
        start = time.monotonic()
        with closing(run_ahead([hangs], 1, 4)) as events:
            next(events)
        assert time.monotonic() - start < 5
        assert "left behind" in caplog.text
    finally:
        freed.set()


def test_error_of_the_sources_themselves_is_raised():
    def sources():
        yield partial(count, 0, 2)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(run_ahead(sources(), 2, 2))
