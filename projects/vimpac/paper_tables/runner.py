"""Runs stages in processes of their own: resumes, shares, reports failures, stops cleanly."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paper_tables.hardware import code_version, hardware
from paper_tables.spec import PROJECT, REPOSITORY
from paper_tables.stages import Stage, shown
from vimpac_ext.files import atomic_write

RECORD = "stage.json"  # written when a stage is done
FAILURE = "failed.json"  # written when it failed, removed when it is done
LOG = "log.txt"  # what its processes printed
_SECONDS = "seconds.json"  # spent so far, over interrupted attempts
_FIRST_POLL, _LAST_POLL = 0.05, 1.0  # seconds
_GRACE_SECONDS = 30  # for a stage to end after an interruption
_PACKAGES = ("torch", "numpy", "av")


class StageError(RuntimeError):
    """A stage failed; the message is the reason that it gave."""


def record_of(stage: Stage) -> dict[str, Any] | None:
    """What was written when the stage was finished; None if it is not."""
    path = stage.folder / RECORD
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record.get("name") == stage.name else None


def is_done(stage: Stage) -> bool:
    """Whether there is nothing left to do for a stage."""
    if record_of(stage) is not None:
        return True
    # A store of the user's own is taken as it is; one that was begun here is completed.
    begun = (stage.folder / LOG).is_file()
    return bool(stage.produced) and not begun and (Path(stage.produced) / "meta.json").is_file()


class Runner:
    """Runs the stages of rows one after the other, each at most once.

    Args:
        say: prints a line of progress.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.failures: dict[str, str] = {}  # stage -> "stage that failed: reason"

    def run(self, stages: Sequence[Stage]) -> None:
        """Runs what is not done; a failure is kept in `failures`, and other stages go on.

        Args:
            stages: each after what it needs; one that several rows need may be given several times.

        Raises:
            KeyboardInterrupt: when stopped; the running stage was told to stop, too.
        """
        named = {stage.name: stage for stage in stages}
        todo = [stage for stage in named.values() if not is_done(stage)]
        self.say(f"{len(named)} stages, {len(named) - len(todo)} of them done before")
        for stage in todo:
            (stage.folder / FAILURE).unlink(missing_ok=True)  # it has another chance
        clock = _Remaining(todo)
        for number, stage in enumerate(todo, start=1):
            broken = [needed.name for needed in stage.needs if needed.name in self.failures]
            if broken:
                self._fail(stage, self.failures[broken[0]])
                self.say(f"[{number}/{len(todo)}] {stage.name}: not started, {broken[0]} failed")
                continue
            self.say(f"[{number}/{len(todo)}] {stage.name}{clock.estimate(number - 1)}")
            try:
                seconds = self._run_stage(stage)
            except StageError as error:
                self._fail(stage, f"{stage.name}: {error}")
                self.say(f"  failed: {error}\n  see {stage.folder / LOG}")
                continue
            clock.add(stage.kind, seconds)
            self.say(f"  done in {seconds:.0f} s")

    def _fail(self, stage: Stage, reason: str) -> None:
        self.failures[stage.name] = reason
        _write_json(stage.folder / FAILURE, {"reason": reason})

    def _run_stage(self, stage: Stage) -> float:
        """Runs one stage to its end; returns its seconds over all attempts."""
        stage.folder.mkdir(parents=True, exist_ok=True)
        with _locked(stage.folder, self.say):
            if is_done(stage):  # by another runner, while this one waited
                return 0.0
            before = _seconds(stage.folder)
            started, cpu_started = time.perf_counter(), _cpu_seconds()
            load = os.getloadavg()[0]
            try:
                self._execute(stage)
            finally:
                spent = {
                    "seconds": before["seconds"] + time.perf_counter() - started,
                    "cpu_seconds": before["cpu_seconds"] + _cpu_seconds() - cpu_started,
                    "load": max(before["load"], load, os.getloadavg()[0]),
                }
                spent = {name: round(value, 2) for name, value in spent.items()}
                _write_json(stage.folder / _SECONDS, spent)
            _write_json(stage.folder / RECORD, _record(stage, spent))
            (stage.folder / FAILURE).unlink(missing_ok=True)
        return spent["seconds"]

    def _execute(self, stage: Stage) -> None:
        log = stage.folder / LOG
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shown(stage.command)}\n")
            file.flush()
            start = file.tell()
            with _Stop() as stop:
                process = subprocess.Popen(
                    stage.command, stdout=file, stderr=subprocess.STDOUT, env=_environment()
                )
                code = _wait(process, stop, stage.folder / "metrics.jsonl")
        if stop.asked:
            raise KeyboardInterrupt
        if code:
            with log.open("rb") as written:
                written.seek(start)
                raise StageError(_reason(written.read().decode("utf-8", "replace"), code))


@contextlib.contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Only one runner works in a folder; another one waits until it is done."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  another runner is working on {folder.name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Stop:
    """Remembers Ctrl-C and a scheduler's SIGTERM until the running stage was told, too.

    An exception out of the handler could come anywhere, even between a lock of `subprocess` and
    its release, after which no wait returns.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # e.g. SIGINT in the background
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _remember(self, *_: object) -> None:
        self.asked = True


def _wait(process: subprocess.Popen, stop: _Stop, metrics: Path) -> int:
    """Waits for the end, with the newest update on a terminal; returns the exit code."""
    shows = sys.stdout.isatty()
    poll, deadline = _FIRST_POLL, float("inf")
    while True:
        try:
            return process.wait(poll)
        except subprocess.TimeoutExpired:
            poll = min(2 * poll, _LAST_POLL)
        if stop.asked and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_SECONDS
            process.terminate()
        if time.monotonic() > deadline:
            process.kill()
        if shows:
            sys.stdout.write(f"\r  {_newest(metrics):60}\r")
            sys.stdout.flush()


def _newest(metrics: Path) -> str:
    """Epoch and iteration of the last line of a run's metrics."""
    if not metrics.is_file():
        return ""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    try:
        last = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return ""
    return f"epoch {last.get('epoch', '')}, update {last.get('update', '')}"


def _reason(printed: str, code: int) -> str:
    """The error that a stage's output ends with, in one line."""
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    lines = [line for line in printed.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    said = lines[starts[-1] :] if starts else lines[-1:]
    return " ".join(line.strip() for line in said) or f"exit code {code}"


def _environment() -> dict[str, str]:
    paths = [str(REPOSITORY), str(PROJECT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _record(stage: Stage, spent: Mapping[str, float]) -> dict[str, Any]:
    """What is written of a finished stage.

    "seconds" are by the clock, "cpu_seconds" of its processes; "load" is the larger one of the
    machine's load averages (1 minute) at the start and at the end. More than the stage's threads
    means that it shared the machine, so that "seconds" say more of that than of the stage.
    """
    return {
        "name": stage.name,
        **spent,
        "cores": os.cpu_count(),
        "hardware": hardware(stage.device),
        "code": code_version(REPOSITORY),
        "command": shown(stage.command),
        "needs": [needed.name for needed in stage.needs],
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _cpu_seconds() -> float:
    """Of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _seconds(folder: Path) -> dict[str, float]:
    """What interrupted attempts took."""
    path = folder / _SECONDS
    spent = {"seconds": 0.0, "cpu_seconds": 0.0, "load": 0.0}
    return {**spent, **json.loads(path.read_text())} if path.is_file() else spent


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


class _Remaining:
    """Guesses how long the rest takes, from the stages of each kind that were run."""

    def __init__(self, todo: Sequence[Stage]) -> None:
        self.kinds = [stage.kind for stage in todo]
        self.seconds: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)

    def estimate(self, done: int) -> str:
        rest = self.kinds[done:]
        if any(kind not in self.seconds for kind in rest):
            return ""
        means = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        return f" (about {sum(means[kind] for kind in rest) / 60:.0f} min left)"
