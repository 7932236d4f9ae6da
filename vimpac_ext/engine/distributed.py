"""The processes of a run: how they meet, exchange values and end together."""

import contextlib
import os
import socket
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from vimpac_ext.engine.placement import LaunchError, Placement

# How long a process that lost another one waits for one that knows why, and how long a process may
# take to end after another has failed.
_SECONDS_FOR_THE_CAUSE = 2.0
_SECONDS_TO_END = 10.0

Value = TypeVar("Value")


class LostProcessError(RuntimeError):
    """Another process of the run is gone or too slow."""


def world_size() -> int:
    """Processes of the run; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes logs and checkpoints."""
    return rank() == 0


def gather(value: Value) -> list[Value]:
    """The values of all processes, in rank order; any picklable object."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Value) -> Value:
    """The value that the main process gave."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def mean_(values: Tensor) -> Tensor:
    """Replaces a tensor by its mean over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def sum_(values: Tensor) -> Tensor:
    """Replaces a tensor by its sum over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


class Membership:
    """A process's part in a run of several; use it as a context manager.

    If one process fails, all end: the first to fail keeps its error, in the others it becomes a
    silent exit with the same code. A process that hangs where no error can reach it is ended by
    a thread.

    Args:
        placement: of this process.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._store: Any = None
        self._watch: _Watch | None = None

    def join(self, name: str, device: torch.device, timeout: float) -> None:
        """Forms the process group; every process calls this.

        Args:
            name: of the group; another one for each group in turn.
            device: that this process computes on; a GPU takes NCCL, the CPU gloo.
            timeout: seconds to wait for the others, here and in every exchange.

        Raises:
            LaunchError: if the address cannot be used or processes do not come.
        """
        store = self._connect(timeout)
        _await_all(store, name, self.placement, timeout)
        if self._watch is None:
            self._watch = _Watch(store, self.placement.rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(name, store),
            rank=self.placement.rank,
            world_size=self.placement.world_size,
            timeout=timedelta(seconds=timeout),
        )

    def leave(self) -> None:
        """Ends the process group when all have come here."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def __enter__(self) -> "Membership":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.leave() if error is None else self._end_with(error)
        finally:
            if self._watch is not None:
                self._watch.stop()

    def _end_with(self, error: BaseException) -> None:
        lost = isinstance(error, Exception) and _says_that_others_are_gone(error)
        known = lost and self._watch is not None and self._watch.waits_for_failure()
        if known or not self.tell_of_failure():
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        if lost:
            late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
            raise LostProcessError(
                f"process {self.placement.rank} of {self.placement.world_size} "
                + (
                    "waited for another one longer than DIST_TIMEOUT"
                    if late
                    else "lost another one: it was killed, or its machine is gone"
                )
            ) from error

    def _connect(self, timeout: float) -> Any:
        if self._store is None:
            place = self.placement
            if place.hosts_store:
                store = open_store(place.host, place.port, timeout)
            else:
                _await_port(place, timeout)
                store = TCPStore(
                    place.host, place.port, is_master=False, timeout=timedelta(seconds=timeout)
                )
            self._store = PrefixStore(f"attempt {place.attempt}", store)
        return self._store

    def tell_of_failure(self) -> bool:
        """Lets the other processes know that the run has failed.

        The process that holds the store stays until they do, or some seconds.

        Returns:
            Whether this is the first failure.
        """
        place = self.placement
        others = [_knows(other) for other in range(place.world_size) if other != place.rank]
        try:
            store = self._connect(_SECONDS_FOR_THE_CAUSE)
            first = store.add("failed", 1) == 1
            store.set(_knows(place.rank), "")
            until = time.monotonic() + _SECONDS_FOR_THE_CAUSE
            while place.hosts_store and time.monotonic() < until and not store.check(others):
                time.sleep(0.05)
        except (RuntimeError, LaunchError):
            return True  # nobody can be asked: better told twice than not at all
        return first


def _knows(rank: int) -> str:
    return f"process {rank} knows"


class _Watch:
    """A thread that learns when another process has failed, and later ends this one.

    Args:
        store: where processes tell.
        rank: of this process.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self._store = store.clone()  # of its own: a waiting call of another thread blocks a store
        self._rank = rank
        self._stopped = threading.Event()
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        # A thread inside the store when the interpreter ends aborts the process.
        self._thread.join(_SECONDS_TO_END)

    def waits_for_failure(self) -> bool:
        """Whether another process has told, or tells soon, that it failed."""
        return self._failed.wait(_SECONDS_FOR_THE_CAUSE)

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            try:
                if not self._store.check(["failed"]):
                    continue
                self._store.set(_knows(self._rank), "")
                self._failed.set()
            except RuntimeError:
                pass  # the process with the store is gone
            if not self._stopped.wait(_SECONDS_TO_END):
                os._exit(1)  # the main thread may be inside a call that never returns


def open_store(host: str, port: int, timeout: float) -> Any:
    """Opens the port at which the processes of a run meet.

    Args:
        host: this machine.
        port: 0 = any free one.
        timeout: seconds that a call may take.

    Raises:
        LaunchError: if the port is in use.
    """
    try:
        return TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout),
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise LaunchError(f"cannot listen on {host}:{port}: {_first_line(error)}") from error
        raise LaunchError(
            f"port {port} of {host} is in use; choose another (--init_method, or MASTER_PORT)"
        ) from error


def _await_port(place: Placement, timeout: float) -> None:
    """Waits until somebody listens; the store itself would fill the terminal with stack traces."""
    until = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((place.host, place.port), timeout=5.0).close()
            return
        if time.monotonic() > until:
            raise LaunchError(
                f"process {place.rank} of {place.world_size} ({place.launcher}) found nobody at "
                f"{place.host}:{place.port} within {timeout:g} s (DIST_TIMEOUT)"
            )
        time.sleep(0.2)


def _await_all(store: Any, name: str, place: Placement, timeout: float) -> None:
    until = time.monotonic() + timeout
    arrived = store.add(f"{name} arrived", 1)
    while arrived < place.world_size:
        if store.check(["failed"]):
            raise SystemExit(1)
        if time.monotonic() > until:
            raise LaunchError(
                f"{arrived} of {place.world_size} processes ({place.launcher}) came to "
                f"{place.host}:{place.port} within {timeout:g} s (DIST_TIMEOUT)"
            )
        time.sleep(0.05)
        arrived = store.add(f"{name} arrived", 0)


def _says_that_others_are_gone(error: Exception) -> bool:
    if isinstance(error, dist.DistError):
        return True
    # What gloo says at first, and of a connection that it has closed after waiting too long.
    signs = ("gloo/transport", "Application timeout caused pair closure")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
