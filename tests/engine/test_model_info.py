"""What a run says of its cost, and the speeds of its log lines."""

import json
import logging

import pytest
import torch
from tiny_project import make_tiny_project
from torch.utils.flop_counter import FlopCounterMode

from vimpac_ext.engine import model_info, prepare, run
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.device_peaks import Peak
from vimpac_ext.engine.memory import peak_resident_bytes
from vimpac_ext.engine.step_meter import StepMeter
from vimpac_ext.engine.window import Window


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


@pytest.fixture
def made_up_peak(monkeypatch):
    monkeypatch.setattr(model_info, "peak_of", lambda *_: Peak(1e9, "made up"))


def lines(configs, name="pretrain"):
    text = (configs.parent / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def a_step(configs, *overrides):
    task = build_task(prepare(configs / "pretrain.yaml", overrides).cfg)
    batch = {"clips": torch.randint(20, (4, 2, 3, 2, 2))}
    return task, batch


def do(task, batch):
    return task.training_step(batch, torch.Generator().manual_seed(0))["loss"]


def test_the_first_step_is_counted_as_pytorch_counts_it(project):
    task, batch = a_step(project)
    with FlopCounterMode(display=False) as counter:
        do(task, batch).backward()
    meter = StepMeter(task, watching=True)
    for _ in range(2):
        with meter.watch(batch):
            loss = do(task, batch)
            meter.end_forward()
            loss.backward()
        assert meter.flops == counter.get_total_flops()


def test_a_compiled_step_is_estimated_from_its_forward_pass(project):
    task, batch = a_step(project, "BACKBONE.dropout", "0")
    task.heads["contrast"].norms[0].momentum = 0.5
    before = {name: value.clone() for name, value in task.state_dict().items()}
    state = torch.get_rng_state()
    meter = StepMeter(task, watching=True, compiled=True)
    with meter.watch(batch):
        pass
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert task.training
    assert all(parameter.grad is None for parameter in task.parameters())
    with FlopCounterMode(display=False) as counter:
        do(task, batch)
    assert meter.flops == 3 * counter.get_total_flops()
    task.backbone.requires_grad_(False)
    frozen = StepMeter(task, Peak(1.0, ""), watching=True, compiled=True)
    with frozen.watch(batch):
        pass
    assert frozen.flops is None
    assert "mfu" not in frozen.columns({"dt": 1.0, "videos_per_second": 4.0}, 1, 0)


def test_log_lines_tell_the_speed(project, made_up_peak, caplog):
    caplog.set_level(logging.INFO)
    run(prepare(project / "pretrain.yaml", ["TRAIN.MICRO_BATCH_SIZE", "2"]))
    found = lines(project)
    assert len(found) == 4
    flops = []
    for number, line in enumerate(found):
        assert line["videos_per_second"] == pytest.approx(4 / line["dt"], rel=1e-4)
        assert line["clips_per_second"] == pytest.approx(8 / line["dt"], rel=1e-4)
        assert line["tokens_per_second"] == pytest.approx(96 / line["dt"], rel=1e-4)
        flops.append(line["mfu"] * line["dt"] * 1e9)
        seconds = int(line["dt"] * (3 - number))
        assert line["eta"] == f"0:00:{seconds:02}"
        assert 0 < float(line["cpu_mem"].removesuffix("G")) <= peak_resident_bytes() / 2**30 + 0.01
    assert flops == pytest.approx([flops[0]] * 4, rel=1e-4)
    text = caplog.text
    number = sum(p.numel() for p in build_task(prepare(project / "pretrain.yaml").cfg).parameters())
    assert f"parameters: {number:,} (backbone " in text
    assert "the backbone on a view of 3 x 2 x 2 tokens: " in text
    # Two micro-steps of four clips.
    assert f"a step on 4 clips computes {flops[0] / 2e9:,.4g} GFLOPs in matrix products" in text
    assert "activations kept for the backward pass: " in text
    assert "mfu is the share of 0.001 TFLOPs a second (made up)" in text


def test_what_is_done_between_updates_is_not_part_of_their_time(monkeypatch):
    seconds = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])
    window = Window()
    window.add_loss(torch.tensor(1.0), [0])
    seconds[0] += 2
    with window.not_counted():
        seconds[0] += 50
    seconds[0] += 1
    assert window.timings(6)["dt"] == 3
    assert window.timings(6)["videos_per_second"] == 2


def test_it_can_be_turned_off(project, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(model_info, "peak_of", None)
    run(prepare(project / "pretrain.yaml", ["LOG_MFU", "False", "LOG_MODEL_INFO", "False"]))
    assert all("mfu" not in line and "clips_per_second" in line for line in lines(project))
    assert "parameters:" not in caplog.text
    assert "a step on" not in caplog.text


def test_watching_changes_nothing_in_the_training(project, made_up_peak):
    run(prepare(project / "pretrain.yaml"))
    watched = [line["loss"] for line in lines(project)]
    off = ["LOG_MFU", "False", "LOG_MODEL_INFO", "False", "TRAIN.AUTO_RESUME", "False"]
    run(prepare(project / "pretrain.yaml", off))
    assert [line["loss"] for line in lines(project)] == watched


def test_frozen_parameters_are_told(project, made_up_peak, caplog):
    caplog.set_level(logging.INFO)
    overrides = ["TRAIN.CHECKPOINT_FILE_PATH", "", "TASK.freeze_backbone", "True"]
    run(prepare(project / "finetune.yaml", [*overrides, "TEST.ENABLE", "True"]))
    classification = 16 * 4 + 4
    assert f"heads.classification {classification:,}), {classification:,} trained" in caplog.text
    assert "a video of the test has 6 views" in caplog.text
