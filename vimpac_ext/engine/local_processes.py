"""Starts the processes of one machine, passes signals on to them and ends them together."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from vimpac_ext.command_line import run_tool

# What a scheduler sends before it takes the machine away; the processes save and stop.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# How long the others may take to end after one has failed.
_SECONDS_TO_END = 12.0
_INTERRUPTED = 130


class ProcessDiedError(RuntimeError):
    """A process was killed from outside, e.g. for want of memory."""


def run_local_processes(
    target: Callable[..., None],
    arguments: Sequence[tuple[Any, ...]],
    on_death: Callable[[], None] = lambda: None,
    on_signal: Callable[[int], None] = lambda signum: None,
) -> int:
    """Runs one process for each entry of ``arguments`` and waits for all.

    The signals of `STOP_SIGNALS` are passed on, Ctrl-C as SIGTERM (a second Ctrl-C kills). If a
    process fails the others are ended some seconds later. If this process is killed, the others
    stop as if they had had SIGTERM.

    Args:
        target: a function of a module; an error that it raises is shown by its process.
        arguments: of each call.
        on_death: called when a process is killed by a signal.
        on_signal: called with each signal that is passed on.

    Returns:
        Exit code of the first process that failed; 0 if none did.

    Raises:
        ProcessDiedError: if a process was killed by a signal.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run_child, args=(target, given), name=f"process {i}")
        for i, given in enumerate(arguments)
    ]
    interrupted = False

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        on_signal(signum)
        again, interrupted = interrupted, interrupted or signum == signal.SIGINT
        for process in processes:
            if process.is_alive() and process.pid:
                stop = signal.SIGTERM if signum == signal.SIGINT else signal.Signals(signum)
                os.kill(process.pid, signal.SIGKILL if again else stop)

    with _handlers(pass_on):
        for process in processes:
            process.start()
        failed = _first_to_fail(processes, on_death)
    if failed is None:
        return 0
    if interrupted:
        return _INTERRUPTED
    code = failed.exitcode or 0
    if code < 0:
        cause = signal.Signals(-code).name
        hint = " (the machine may be out of memory)" if cause == "SIGKILL" else ""
        raise ProcessDiedError(f"{failed.name} of this machine was killed by {cause}{hint}")
    return code


def _first_to_fail(
    processes: Sequence[SpawnProcess], on_death: Callable[[], None]
) -> SpawnProcess | None:
    """Waits until all have ended; returns the first that did not end well."""
    failed: SpawnProcess | None = None
    deadline = float("inf")
    running = list(processes)
    while running:
        wait([process.sentinel for process in running], timeout=1.0)
        for process in [process for process in running if not process.is_alive()]:
            process.join()
            running.remove(process)
            if process.exitcode and failed is None:
                failed, deadline = process, time.monotonic() + _SECONDS_TO_END
                if process.exitcode < 0:
                    on_death()
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
    return failed


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, *STOP_SIGNALS)}
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)


def _run_child(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C on a terminal reaches all processes; the parent passes it on once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_stop_with_the_parent, daemon=True).start()
    try:
        run_tool(lambda _: target(*arguments))
    finally:
        sys.stdout.flush()


def _stop_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
