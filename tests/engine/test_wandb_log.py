"""Weights & Biases, with a module in its place that writes down what it is told."""

import importlib.machinery
import importlib.util
import sys
import types

import numpy as np
import pytest
from processes import in_processes
from tiny_project import make_tiny_project

from vimpac_ext.config import ConfigError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.events import EventLog, SilentLog, open_events
from vimpac_ext.engine.wandb_log import WandbOptions

ON = ["WANDB.ENABLE", "True", "WANDB.PROJECT", "mine", "WANDB.RUN_NAME", "first"]


class Run:
    def __init__(self, options):
        self.options = options
        self.logged, self.axes, self.exit_code = [], [], None

    def define_metric(self, name, step_metric=None):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch):
    """All runs that were begun."""
    begun = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.Image = lambda image: ("image", image.shape)

    def init(**options):
        begun.append(Run(options))
        return begun[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return begun


def test_a_run_and_its_continuation(tmp_path, runs):
    path = make_tiny_project(tmp_path) / "pretrain.yaml"
    run(prepare(path, [*ON, "SOLVER.MAX_EPOCH", "1"]))
    run(prepare(path, [*ON, "SOLVER.MAX_EPOCH", "2"]))
    first, second = runs
    assert first.options["project"] == "mine"
    assert first.options["name"] == "first"
    assert first.options["entity"] is None
    assert first.options["mode"] == "online"
    assert first.options["config"]["BACKBONE"]["embed_dim"] == 16
    assert [line["update"] for line in first.logged] == [1, 2]
    assert [line["update"] for line in second.logged] == [3, 4]
    assert all(isinstance(line["train_iter/loss"], float) for line in first.logged)
    assert "train_iter/epoch" not in first.logged[0]
    assert first.axes == [("update", None), ("*", "update")]
    assert first.options["id"] == second.options["id"]
    assert {r.options["resume"] for r in runs} == {"allow"}
    assert (first.exit_code, second.exit_code) == (0, 0)
    run(prepare(path, [*ON, "TRAIN.AUTO_RESUME", "False"]))
    assert runs[2].options["id"] != first.options["id"]


def test_a_test_is_part_of_its_training(tmp_path, runs):
    path = make_tiny_project(tmp_path) / "finetune.yaml"
    run(prepare(path, [*ON, "TRAIN.CHECKPOINT_FILE_PATH", ""]))
    training, test = runs
    assert training.options["id"] == test.options["id"]
    assert test.logged[0]["update"] == 4


def test_pictures_and_failures(tmp_path, runs):
    log = EventLog(tmp_path, False, 1, WandbOptions("mine"))
    log.write_image("masked", 7, np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(KeyError), log:
        raise KeyError("something")
    assert runs[0].logged == [{"update": 7, "masked": ("image", (2, 3, 3))}]
    assert runs[0].exit_code == 1


def _logs_of_this_process(folder):
    with open_events(folder, False, 1, WandbOptions("mine")) as log:
        log.write("train_iter", 1, {"loss": 1.0})
        return len(sys.modules["wandb"].begun), isinstance(log, SilentLog)


def test_only_the_main_process_shows_the_run(tmp_path, runs):
    sys.modules["wandb"].begun = runs
    assert in_processes(2, _logs_of_this_process, tmp_path) == [(1, False), (0, True)]


def test_without_the_package_the_run_does_not_start(tmp_path, monkeypatch):
    path = make_tiny_project(tmp_path) / "pretrain.yaml"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed.*vimpac_ext\[wandb\]"):
        run(prepare(path, ON))
    assert not (tmp_path / "pretrain").exists()
    with pytest.raises(ConfigError, match="WANDB.MODE.*online, offline, found 'cloud'"):
        prepare(path, [*ON, "WANDB.MODE", "cloud"])
