"""Runs that are stopped in every way continue as if nothing had happened."""

import json
import logging
import os
import random
import re
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from checkpoint_hash import content_hash
from processes import free_port, in_processes, run_processes
from tiny_project import make_tiny_project

from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import CheckpointError, newest_checkpoint, read_checkpoint
from vimpac_ext.engine.events import EventLog
from vimpac_ext.engine.placement import Placement
from vimpac_ext.engine.processes import RunRequest, run_as
from vimpac_ext.engine.trainer import Trainer
from vimpac_ext.engine.training import _evaluate

EPOCHS = 6  # of two updates
BASE = ["SOLVER.MAX_EPOCH", str(EPOCHS), "TRAIN.CHECKPOINT_PERIOD", "2"]


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


def lines(folder, kind="train_iter"):
    """What a log says, without times."""
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    varying = ("dt", "dt_data", "dt_net", "videos_per_second", "clips_per_second", "eta")
    varying += ("tokens_per_second", "mfu", "cpu_mem")
    return [
        {key: value for key, value in event.items() if key not in varying}
        for event in events
        if event["_type"] == kind
    ]


def weights(folder, state="model_state"):
    return read_checkpoint(newest_checkpoint(folder / "checkpoints"))[state]


def require_same_run(folder, expected):
    """The logs agree to the last bit that is logged, the final checkpoints to the last bit."""
    assert lines(folder) == lines(expected)
    assert len(lines(folder)) == 2 * EPOCHS
    for name, value in weights(expected).items():
        assert torch.equal(weights(folder)[name], value), name
    assert content_hash(folder) == content_hash(expected)  # moments, random states, all else


def run_dying(place, request, victim, death, moment):
    """A process of a run; the victim gets a signal in update ``moment``.

    Minus ``moment``: in the middle of writing the first checkpoint from that update on.
    """
    if place.rank == victim and moment < 0:
        save = torch.save

        def write_half_and_die(value, file, **options):
            if isinstance(value, dict) and value.get("update", 0) >= -moment:
                save({**value, "optimizer_state": {}}, file)
                os.kill(os.getpid(), death)
            save(value, file, **options)

        torch.save = write_half_and_die
    elif place.rank == victim:
        original = Trainer._update

        def update_and_die(trainer, update, *arguments):
            scalars = original(trainer, update, *arguments)
            if update + 1 == moment:
                os.kill(os.getpid(), death)
            return scalars

        Trainer._update = update_and_die
    run_as(place, request)


def start(config, overrides, size=1, victim=None, death=signal.SIGKILL, moment=None):
    """Runs in new processes, of which one may die; how they ended."""
    port = free_port()
    calls = []
    for rank in range(size):
        place = Placement(rank, size, rank, "127.0.0.1", port, rank == 0, "torchrun")
        request = RunRequest((str(config),), tuple(overrides))
        calls.append((place, request, victim, death, moment))
    return run_processes(run_dying, calls, timeout=120)


def run_with_deaths(project, tmp_path, size, workers, deaths, steps=("3",)):
    """An unbroken run, and one that is killed and started again until it comes to its end."""
    more = ["TRAIN.MICRO_BATCH_SIZE", "2", "DATA_LOADER.NUM_WORKERS", str(workers)]
    overrides = [*BASE, *more, "TRAIN.CHECKPOINT_PERIOD_STEPS", *steps, "OUTPUT_DIR"]
    config = project / "pretrain.yaml"
    ended = start(config, [*overrides, str(tmp_path / "whole")], size)
    assert [process.code for process in ended] == [0] * size, ended
    broken = [*overrides, str(tmp_path / "broken")]
    for death, moment, victim in deaths:
        ended = start(config, broken, size, victim, death, moment)
        assert ended[victim].code == -death, ended
    ended = start(config, broken, size)
    assert [process.code for process in ended] == [0] * size, ended
    require_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize(("size", "workers"), [pytest.param(1, 2, marks=pytest.mark.slow), (2, 0)])
def test_a_killed_run_continues_bit_for_bit(project, tmp_path, size, workers):
    deaths = [(signal.SIGKILL, 2, size - 1), (signal.SIGKILL, -6, 0)]
    run_with_deaths(project, tmp_path, size, workers, deaths)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_random_kills_change_nothing(project, tmp_path, size, workers):
    rng = random.Random(10 * size + workers)
    steps = sorted(rng.choices(range(1, 2 * EPOCHS + 1), k=10))
    deaths = [(signal.SIGKILL, step, rng.randrange(size)) for step in steps]
    for number in (3, 7):  # in the middle of writing a checkpoint, which the main process does
        deaths[number] = (signal.SIGKILL, -steps[number], 0)
    run_with_deaths(project, tmp_path, size, workers, deaths)


@pytest.mark.slow
def test_three_processes_add_up_in_the_same_order_after_a_kill(project, tmp_path):
    """Sums of three depend on their order, of two they do not."""
    overrides = [*BASE, "TRAIN.BATCH_SIZE", "3", "SOLVER.MAX_EPOCH", "6", "OUTPUT_DIR"]
    config = project / "pretrain.yaml"
    overrides = ["TRAIN.CHECKPOINT_PERIOD_STEPS", "3", "BACKBONE.embed_dim", "64", *overrides]
    start(config, [*overrides, str(tmp_path / "whole")], 3)
    start(config, [*overrides, str(tmp_path / "broken")], 3, 1, signal.SIGKILL, 7)
    start(config, [*overrides, str(tmp_path / "broken")], 3)
    require_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, 75, marks=pytest.mark.slow),
        (signal.SIGINT, 130),
    ],
)
def test_a_signal_saves_first(project, tmp_path, signum, code):
    config = project / "pretrain.yaml"
    start(config, [*BASE, "OUTPUT_DIR", str(tmp_path / "whole")])
    broken = [*BASE, "OUTPUT_DIR", str(tmp_path / "broken")]
    (ended,) = start(config, broken, victim=0, death=signum, moment=3)
    assert ended.code == code
    path = tmp_path / "broken/checkpoints/checkpoint_epoch_00001_update_00000003.pyth"
    assert ended.err == (
        f"error: stopped by {signum.name} after update 3; {path} is saved and the same command "
        "goes on from there\n"
    )
    start(config, broken)
    require_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_signal_to_one_process_stops_all_at_the_same_update(project, tmp_path):
    config = project / "pretrain.yaml"
    start(config, [*BASE, "OUTPUT_DIR", str(tmp_path / "whole")], 2)
    broken = [*BASE, "OUTPUT_DIR", str(tmp_path / "broken")]
    ended = start(config, broken, 2, victim=1, death=signal.SIGUSR1, moment=3)
    assert [process.code for process in ended] == [75, 75]
    assert (ended[0].err + ended[1].err).count("stopped by SIGUSR1 after update 4") == 1
    start(config, broken, 2)
    require_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_second_ctrl_c_does_not_wait(project, tmp_path, monkeypatch):
    config = project / "pretrain.yaml"

    def interrupted_twice(trainer, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_update", interrupted_twice)
    (ended,) = start(config, [*BASE, "OUTPUT_DIR", str(tmp_path / "broken")])
    assert (ended.code, ended.err) == (130, "interrupted\n")
    assert not (tmp_path / "broken/checkpoints").exists()


def flip_a_byte(path, position=0.6):
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


def test_the_newest_checkpoint_that_is_whole_is_used(project, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    overrides = [*BASE, "OUTPUT_DIR", str(tmp_path / "run")]
    run(prepare(project / "pretrain.yaml", overrides))
    expected = lines(tmp_path / "run"), weights(tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    flip_a_byte(folder / "checkpoint_epoch_00006.pyth")
    cut = folder / "checkpoint_epoch_00004.pyth"
    cut.write_bytes(cut.read_bytes()[:-100])
    left_over = folder / ".checkpoint_epoch_00005.pyth.1-ab.tmp"
    left_over.touch()
    run(prepare(project / "pretrain.yaml", overrides))
    assert "checkpoint_epoch_00006.pyth is damaged" in caplog.text
    assert "checkpoint_epoch_00004.pyth is damaged" in caplog.text
    assert f"resumed from {folder}/checkpoint_epoch_00002.pyth (2 epochs, 4 updates" in caplog.text
    assert lines(tmp_path / "run") == expected[0]
    for name, value in weights(tmp_path / "run").items():
        assert torch.equal(value, expected[1][name])
    assert not left_over.exists()

    for path in folder.iterdir():
        flip_a_byte(path)
    with pytest.raises(CheckpointError, match=r"none of the 3 checkpoints .* is whole; remove"):
        run(prepare(project / "pretrain.yaml", overrides))


@pytest.mark.parametrize("position", [0.02, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_one_wrong_byte_anywhere_is_noticed_or_harmless(project, tmp_path, position):
    overrides = [*BASE[2:], "SOLVER.MAX_EPOCH", "2", "OUTPUT_DIR", str(tmp_path / "run")]
    run(prepare(project / "pretrain.yaml", overrides))
    path = newest_checkpoint(tmp_path / "run/checkpoints")
    before = read_checkpoint(path)["model_state"]
    flip_a_byte(path, position)
    try:
        after = read_checkpoint(path)["model_state"]
    except CheckpointError:
        return
    for name, value in before.items():
        assert torch.equal(value, after[name])


def test_only_the_newest_checkpoints_are_kept(project, tmp_path):
    overrides = [*BASE, "TRAIN.CHECKPOINT_PERIOD_STEPS", "5", "TRAIN.KEEP_CHECKPOINTS", "3"]
    run(prepare(project / "pretrain.yaml", [*overrides, "OUTPUT_DIR", str(tmp_path / "run")]))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "checkpoint_epoch_00004.pyth",
        "checkpoint_epoch_00005.pyth",
        "checkpoint_epoch_00006.pyth",
    ]


def test_another_number_of_processes_may_continue_and_says_what_changes(project, tmp_path):
    """Without dropout, only the rounding of sums changes."""
    config = project / "pretrain.yaml"
    base = [*BASE, "BACKBONE.dropout", "0.0", "HEADS.contrast", "null", "LOSSES.contrast", "null"]
    start(config, [*base, "OUTPUT_DIR", str(tmp_path / "whole")], 2)
    broken = [*base, "OUTPUT_DIR", str(tmp_path / "broken")]
    start(config, broken, 2, victim=0, death=signal.SIGTERM, moment=6)
    (ended,) = start(config, broken)
    assert ended.code == 0
    assert "saved by 2 processes, resumed by 1: videos, masks and learning rates" in ended.out
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "broken"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["lr"] == other["lr"]


def initial_seed(config, words):
    """Of what this process draws while it trains."""
    seeds = []
    train = Trainer.train

    def note_and_train(trainer):
        seeds.append(torch.initial_seed())
        train(trainer)

    Trainer.train = note_and_train
    run(prepare(config, words))
    return seeds[0]


@pytest.mark.slow
def test_other_processes_draw_other_numbers_for_dropout(project, tmp_path):
    """Neither those of each other nor those that the run has used up."""
    config = project / "pretrain.yaml"
    run(prepare(config, ["SOLVER.MAX_EPOCH", "1"]))
    assert len({0, *in_processes(2, initial_seed, config, [])}) == 3
    fresh = ["OUTPUT_DIR", str(tmp_path / "fresh")]
    assert in_processes(2, initial_seed, config, fresh) == [0, 1]


@pytest.mark.parametrize(
    "death", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_an_evaluation_that_was_missed_is_made_up_for(project, tmp_path, death):
    """Killed in the evaluation after epoch 2; asked to stop in the last update before it."""
    config = project / "finetune.yaml"
    base = [*BASE, "TRAIN.CHECKPOINT_FILE_PATH", "", "TRAIN.EVAL_PERIOD", "2", "OUTPUT_DIR"]
    start(config, [*base, str(tmp_path / "whole")])
    folder = tmp_path / "broken"
    if death == signal.SIGTERM:
        start(config, [*base, str(folder)], victim=0, death=death, moment=4)
    else:
        original = Trainer._evaluate

        def die(trainer, done):
            os.kill(os.getpid(), death)

        Trainer._evaluate = die
        try:
            (ended,) = start(config, [*base, str(folder)])
        finally:
            Trainer._evaluate = original
        assert ended.code == -death
    assert lines(folder, "val_epoch") == []
    start(config, [*base, str(folder)])
    require_same_run(folder, tmp_path / "whole")
    assert lines(folder, "val_epoch") == lines(tmp_path / "whole", "val_epoch")
    assert [line["update"] for line in lines(folder, "val_epoch")] == [4, 8, 12]
    start(config, [*base, str(folder)])  # finished: nothing is done again
    assert [line["update"] for line in lines(folder, "val_epoch")] == [4, 8, 12]


class Half:
    """A k-NN monitor that ends, and a tester that does not."""

    def run(self, task, update=None):
        if update is None:
            raise KeyboardInterrupt
        return {"knn_top1": 50.0}


def test_of_two_evaluations_none_is_written_before_both_have_ended(tmp_path):
    """Else a run that is killed in the second would never make up for it."""
    sampler = SimpleNamespace(updates_per_epoch=2, num_epochs=3)
    with EventLog(tmp_path, tensorboard=False) as events:
        with pytest.raises(KeyboardInterrupt):
            _evaluate(Half(), Half(), torch.nn.Linear(1, 1), events, sampler, 4)
        assert not events.evaluated(4)
        _evaluate(None, Half(), torch.nn.Linear(1, 1), events, sampler, 4)
        assert events.evaluated(4)
    (line,) = lines(tmp_path, "knn_epoch")
    assert (line["epoch"], line["knn_top1"]) == ("2/3", 50.0)


@pytest.mark.slow
def test_averaged_weights_and_loss_scale_are_restored(project, tmp_path):
    config = project / "pretrain.yaml"
    base = [*BASE, "TRAIN.EMA_DECAY", "0.9", "TRAIN.PRECISION", "fp16", "OUTPUT_DIR"]
    start(config, [*base, str(tmp_path / "whole")])
    start(config, [*base, str(tmp_path / "broken")], victim=0, death=signal.SIGTERM, moment=5)
    start(config, [*base, str(tmp_path / "broken")])
    require_same_run(tmp_path / "broken", tmp_path / "whole")
    whole, broken = (
        read_checkpoint(newest_checkpoint(tmp_path / name / "checkpoints"))
        for name in ("whole", "broken")
    )
    assert whole["scaler_state"] == broken["scaler_state"]
    assert whole["scaler_state"]["_growth_tracker"] > 0
    for name, value in whole["ema_state"].items():
        assert torch.equal(value, broken["ema_state"][name])
        is_buffer = "running" in name or "num_batches" in name
        assert torch.equal(value, whole["model_state"][name]) == is_buffer, name


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_begins_anew_does_not_mix_with_the_one_before(project, tmp_path, caplog):
    """Neither are its checkpoints removed as the oldest, nor is the other run continued later."""
    folder = tmp_path / "run"
    config, output = project / "pretrain.yaml", ["OUTPUT_DIR", str(folder)]
    run(prepare(config, [*BASE[:2], *output, "TRAIN.CHECKPOINT_PERIOD", "1"]))
    before = files(folder / "checkpoints")
    anew = ["SOLVER.MAX_EPOCH", "3", "TRAIN.KEEP_CHECKPOINTS", "2", "BACKBONE.dropout", "0.0"]
    anew += ["TRAIN.CHECKPOINT_PERIOD", "1", *output]
    run(prepare(config, [*anew, "TRAIN.AUTO_RESUME", "False"]))
    expected = [f"checkpoint_epoch_0000{epoch}.pyth" for epoch in (2, 3)]
    assert files(folder / "checkpoints") == expected
    assert files(folder / "checkpoints_1") == before
    assert f"6 checkpoints of an earlier run are now in {folder}/checkpoints_1" in caplog.text
    run(prepare(config, [*anew, "SOLVER.MAX_EPOCH", "4"]))  # continues the newer run
    assert files(folder / "checkpoints") == [expected[1], "checkpoint_epoch_00004.pyth"]
    run(prepare(config, [*anew, "TRAIN.AUTO_RESUME", "False"]))
    assert files(folder / "checkpoints") == expected
    assert len(files(folder / "checkpoints_2")) == 2


def numbers_aside(folder):
    """Name without its number -> the numbers that are there."""
    found = {}
    for name in files(folder):
        match = re.fullmatch(r"(checkpoints|metrics|bad_videos)_(\d+)(\.jsonl)?", name)
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    return found


def test_the_log_of_a_run_survives_one_that_begins_anew(project, tmp_path):
    """Its number is that of the run's checkpoints."""
    folder = tmp_path / "run"
    words = ["SOLVER.MAX_EPOCH", "1", "OUTPUT_DIR", str(folder), "TRAIN.AUTO_RESUME", "False"]
    logs = []
    for rate in ("0.01", "0.02"):
        run(prepare(project / "pretrain.yaml", [*words, "SOLVER.BASE_LR", rate]))
        logs.append((folder / "metrics.jsonl").read_text())
    assert logs[0] != logs[1]
    assert (folder / "metrics_1.jsonl").read_text() == logs[0]
    assert numbers_aside(folder) == {"checkpoints": {1}, "metrics": {1}}

    # A run that is stopped before its first checkpoint has a log alone, and is begun anew.
    shutil.rmtree(folder / "checkpoints")
    run(prepare(project / "pretrain.yaml", words[:4]))
    assert (folder / "metrics_2.jsonl").read_text() == logs[1]
    third = (folder / "metrics.jsonl").read_text()
    (folder / "bad_videos.jsonl").write_text('{"video_id": "a", "path": "a", "reason": "b"}\n')
    run(prepare(project / "pretrain.yaml", words))
    assert (folder / "metrics_3.jsonl").read_text() == third
    assert numbers_aside(folder) == {
        "checkpoints": {1, 3},
        "metrics": {1, 2, 3},
        "bad_videos": {3},
    }
    assert not (folder / "bad_videos.jsonl").exists()
    assert (folder / "metrics_1.jsonl").read_text() == logs[0]


def test_damaged_checkpoints_do_not_push_out_whole_ones(project, tmp_path):
    """Stopped before it has written the damaged ones again."""
    folder, config = tmp_path / "run", project / "pretrain.yaml"
    base = [*BASE, "OUTPUT_DIR", str(folder)]
    run(prepare(config, base))
    checkpoints = folder / "checkpoints"
    for epoch in (4, 6):
        flip_a_byte(checkpoints / f"checkpoint_epoch_0000{epoch}.pyth")
    keep = [*base, "TRAIN.KEEP_CHECKPOINTS", "2"]
    (ended,) = start(config, keep, victim=0, death=signal.SIGTERM, moment=5)
    assert "checkpoint_epoch_00002_update_00000005.pyth is saved" in ended.err
    whole = ["checkpoint_epoch_00002.pyth", "checkpoint_epoch_00002_update_00000005.pyth"]
    assert files(checkpoints)[:2] == whole
    (ended,) = start(config, keep)
    assert "checkpoint_epoch_00002_update_00000005.pyth (2 epochs, 5 updates done)" in ended.out
    assert files(checkpoints) == [f"checkpoint_epoch_0000{epoch}.pyth" for epoch in (4, 6)]


def test_a_run_may_change_its_precision_and_not_its_kind_of_optimizer(project, tmp_path, caplog):
    config = project / "pretrain.yaml"
    for epochs, precision in enumerate(("fp32", "fp16", "bf16", "fp16"), start=1):
        words = ["SOLVER.MAX_EPOCH", str(epochs), "TRAIN.PRECISION", precision]
        run(prepare(config, words))
    assert len(lines(tmp_path / "pretrain")) == 8
    assert "TRAIN.PRECISION 'fp32' -> 'fp16'" in caplog.text
    run(prepare(config, ["SOLVER.MAX_EPOCH", "5", "SOLVER.OPTIMIZING_METHOD", "adamw_original"]))
    sgd = ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.MAX_EPOCH", "6"]
    with pytest.raises(CheckpointError, match=r"another kind of optimizer than SGD .*OPTIMIZING"):
        run(prepare(config, sgd))
    sgd = [*sgd, "OUTPUT_DIR", str(tmp_path / "sgd")]
    run(prepare(config, sgd))
    with pytest.raises(CheckpointError, match="another kind of optimizer than AdamW"):
        run(prepare(config, [*sgd, "SOLVER.OPTIMIZING_METHOD", "adamw"]))
