"""Runs of several processes that go wrong: one clear line from one process, and no hang."""

import os
import resource
import signal
import socket
import threading
import time

import pytest
import torch
import torch.distributed as dist
from processes import free_port, run_processes
from tiny_project import make_tiny_project

from vimpac_ext.engine.distributed import LostProcessError, Membership, _Watch
from vimpac_ext.engine.launch import prepare, run
from vimpac_ext.engine.placement import Placement
from vimpac_ext.engine.processes import RunRequest, run_as
from vimpac_ext.registries import MASKERS


@MASKERS.register()
class TroubleMasker:
    """In process 1, at the third call: "raise" an error, "kill" the process or "hang"."""

    def __init__(self, trouble: str):
        self.trouble = trouble
        self.calls = 0

    def __call__(self, tokens, generator):
        self.calls += 1
        if self.calls == 3 and dist.get_rank() == 1:
            if self.trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.trouble == "hang":
                time.sleep(1000)
            raise ValueError("no mask today")
        return torch.ones(tokens.shape, dtype=torch.bool)


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr("vimpac_ext.engine.distributed._SECONDS_FOR_THE_CAUSE", 1.0)


def world(project, *overrides, size=2, others=(), port=None, config="pretrain"):
    """``size`` processes that find each other as torchrun's do; others get other overrides too."""
    port = port or free_port()
    calls = []
    for rank in range(size):
        place = Placement(rank, size, rank, "127.0.0.1", port, rank == 0, "torchrun")
        words = (*overrides, *(others if rank else ()))
        calls.append((place, RunRequest((str(project / f"{config}.yaml"),), words)))
    return calls


def require_one_line(ended, *parts, codes=(1, 1)):
    assert tuple(process.code for process in ended) == codes
    lines = [line for process in ended for line in process.err.splitlines()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("trouble", "codes", "expected"),
    [
        ("raise", (1, 1), ["no mask today"]),
        ("kill", (1, -9), ["process 0 of 2 lost another one: it was killed"]),
    ],
)
def test_a_process_that_fails_ends_the_others_within_seconds(project, trouble, codes, expected):
    overrides = ["MASKER.NAME", "TroubleMasker", "MASKER.trouble", trouble]
    started = time.monotonic()
    ended = run_processes(run_as, world(project, *overrides))
    require_one_line(ended, *expected, codes=codes)
    assert time.monotonic() - started < 30
    assert ended[0].out.count("json_stats") == 2  # of the updates before


@pytest.mark.slow
def test_an_exchange_waits_no_longer_than_it_is_told(project, monkeypatch):
    """Process 1 hangs in its own code; DIST_TIMEOUT ends both."""
    monkeypatch.setattr("vimpac_ext.engine.distributed._SECONDS_TO_END", 1.0)
    overrides = ["MASKER.NAME", "TroubleMasker", "MASKER.trouble", "hang", "DIST_TIMEOUT", "8"]
    started = time.monotonic()
    ended = run_processes(run_as, world(project, *overrides))
    require_one_line(ended, "process 0 of 2 waited for another one longer than DIST_TIMEOUT")
    assert time.monotonic() - started > 8  # and less than `run_processes` allows
    assert ended[0].out.count("json_stats") == 2


def test_a_process_that_hangs_is_ended_when_another_has_failed(project, monkeypatch):
    """Process 1 fails, process 0 is in a call that never returns."""
    monkeypatch.setattr("vimpac_ext.engine.distributed._SECONDS_TO_END", 1.0)

    def hang_or_fail(loaded, local_rank):
        if local_rank == 0:
            time.sleep(1000)
        raise ValueError("gone")

    monkeypatch.setattr("vimpac_ext.engine.processes.run", hang_or_fail)
    require_one_line(run_processes(run_as, world(project), timeout=30), "gone")


class SlowStore:
    """Its calls take a while, as under load; one that is under way is noted."""

    is_busy = False

    def clone(self):
        return self

    def check(self, keys):
        self.is_busy = True
        time.sleep(0.3)
        self.is_busy = False
        return False


def test_no_thread_is_inside_the_store_when_the_process_ends():
    """The interpreter's end would abort the process, "terminate called ..."."""
    store = SlowStore()
    watch = _Watch(store, rank=0)
    until = time.monotonic() + 10
    while not store.is_busy:
        assert time.monotonic() < until
        time.sleep(0.01)
    watch.stop()
    assert not store.is_busy
    assert "watch" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(("first", "end"), [(True, LostProcessError), (False, SystemExit)])
def test_nor_when_it_ends_since_another_is_gone(monkeypatch, first, end):
    membership = Membership(Placement(1, 2, 1, "127.0.0.1", 1, False, "torchrun"))
    membership._watch = _Watch(SlowStore(), rank=1)
    monkeypatch.setattr(membership._watch, "waits_for_failure", lambda: False)
    monkeypatch.setattr(membership, "tell_of_failure", lambda: first)
    with pytest.raises(end), membership:
        raise torch.distributed.DistError("timed out")
    assert "watch" not in [thread.name for thread in threading.enumerate()]


def test_different_configurations_are_refused(project, tmp_path):
    others = ("SOLVER.BASE_LR", "0.5", "TRAIN.BATCH_SIZE", "2")
    ended = run_processes(run_as, world(project, others=others))
    changes = "SOLVER.BASE_LR 0.01 -> 0.5; TRAIN.BATCH_SIZE 4 -> 2"
    require_one_line(ended, f"different configurations (process 0 -> process 1): {changes}")
    assert not (tmp_path / "pretrain").exists()


def test_a_mistake_in_the_configuration_is_told_once(project):
    ended = run_processes(run_as, world(project, "TRAIN.BACH_SIZE", "2"))
    require_one_line(ended, "did you mean 'TRAIN.BATCH_SIZE'")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["TRAIN.BATCH_SIZE", "3"], "TRAIN.BATCH_SIZE is 3, which cannot be divided among 2"),
        (["TRAIN.MICRO_BATCH_SIZE", "1"], "TRAIN.MICRO_BATCH_SIZE is 1, which cannot be divided"),
        (["TRAIN.BATCH_SIZE", "16"], "only 8 training videos"),
        (["OUTPUT_DIR", "{}/data/train.csv"], "train.csv' cannot be written: File exists"),
        (["OUTPUT_DIR", "{}/data/train.csv/x"], "cannot be written: Not a directory"),
    ],
)
def test_what_does_not_fit_is_one_line(project, tmp_path, overrides, expected):
    overrides = [word.format(tmp_path) for word in overrides]
    ended = run_processes(run_as, world(project, *overrides))
    require_one_line(ended, expected)


def test_more_processes_than_videos(project):
    ended = run_processes(run_as, world(project, "TRAIN.BATCH_SIZE", "9", size=3))
    require_one_line(ended, "only 8 training videos", codes=(1, 1, 1))


def test_a_port_in_use_and_missing_processes_are_named(project):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = run_processes(run_as, world(project, port=port)[:1])
        require_one_line(ended, f"port {port} of 127.0.0.1 is in use", codes=(1,))
    first, second = world(project, "DIST_TIMEOUT", "1.0")
    require_one_line(run_processes(run_as, [first]), "1 of 2 processes (torchrun)", codes=(1,))
    require_one_line(run_processes(run_as, [second]), "process 1 of 2", "found nobody", codes=(1,))


def with_limited_files(limit, place, request):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run_as(place, request)


def test_a_full_disk_is_named(project, tmp_path):
    """A limit of the file size stands for the disk."""
    calls = [(20_000, *call) for call in world(project)]
    ended = run_processes(with_limited_files, calls)
    require_one_line(ended, "cannot write", "checkpoint_epoch_00001.pyth", "File too large")
    assert not list((tmp_path / "pretrain/checkpoints").iterdir())


def test_a_checkpoint_of_another_configuration_is_refused(project):
    run(prepare(project / "pretrain.yaml"))
    for overrides, expected in (
        (["BACKBONE.embed_dim", "32"], "another model"),
        (["TRAIN.BATCH_SIZE", "2"], "was trained with TRAIN.BATCH_SIZE 4, this run has 2"),
        (["RNG_SEED", "1"], "was trained with RNG_SEED 0, this run has 1"),
    ):
        ended = run_processes(run_as, world(project, *overrides))
        require_one_line(ended, expected, "choose another OUTPUT_DIR")
