"""Processes of a run test one model, whose BatchNorm has the statistics of the checkpoint."""

import numpy as np
import pytest
import torch
from processes import in_processes
from video_project import make_video_project, read_predictions, video_config

from vimpac_ext.engine import prepare, run
from vimpac_ext.engine import tester as testing
from vimpac_ext.engine.checkpoint import newest_checkpoint, read_checkpoint
from vimpac_ext.engine.trainer import Trainer


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_video_project(tmp_path_factory.mktemp("videos"))


def state_of(task):
    return {name: value.detach().clone() for name, value in task.state_dict().items()}


def watched_run(path):
    """In a forked process: the states that are tested, and those around each look at the task."""
    tested, around = [], []
    test, look = testing.Tester.run, Trainer._look

    def tests(tester, task):
        tested.append(state_of(task))
        return test(tester, task)

    def looks(trainer, *arguments):
        before = state_of(trainer.task)
        look(trainer, *arguments)
        around.append((before, state_of(trainer.task)))

    testing.Tester.run, Trainer._look = tests, looks
    run(prepare(path))
    return tested, around


def are_equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("decay", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_last_test_is_that_of_the_checkpoint(project, decay):
    path = video_config(project, f"ema_{decay}", TRAIN={"EMA_DECAY": decay})
    ((main,), _), ((other,), _) = in_processes(2, watched_run, path)
    folder = project.folder / f"ema_{decay}"
    checkpoint = read_checkpoint(newest_checkpoint(folder / "checkpoints"))
    for tested in (main, other):
        assert are_equal(tested, checkpoint["ema_state"] or checkpoint["model_state"])
    again = video_config(
        project,
        f"again_{decay}",
        TRAIN={"ENABLE": False},
        TEST={"CHECKPOINT_FILE_PATH": str(folder)},
    )
    run(prepare(again))
    scores, expected = read_predictions(folder), read_predictions(project.folder / f"again_{decay}")
    assert scores.keys() == expected.keys()
    for video, value in expected.items():
        np.testing.assert_allclose(scores[video], value, rtol=1e-4, err_msg=video)


def test_a_test_of_averaged_weights_is_the_same_everywhere_and_training_goes_on_as_it_was(project):
    path = video_config(project, "looks", TRAIN={"EMA_DECAY": 0.5, "EVAL_PERIOD": 1})
    (main, around_main), (other, around_other) = in_processes(2, watched_run, path)
    assert len(main) == len(other) == 2  # after the epoch, and at the end
    assert all(map(are_equal, main, other))
    for around in (around_main, around_other):
        ((before, after),) = around
        assert are_equal(before, after)
    assert not are_equal(around_main[0][0], around_other[0][0])  # so that there was a choice
