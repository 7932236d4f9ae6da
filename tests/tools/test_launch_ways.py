"""Every way to start several processes, as a user types it, on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoint_hash import content_hash
from processes import free_port
from tiny_project import make_tiny_project

from vimpac_ext.engine import prepare, run

ROOT = Path(__file__).resolve().parents[2]
RUN_NET = [sys.executable, str(ROOT / "tools/run_net.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]

SLOW_MASKER = """
import os, time, torch
from vimpac_ext.registries import MASKERS

@MASKERS.register()
class SlowMasker:
    def __call__(self, tokens, generator):
        time.sleep(float(os.environ.get("SECONDS_OF_A_MASK", "0.3")))
        return torch.rand(tokens.shape, generator=generator) < 0.3
"""
SLOW = ["MASKER.NAME", "SlowMasker", "PLUGINS", "[slow_masker]", "SOLVER.MAX_EPOCH", "8"]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "slow_masker.py").write_text(SLOW_MASKER)
    return make_tiny_project(tmp_path)


def start(words, folder, **environment):
    path = os.pathsep.join([str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        list(map(str, words)),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """Exit codes, and all that was printed."""
    outputs = [process.communicate(timeout=400) for process in processes]
    text = "".join(out + err for out, err in outputs)
    return [process.returncode for process in processes], text


def losses(folder):
    path = folder / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [line["loss"] for line in lines]


def await_updates(folder, number):
    until = time.monotonic() + 120
    while len(losses(folder)) < number:
        assert time.monotonic() < until, f"no update {number} in {folder}"
        time.sleep(0.05)


def srun_environment(rank, job):
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "localhost",
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", ["local", "torchrun", "srun", "shards"])
def test_every_way_gives_the_losses_of_one_process(project, tmp_path, way):
    base = ["--cfg", project / "pretrain.yaml", "BACKBONE.dropout", "0.0"]
    base += ["HEADS.contrast", "null", "LOSSES.contrast", "null", "OUTPUT_DIR"]
    run(prepare(base[1], [*map(str, base[2:]), str(tmp_path / "one")]))
    words = [*base, tmp_path / way]
    if way == "local":
        processes = [start([*RUN_NET, *words, "NUM_CPU_PROCESSES", "2"], tmp_path)]
    elif way == "torchrun":
        processes = [start([*TORCHRUN, "--standalone", RUN_NET[1], *words], tmp_path)]
    elif way == "srun":
        tasks = [srun_environment(rank, free_port()) for rank in (0, 1)]
        tasks[1]["SLURM_JOB_ID"] = tasks[0]["SLURM_JOB_ID"]
        processes = [start([*RUN_NET, *words], tmp_path, **task) for task in tasks]
    else:
        meet = ["--num_shards", 2, "--init_method", f"tcp://127.0.0.1:{free_port()}"]
        processes = [start([*RUN_NET, *meet, "--shard_id", i, *words], tmp_path) for i in (0, 1)]
    codes, text = finish(*processes)
    assert set(codes) == {0}, text
    assert text.count("json_stats") == 4
    assert losses(tmp_path / way) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def processes_below(pid):
    """Child processes, without those of Python's own bookkeeping."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    return [child for child, command in commands.items() if "resource_tracker" not in command]


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "parent"])
def test_local_processes_end_together(project, tmp_path, victim):
    """A killed rank ends the run; if the parent is killed the ranks save and stop."""
    words = ["--cfg", project / "pretrain.yaml", *SLOW, "NUM_CPU_PROCESSES", "2"]
    parent = start([*RUN_NET, *words], tmp_path)
    await_updates(tmp_path / "pretrain", 3)
    ranks = processes_below(parent.pid)
    assert len(ranks) == 2
    started = time.monotonic()
    os.kill(ranks[1] if victim == "rank" else parent.pid, signal.SIGKILL)
    (code,), text = finish(parent)
    while any(map(alive, ranks)):
        assert time.monotonic() - started < 40, "ranks are left over"
        time.sleep(0.1)
    assert time.monotonic() - started < 40
    if victim == "rank":
        assert code == 1
        assert text.count("error: ") == 1
        assert "error: process 1 of this machine was killed by SIGKILL" in text
    else:
        assert code == -signal.SIGKILL
        assert "stopped by SIGTERM after update" in text
        assert len(list((tmp_path / "pretrain/checkpoints").glob("*_0000*.pyth"))) > 0


@pytest.mark.slow
def test_ctrl_c_saves_in_all_processes(project, tmp_path):
    words = ["--cfg", project / "pretrain.yaml", *SLOW, "NUM_CPU_PROCESSES", "2"]
    parent = start([*RUN_NET, *words], tmp_path)
    await_updates(tmp_path / "pretrain", 3)
    os.kill(parent.pid, signal.SIGINT)
    (code,), text = finish(parent)
    assert code == 130
    assert text.count("error: ") == text.count("error: stopped by SIGTERM after update") == 1
    codes, text = finish(start([*RUN_NET, *words], tmp_path, SECONDS_OF_A_MASK="0"))
    assert codes == [0], text
    assert "resumed from" in text
    assert len(losses(tmp_path / "pretrain")) == 16


@pytest.mark.slow
def test_torchrun_restarts_continue(project, tmp_path):
    """--max_restarts: a killed process costs the updates since the last checkpoint, no more."""
    words = ["--cfg", project / "pretrain.yaml", *SLOW, "TRAIN.CHECKPOINT_PERIOD_STEPS", "1"]
    elastic = [*TORCHRUN, "--max_restarts", "1", "--rdzv_backend", "c10d"]
    elastic += ["--rdzv_endpoint", f"127.0.0.1:{free_port()}"]
    agent = start([*elastic, RUN_NET[1], *words], tmp_path)
    await_updates(tmp_path / "pretrain", 5)
    os.kill(processes_below(agent.pid)[0], signal.SIGKILL)
    (code,), text = finish(agent)
    assert code == 0, text
    assert "resumed from" in text
    assert len(losses(tmp_path / "pretrain")) == 16


@pytest.mark.slow
def test_a_rehearsal_of_the_cluster(project, tmp_path):
    """A job of two processes is preempted, then loses one of them, and ends as if it had not."""
    pytest.importorskip("submitit")
    base = ["--cfg", project / "pretrain.yaml", *SLOW, "NUM_CPU_PROCESSES", "2", "OUTPUT_DIR"]
    codes, text = finish(start([*RUN_NET, *base, tmp_path / "whole"], tmp_path))
    assert codes == [0], text
    tool = [sys.executable, ROOT / "tools/submit.py", "--cluster", "local", "--wait"]
    folder = tmp_path / "broken"
    submitted = start([*tool, "--folder", tmp_path / "jobs", *base, folder], tmp_path)
    await_updates(folder, 4)
    (controller,) = processes_below(submitted.pid)
    (task,) = processes_below(controller)
    os.kill(task, signal.SIGUSR1)
    await_updates(folder, 9)
    (again,) = processes_below(controller)
    assert again != task
    os.kill(processes_below(again)[1], signal.SIGKILL)
    (code,), text = finish(submitted)
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_log.*"))
    assert code == 0, text + logs
    assert logs.count("resumed from") == 2
    assert "stopped by SIGUSR1 after update" in logs
    assert "killed by SIGKILL" in logs
    assert losses(folder) == losses(tmp_path / "whole")
    assert content_hash(folder) == content_hash(tmp_path / "whole")


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_queued_again(project, tmp_path):
    """The shortest limit is a minute, of which the last half is for saving."""
    pytest.importorskip("submitit")
    base = ["--cfg", project / "pretrain.yaml", *SLOW, "NUM_CPU_PROCESSES", "2"]
    base += ["SOLVER.MAX_EPOCH", "50", "OUTPUT_DIR"]
    whole = start([*RUN_NET, *base, tmp_path / "whole"], tmp_path, SECONDS_OF_A_MASK="0")
    codes, text = finish(whole)
    assert codes == [0], text
    tool = [sys.executable, ROOT / "tools/submit.py", "--cluster", "local", "--wait"]
    tool += ["--minutes", "1", "--folder", tmp_path / "jobs"]
    (code,), text = finish(start([*tool, *base, tmp_path / "broken"], tmp_path))
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_log.*"))
    assert code == 0, text + logs
    assert "after update" in logs
    assert logs.count("resumed from") >= 1  # as often as a slow machine needs
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert content_hash(tmp_path / "broken") == content_hash(tmp_path / "whole")


@pytest.mark.slow
def test_a_job_with_an_error_is_not_queued_again(project, tmp_path):
    pytest.importorskip("submitit")
    tool = [sys.executable, ROOT / "tools/submit.py", "--cluster", "local", "--wait"]
    words = ["--folder", tmp_path / "jobs", "--cfg", project / "pretrain.yaml"]
    (code,), _ = finish(start([*tool, *words, "TRAIN.BATCH_SIZE", "64"], tmp_path))
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_log.*"))
    assert code == 1
    assert logs.count("only 8 training videos") == 1
    (code,), text = finish(start([*tool, *words, "TRAIN.BACH_SIZE", "64"], tmp_path))
    assert (code, "did you mean 'TRAIN.BATCH_SIZE'" in text) == (1, True)
