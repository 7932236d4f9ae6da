"""Progress of an extraction: a bar on a terminal, a line a minute in a log file."""

import logging
import sys
import time
from datetime import timedelta
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0


class ExtractionProgress:
    """Shows videos done, frames per second and the time left, as a context manager."""

    def __init__(self, num_videos: int, num_done_before: int, enabled: bool = True) -> None:
        """Starts the clock.

        Args:
            num_videos: to be done in all.
            num_done_before: of these; they do not count in the rate.
            enabled: show anything at all.
        """
        self._num_videos = num_videos
        self._num_before = num_done_before
        self._on_terminal = sys.stderr.isatty()
        self._logs = enabled and not self._on_terminal
        self._start = self._last_line = time.perf_counter()
        self._bar = tqdm(
            total=num_videos,
            initial=num_done_before,
            desc="extracting",
            unit="video",
            smoothing=0.05,  # videos differ in length
            disable=not (enabled and self._on_terminal),
        )

    def __enter__(self) -> "ExtractionProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, num_done: int, num_frames: int) -> None:
        """Update, if it is time.

        Args:
            num_done: videos since the start, failed ones included.
            num_frames: frames since the start.
        """
        now = time.perf_counter()
        rate = num_frames / max(now - self._start, 1e-9)
        if new := self._num_before + num_done - self._bar.n:
            self._bar.set_postfix_str(f"{rate:.0f} frames/s", refresh=False)
            self._bar.update(new)
        if self._logs and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            logger.info("%s", self._line(num_done, now - self._start, rate))

    def _line(self, num_done: int, seconds: float, rate: float) -> str:
        done, left = self._num_before + num_done, "unknown"
        if num_done:
            remaining = (self._num_videos - done) * seconds / num_done
            left = str(timedelta(seconds=round(remaining)))
        return (
            f"{done} of {self._num_videos} videos, {rate:.0f} frames/s, "
            f"{num_done / seconds:.2f} videos/s, time left {left}"
        )
