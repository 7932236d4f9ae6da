"""Several processes in a test: forked, so that they start at once, and joined by gloo."""

import contextlib
import datetime
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._dynamo  # here, since optimizers import it, which takes each process seconds
import torch.distributed as dist

from vimpac_ext.command_line import run_tool

CONTEXT = multiprocessing.get_context("fork")


@dataclass
class Ended:
    """How a process ended; ``code`` is negative for a signal."""

    code: int
    out: str
    err: str


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_processes(count, function, *arguments, timeout=60):
    """``function(*arguments)`` in ``count`` processes of one group; its results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        ended = run_processes(
            _member, [(r, count, path, function, arguments) for r in range(count)], timeout
        )
        for rank, process in enumerate(ended):
            assert process.code == 0, f"process {rank}:\n{process.out}\n{process.err}"
        return [torch.load(path / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _member(rank, count, folder, function, arguments):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=30),
    )
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_processes(function, arguments, timeout=60, after=None):
    """Runs ``function`` once for each entry, as a tool would; how each process ended.

    ``after(processes)`` is called when all have started.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        processes = [
            CONTEXT.Process(target=_redirected, args=(path / str(i), function, given))
            for i, given in enumerate(arguments)
        ]
        for process in processes:
            process.start()
        if after is not None:
            after(processes)
        until = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        hanging = [i for i, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        ended = [
            Ended(p.exitcode, *((path / f"{i}.{name}").read_text() for name in ("out", "err")))
            for i, p in enumerate(processes)
        ]
        assert not hanging, f"processes {hanging} hang: {ended}"
        return ended


def _redirected(path, function, arguments):
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        file = path.with_name(f"{path.name}.{name}").open("w")
        number = 1 if name == "out" else 2
        os.dup2(file.fileno(), number)
        setattr(sys, f"std{name}", os.fdopen(number, "w", buffering=1, closefd=False))
    try:
        run_tool(lambda _: function(*arguments))
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # not what pytest would do at the end
