"""A training in stages continues in any of them on a machine that has nothing but REMOTE_DIR."""

import logging
import shutil
import signal

import pytest
import torch
from processes import in_processes
from test_remote import PLUGIN
from test_remote import storage as storage  # noqa: PLC0414  (a fixture)
from test_resume import flip_a_byte, lines, start, weights
from test_stages import config, write_large_store
from tiny_project import make_tiny_project

from vimpac_ext.config import ConfigError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import CheckpointError, find_checkpoint
from vimpac_ext.engine.remote import Mirror

LAST_OF_0 = "stage_0/checkpoints/checkpoint_epoch_00003.pyth"
REMOTE = [*PLUGIN, "REMOTE_DIR", "fake://runs/a"]


@pytest.fixture
def project(tmp_path):
    make_tiny_project(tmp_path)
    write_large_store(tmp_path / "tokens_large")
    return tmp_path


def require_equal_weights(folder, expected):
    found = weights(folder)
    for name, value in weights(expected).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_another_machine_continues_in_any_stage(project, storage, size):
    path = config(project, TRAIN={"CHECKPOINT_PERIOD_STEPS": 3, "KEEP_CHECKPOINTS": 2})
    whole, broken = project / "whole", project / "staged"
    ended = start(path, ["OUTPUT_DIR", str(whole)], size)
    assert [process.code for process in ended] == [0] * size, ended
    # The first stage has six updates, the second eight: in the first; writing its last checkpoint;
    # in the second before it has a checkpoint; after it has some.
    for moment in (4, -6, 2, 7):
        ended = start(path, REMOTE, size, 0, signal.SIGKILL, moment)
        assert ended[0].code == -signal.SIGKILL, ended
        begun = (storage / "runs/a/stage_1/checkpoints").exists()
        assert begun == (moment == 7)
        shutil.rmtree(broken)  # as if on another machine
    ended = start(path, REMOTE, size)
    assert [process.code for process in ended] == [0] * size, ended
    assert "took stage_1/checkpoint_epoch_00001_update_00000006.pyth" in ended[0].out
    remote = storage / "runs/a"
    for stage, updates in (("stage_0", 6), ("stage_1", 8)):
        assert lines(broken / stage) == lines(remote / stage) == lines(whole / stage)
        assert len(lines(broken / stage)) == updates
        require_equal_weights(remote / stage, whole / stage)
        assert len(list((remote / stage / "checkpoints").iterdir())) == 2
    for file in broken.rglob("*.*"):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".lock":
            assert (remote / file.relative_to(broken)).read_bytes() == file.read_bytes(), file
    log = (remote / "stdout.log").read_text()
    assert log.count("stage 0 (of 0 to 1)") == 4  # of all machines but the last
    assert log.count("stage 1 (of 0 to 1)") == 2  # what the third wrote after its copy is lost
    # What it left can be used from there.
    found = find_checkpoint("fake://runs/a")
    assert found.read_bytes() == find_checkpoint(broken).read_bytes()


@pytest.mark.slow
def test_a_damaged_copy_of_a_stage_is_passed_over(project, storage, caplog):
    caplog.set_level(logging.INFO)
    loaded = prepare(config(project), REMOTE)
    run(loaded)
    older, newest = sorted((storage / "runs/a/stage_1/checkpoints").iterdir())
    flip_a_byte(newest)
    shutil.copytree(project / "staged", project / "whole")
    shutil.rmtree(project / "staged")
    caplog.clear()
    run(loaded)
    assert caplog.text.count("is damaged") == 1
    assert f"took stage_1/{older.name}" in caplog.text
    assert lines(project / "staged/stage_1") == lines(project / "whole/stage_1")
    require_equal_weights(project / "staged/stage_1", project / "whole/stage_1")
    for path in (older, newest):  # none is left: the stage would start again beside them
        flip_a_byte(path)
    shutil.rmtree(project / "staged")
    with pytest.raises(CheckpointError, match="fake://runs/a has checkpoints that this run does"):
        run(loaded)
    assert "took stage_0/checkpoint_epoch_00003.pyth" in caplog.text


def test_newer_work_of_this_machine_is_kept(project, storage):
    """This machine is in the second stage, the copy, as the connection was lost, in the first."""
    path = config(project)
    run(prepare(path))
    (storage / "runs/a" / LAST_OF_0).parent.mkdir(parents=True)
    (storage / "runs/a" / LAST_OF_0).write_bytes(b"old")
    expected = lines(project / "staged/stage_1")
    run(prepare(path, REMOTE))
    assert lines(project / "staged/stage_1") == expected
    copied = (storage / "runs/a" / LAST_OF_0).read_bytes()
    assert copied == (project / "staged" / LAST_OF_0).read_bytes()


def test_logs_of_the_run_come_with_a_newer_checkpoint(tmp_path, storage):
    """This machine has begun the stage, another one has got further in it."""
    folder = tmp_path / "out"
    for place, number in ((folder, 1), (storage / "run", 2)):
        checkpoints = place / "stage_1/checkpoints"
        checkpoints.mkdir(parents=True)
        torch.save({}, checkpoints / f"checkpoint_epoch_0000{number}.pyth")
        for log in ("stdout.log", "stage_0/metrics.jsonl", "stage_1/metrics.jsonl"):
            (place / log).parent.mkdir(exist_ok=True)
            (place / log).write_text(f"{number} in {log}")
    Mirror(folder, "fake://run").fetch(["stage_0", "stage_1"])
    assert (folder / "stage_1/checkpoints/checkpoint_epoch_00002.pyth").is_file()
    for log in ("stdout.log", "stage_0/metrics.jsonl", "stage_1/metrics.jsonl"):
        assert (folder / log).read_text() == f"2 in {log}"


def run_in(path, folders):
    """A process with a disk of its own."""
    run(prepare(path, [*REMOTE, "OUTPUT_DIR", str(folders[torch.distributed.get_rank()])]))


@pytest.mark.slow
def test_machines_without_a_common_disk_pass_stages_on(project, storage):
    """The second one has not written the checkpoint that the second stage starts from."""
    path = config(project)
    folders = [project / "one", project / "two"]
    in_processes(2, run_in, path, folders)
    assert (folders[1] / LAST_OF_0).read_bytes() == (folders[0] / LAST_OF_0).read_bytes()
    assert len(lines(folders[0] / "stage_1")) == 8


def test_a_copy_of_a_run_without_stages_is_refused(project, storage):
    words = [*REMOTE, "OUTPUT_DIR", str(project / "other"), "SOLVER.MAX_EPOCH", "1"]
    run(prepare(project / "configs/pretrain.yaml", words))
    with pytest.raises(ConfigError, match="'fake://runs/a' has checkpoints of a run without TRAIN"):
        run(prepare(config(project), REMOTE))
    assert not (project / "staged").exists()
