"""Stopping a run from outside so that it can go on later: SLURM's signals and Ctrl-C."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from vimpac_ext.engine.distributed import world_size
from vimpac_ext.engine.local_processes import STOP_SIGNALS

# EX_TEMPFAIL: nothing is wrong, the same command goes on. 128 + SIGINT is what shells expect.
EXIT_CODE_STOPPED, EXIT_CODE_INTERRUPTED = 75, 130


class TrainingStopped(RuntimeError):  # noqa: N818  (not an error)
    """Training was asked to stop and has saved a checkpoint.

    Attributes:
        exit_code: for the shell: 75, or 130 after Ctrl-C.
    """

    def __init__(self, signum: int, update: int, saved: str) -> None:
        name = signal.Signals(signum).name
        super().__init__(
            f"stopped by {name} after update {update}; {saved} is saved and the same command goes "
            "on from there"
        )
        self.exit_code = EXIT_CODE_INTERRUPTED if signum == signal.SIGINT else EXIT_CODE_STOPPED


class StopRequest:
    """Remembers a signal until the loop can stop; as a context manager it listens.

    A second Ctrl-C is a `KeyboardInterrupt` as usual.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._previous: dict[int, Any] = {}
        self._asked: tuple[torch.Tensor, Any] | None = None

    def agreed(self) -> int:
        """The signal that some process has had, 0 if none; every process calls this every update.

        With several processes the answer is that of the question one update ago, which by now has
        arrived, so nobody waits for the others here.
        """
        if world_size() == 1:
            return self._signum
        answer = self._answer()
        signum = torch.tensor([self._signum])
        self._asked = signum, dist.all_reduce(signum, dist.ReduceOp.MAX, async_op=True)
        return answer

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        signum, work = self._asked
        work.wait()
        self._asked = None
        return int(signum)

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for signum in (*STOP_SIGNALS, signal.SIGINT):
                if signal.getsignal(signum) is not signal.SIG_IGN:  # e.g. SIGINT under nohup
                    self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._answer()
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signum = signum
