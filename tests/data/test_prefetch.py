"""Iterators run ahead in threads."""

import threading
import time
from contextlib import closing
from functools import partial

import pytest

from vimpac_ext.data.prefetch import prefetch


def count(first, number):
    yield from range(first, first + number)


def fails_after(number):
    yield from range(number)
    raise KeyError("broken source")


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("max_queued", [1, 3])
def test_everything_in_order(num_threads, max_queued):
    sources = [partial(count, 100 * i, i % 7) for i in range(30)]
    streams = prefetch(sources, num_threads, max_queued)
    assert [list(stream) for stream in streams] == [list(source()) for source in sources]


def test_error_comes_in_its_place_and_the_rest_goes_on():
    streams = prefetch([partial(fails_after, 3), partial(count, 0, 2)], 2, 1)
    seen = []
    with pytest.raises(KeyError, match="broken source"):
        seen.extend(next(streams))
    assert seen == [0, 1, 2]
    assert [list(stream) for stream in streams] == [[0, 1]]


def test_closing_early_stops_the_threads():
    before = threading.active_count()
    with closing(prefetch([partial(count, 0, 10**9)] * 5, 3, 2)) as streams:
        assert next(iter(next(streams))) == 0
    assert threading.active_count() == before


def test_queue_is_bounded():
    made = []

    def source():
        for item in range(100):
            made.append(item)
            yield item

    with closing(prefetch([source], 1, 4)) as streams:
        stream = next(streams)
        assert next(iter(stream)) == 0
        time.sleep(0.2)
        assert len(made) <= 7


def test_busy_time_leaves_out_waiting():
    def source():
        for item in range(3):
            time.sleep(0.02)
            yield item

    stream = next(streams := prefetch([source], 1, 1))
    for _ in stream:
        time.sleep(0.1)
    streams.close()
    assert 0.05 < stream.busy_seconds < 0.2
