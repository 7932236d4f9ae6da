"""tools/submit.py without a cluster: what is refused, and what becomes of a job that ends early."""

import contextlib
import json
import signal
from types import SimpleNamespace

import pytest
from tiny_project import make_tiny_project

from vimpac_ext.config import ConfigError
from vimpac_ext.engine import submit as module
from vimpac_ext.engine.local_processes import ProcessDiedError
from vimpac_ext.engine.processes import RunRequest
from vimpac_ext.engine.submit import JobError, TrainingJob, submit

submitit = pytest.importorskip("submitit")


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


def requests(project, *overrides):
    files = (project / "pretrain.yaml", project / "finetune.yaml")
    return [RunRequest((str(file),), overrides) for file in files]


@pytest.mark.parametrize(
    ("overrides", "parameters", "message"),
    [
        (["OUTPUT_DIR", "here"], {}, "must not share OUTPUT_DIR .*here"),
        ([], {"timeout_min": 5}, "--parameter timeout_min: it is 60, which follows from --minutes"),
        ([], {"gpus_per_node": 2}, "--parameter gpus_per_node: it is 0"),
        ([], {"partitoin": "gpu"}, "--parameter: Parameter 'partitoin' need to be prefixed"),
        ([], {"slurm_partitoin": "gpu"}, "Unknown argument 'partitoin'"),
        ([], {"mem_gb": "much"}, '--parameter: Parameter "mem_gb" expected type'),
    ],
)
def test_what_makes_no_sense_is_refused(project, tmp_path, overrides, parameters, message):
    with pytest.raises(ConfigError, match=message):
        submit(requests(project, *overrides), tmp_path / "jobs", "local", 60, parameters)


class Executor:
    """In place of submitit's: keeps what is submitted."""

    def __init__(self, folder, **options):
        self.parameters = {}

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def batch(self):
        return contextlib.nullcontext()

    def submit(self, job):
        return job, self.parameters


def test_one_file_may_be_trained_twice_into_different_folders(project, tmp_path, monkeypatch):
    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    file = str(project / "pretrain.yaml")
    two = [RunRequest((file,), ("OUTPUT_DIR", name, "NUM_GPUS", "1")) for name in ("a", "b")]
    jobs = submit(two, tmp_path / "jobs", "local", 60, {"nodes": 1})
    assert [job.request for job, _ in jobs] == two
    assert jobs[0][1] == {"timeout_min": 60, "tasks_per_node": 1, "gpus_per_node": 1, "nodes": 1}
    with pytest.raises(ConfigError, match="must not share OUTPUT_DIR .*/a'"):
        submit([*two, two[0]], tmp_path / "jobs", "local", 60, {})
    two[1] = RunRequest((file,), ("OUTPUT_DIR", "b"))
    with pytest.raises(ConfigError, match=r"one NUM_GPUS, found .*yaml: 1, .*yaml: 0"):
        submit(two, tmp_path / "jobs", "local", 60, {})


class QueuedError(Exception):
    """In place of submitit's handler, which queues the job again and exits."""


@pytest.mark.parametrize(
    ("signum", "outcome", "kills_left", "expected"),
    [
        (signal.SIGUSR1, 75, 3, (QueuedError, 3)),  # saved
        (signal.SIGTERM, 75, 3, (JobError, 3)),  # cancelled, or SLURM queues it again itself
        (0, ProcessDiedError("killed"), 3, (QueuedError, 2)),
        (0, ProcessDiedError("killed"), 0, (ProcessDiedError, 0)),
        (signal.SIGUSR2, ProcessDiedError("killed"), 0, (QueuedError, 0)),  # no fault of the job
        (signal.SIGUSR1, 1, 3, (JobError, 3)),  # an error of the run
        (0, 0, 3, (None, 3)),
    ],
)
def test_when_a_job_is_queued_again(project, monkeypatch, signum, outcome, kills_left, expected):
    def start_processes(request, cfg, shard, on_signal):
        if signum:
            on_signal(signum)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def queue(number, frame):
        raise QueuedError

    environment = SimpleNamespace(node=0, num_nodes=1, USR_SIG="USR2")
    monkeypatch.setattr(module, "start_processes", start_processes)
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: environment)
    job = TrainingJob(requests(project)[0], kills_left)
    before = signal.signal(signal.SIGUSR2, queue)
    try:
        error, left = expected
        if error is None:
            job()
        else:
            with pytest.raises(error):
                job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert job.kills_left == left
    assert job.checkpoint().function == job  # what is queued


@pytest.mark.slow
def test_an_array_of_configurations(project, tmp_path):
    """Two jobs side by side; the first fails and does not take the other with it."""
    jobs = submit(
        [
            RunRequest((str(project / "finetune.yaml"),), ()),  # its checkpoint is missing
            RunRequest((str(project / "pretrain.yaml"),), ()),
        ],
        tmp_path / "jobs",
        "local",
        5,
        {},
    )
    for job in jobs:
        job.wait()
    assert "TRAIN.CHECKPOINT_FILE_PATH: no checkpoint in" in jobs[0].stdout() + jobs[0].stderr()
    assert jobs[0].exception() is not None
    assert jobs[1].exception() is None
    lines = (tmp_path / "pretrain/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1, 2, 3, 4]
