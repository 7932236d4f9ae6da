"""Training jobs on a SLURM cluster, or on this machine in its place (through submitit)."""

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vimpac_ext.config import ConfigError
from vimpac_ext.engine.local_processes import ProcessDiedError
from vimpac_ext.engine.placement import Shard, slurm_address
from vimpac_ext.engine.processes import RunRequest, start_processes
from vimpac_ext.engine.stopping import EXIT_CODE_STOPPED

_logger = logging.getLogger(__name__)

# After such a signal the job queues again. After SIGTERM it only saves: the scheduler sends it to
# a job that was cancelled, too, and queues preempted ones again by itself.
_PREEMPTIONS = (signal.SIGUSR1, signal.SIGUSR2)
_SECONDS_TO_BE_QUEUED = 600.0


class JobError(RuntimeError):
    """A job that failed and is not queued again."""


@dataclass
class TrainingJob:
    """What submitit calls on every node: starts the node's processes and looks after them.

    When the job is preempted or its time is over the processes save, and it is queued again; also
    when one of them was killed, say by a node that ran out of memory, at most ``kills_left`` times.
    An error of the run itself ends the job.

    Attributes:
        request: one configuration.
        kills_left: how often a killed process does not end the job.
    """

    request: RunRequest
    kills_left: int = 3

    def __call__(self) -> None:
        """Runs on one node of the job, under submitit."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        received: list[int] = []
        (loaded,) = self.request.prepare()
        shard = _shard(environment.node, environment.num_nodes)
        try:
            code = start_processes(self.request, loaded.cfg, shard, received.append)
        except ProcessDiedError as error:
            # A preemption that comes while nothing is trained, say in the test, ends a process.
            if not _is_preemption(received):
                if self.kills_left == 0:
                    raise
                self.kills_left -= 1
            _logger.warning("%s; the job is queued again", error)
            self._queue_again(environment)
        if code == EXIT_CODE_STOPPED and _is_preemption(received):
            self._queue_again(environment)
        if code:
            raise JobError(f"the run ended with exit code {code}; its error is in this log")

    def checkpoint(self) -> Any:
        """Called by submitit before it queues the job again; the checkpoint is written already."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self))

    def _queue_again(self, environment: Any) -> None:
        """Raises the signal at which submitit's own handler queues the job again and exits."""
        os.kill(os.getpid(), getattr(signal, f"SIG{environment.USR_SIG}"))
        time.sleep(_SECONDS_TO_BE_QUEUED)  # on the other nodes, until node 0's takes effect
        raise JobError(f"the job was not queued again within {_SECONDS_TO_BE_QUEUED:g} s")


def _is_preemption(received: Sequence[int]) -> bool:
    return any(signum in _PREEMPTIONS for signum in received)


def _shard(node: int, num_nodes: int) -> Shard:
    if num_nodes == 1:
        return Shard()
    host, port = slurm_address(os.environ)
    return Shard(node, num_nodes, f"tcp://{host}:{port}")


def submit(
    requests: Sequence[RunRequest],
    folder: Path,
    cluster: str,
    minutes: int,
    parameters: Mapping[str, Any],
    max_requeues: int = 100,
) -> list[Any]:
    """Submits one job for each request; on SLURM they form an array.

    Args:
        requests: of one configuration each, which are checked here, before anything is queued.
        folder: for logs and submitit's files; must be seen by all nodes.
        cluster: "slurm", or "local" for processes on this machine.
        minutes: after which a job saves and is queued again.
        parameters: of submitit's executor, e.g. nodes, cpus_per_task, slurm_partition.
        max_requeues: how often a job may run out of time.

    Returns:
        submitit's jobs.

    Raises:
        ConfigError: for a mistake in a configuration or a parameter, different NUM_GPUS, or the
            same OUTPUT_DIR.
        ImportError: if submitit is not installed.
    """
    cfgs = [request.prepare()[0].cfg for request in requests]
    folders = Counter(os.path.realpath(cfg.OUTPUT_DIR) for cfg in cfgs)
    shared, jobs = folders.most_common(1)[0]
    if jobs > 1:
        raise ConfigError(f"jobs that run at the same time must not share OUTPUT_DIR {shared!r}")
    num_gpus = [cfg.NUM_GPUS for cfg in cfgs]
    if len(set(num_gpus)) > 1:
        files = (request.files[0] for request in requests)
        listed = ", ".join(f"{file}: {n}" for file, n in zip(files, num_gpus, strict=True))
        raise ConfigError(f"jobs of one array must have one NUM_GPUS, found {listed}")
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise ImportError("submitit is missing: pip install 'vimpac_ext[cluster]'") from error
    requeues = {f"{cluster}_max_num_timeout": max_requeues}
    executor = AutoExecutor(folder, cluster=cluster, **requeues)
    given = {
        "timeout_min": minutes,
        "tasks_per_node": 1,  # which starts a process for each GPU
        "gpus_per_node": num_gpus[0],
    }
    for name in given.keys() & parameters.keys():
        raise ConfigError(
            f"--parameter {name}: it is {given[name]}, which follows from --minutes, from "
            "NUM_GPUS, and from one task on each machine, which starts the processes"
        )
    try:
        executor.update_parameters(**given, **parameters)
    except (NameError, AssertionError) as error:  # so submitit says that a name or value is wrong
        raise ConfigError(f"--parameter: {error}") from error
    with executor.batch():
        return [executor.submit(TrainingJob(request)) for request in requests]
