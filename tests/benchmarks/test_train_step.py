"""The benchmark of training steps: its floor, its memory, its numbers and their table."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from tiny_project import make_tiny_project
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vimpac_ext.benchmarks import train_step
from vimpac_ext.benchmarks.floor import MatrixProducts
from vimpac_ext.benchmarks.result import Result
from vimpac_ext.benchmarks.table import insert_table, main, markdown_table
from vimpac_ext.benchmarks.train_step import StepOptions, TrainStep, measure_training
from vimpac_ext.config import ConfigError
from vimpac_ext.engine import prepare
from vimpac_ext.engine.memory import peak_resident_bytes
from vimpac_ext.evaluation.step_recorder import StepRecorder

ROOT = Path(__file__).resolve().parents[2]


def shapes_of(run):
    """Operator and tensors of every matrix product."""
    seen = []

    def note(call):
        tensors = [a for a in call.arguments if isinstance(a, torch.Tensor)]
        seen.append((str(call.operator), [(t.shape, t.stride(), t.dtype) for t in tensors]))

    with StepRecorder(on_call=note):
        run()
    return seen


def test_the_floor_repeats_exactly_the_products_of_the_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images = torch.randn(2, 3, 8, 8)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            net(images).float().square().mean().backward()

    floor = MatrixProducts(step)
    expected = shapes_of(step)
    assert shapes_of(floor.seconds) == expected
    assert floor.num_calls == len(expected) >= 5
    assert any(dtype == torch.bfloat16 for _, tensors in expected for _, _, dtype in tensors)
    with FlopCounterMode(display=False) as counter:
        step()
    assert floor.flops == counter.get_total_flops()
    assert floor.seconds() > 0


@pytest.fixture
def configs(tmp_path):
    return make_tiny_project(tmp_path)


def test_a_step_is_that_of_the_training(configs):
    """Random clips of the configured shape, both heads, and the weights change."""
    options = StepOptions(
        str(configs / "pretrain.yaml"), ("DATA.NUM_FRAMES", "2"), "bf16", videos=3
    )
    step = TrainStep(options)
    assert (step.num_clips, step.clip_shape) == (6, (2, 2, 2))
    before = {name: p.detach().clone() for name, p in step.task.named_parameters()}
    assert step.seconds() > 0
    for name, parameter in step.task.named_parameters():
        assert not torch.equal(parameter, before[name]) or parameter.grad.abs().max() == 0, name
    labelled = TrainStep(StepOptions(str(configs / "finetune.yaml"), videos=3))
    assert labelled.batch["clips"].shape == (3, 1, 3, 2, 2)
    assert labelled.seconds() > 0


def test_numbers_belong_together(configs, monkeypatch):
    times = iter([9.0, 9.0, 9.0, 9.0, *[2.0, 4.0], *[3.0, 2.0], *[5.0, 6.0]])
    monkeypatch.setattr(TrainStep, "seconds", lambda self: next(times))
    floors = iter([9.0, 9.0, *[0.5, 1.0] * 3])
    monkeypatch.setattr(MatrixProducts, "seconds", lambda self: next(floors))
    memory = iter([2**30, 2**29])
    monkeypatch.setattr(train_step, "_memory_of_a_fresh_process", lambda options: next(memory))
    path = str(configs / "pretrain.yaml")
    candidates = [StepOptions(path, precision=precision) for precision in ("fp32", "bf16")]
    first, second = measure_training(candidates, rounds=3)
    rows = first.rows
    names = ("median", "min", "max")
    assert [rows[f"seconds per step, {name}"] for name in names] == [3.0, 2.0, 5.0]
    assert rows["clips/s"] == 8 / 3
    assert rows["floor, seconds"] == 0.5
    assert rows["step / floor"] == 6.0
    assert rows["peak memory, GiB (resident)"] == 1.0
    peak = rows["peak of the device, TFLOP/s (measured)"]
    assert rows["MFU"] == pytest.approx(rows["matrix products, TFLOP"] / 3.0 / peak)
    assert second.rows["clips/s, relative to the first"] == 3 / 4
    assert second.rows["peak memory, relative to the first"] == 0.5
    assert first.title.startswith("pretrain, 8 clips of (3, 2, 2), fp32, ")


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(configs):
    ballast = torch.ones(200 * 2**20)  # 800 MiB
    options = StepOptions(str(configs / "pretrain.yaml"), threads=1)
    measured = train_step._memory_of_a_fresh_process(options)
    assert 50 * 2**20 < measured < peak_resident_bytes() - 200 * 2**20
    assert peak_resident_bytes() > ballast.nbytes


def test_mistakes_are_told(configs):
    path = str(configs / "pretrain.yaml")
    with pytest.raises(ConfigError, match="fp16 is not measured"):
        measure_training([StepOptions(path, ("TRAIN.PRECISION", "fp16"))])
    with pytest.raises(ConfigError, match="TRAIN.SPEED"):
        measure_training([StepOptions(path), StepOptions(path, ("TRAIN.SPEED", "9"))])


@pytest.mark.slow
def test_the_papers_small_model_is_measured_without_data():
    path = ROOT / "configs/vimpac/pretrain_small.yaml"
    assert prepare(path).cfg.DATA.NUM_FRAMES == 5
    (result,) = measure_training([StepOptions(str(path), precision="bf16")], rounds=1)
    assert "8 clips of (5, 16, 16), bf16" in result.title
    ratio = result.rows["seconds per step, median"] / result.rows["floor, seconds"]
    assert result.rows["step / floor"] == pytest.approx(ratio)


CONTENT = {
    "command": "python tools/benchmark.py train --cfg a.yaml",
    "machine": {
        "processor": "Some CPU",
        "cores": 2,
        "gpu": None,
        "load_average": 0.1,
        "python": "3.11.0",
        "torch": "2.11.0",
    },
    "results": [
        {"title": "a, fp32", "rows": {"seconds": 1.23456, "only here": 12345.6}},
        {"title": "a, bf16", "rows": {"seconds": 0.5}},
    ],
}
TABLE = """`python tools/benchmark.py train --cfg a.yaml`

Some CPU, 2 cores; Python 3.11.0, torch 2.11.0; load at the start 0.1.

1. a, fp32
2. a, bf16

| | 1 | 2 |
|---|---|---|
| seconds | 1.23 | 0.5 |
| only here | 12,346 |  |"""


def test_the_table_has_all_numbers(tmp_path, capsys):
    assert markdown_table(CONTENT) == TABLE
    numbers, document = tmp_path / "numbers.json", tmp_path / "page.md"
    numbers.write_text(json.dumps(CONTENT))
    main([str(numbers)])
    assert capsys.readouterr().out == TABLE + "\n"
    document.write_text("# Page\n<!-- figures: a -->\nold\n<!-- end of figures -->\nrest\n")
    for _ in range(2):
        main([str(numbers), "--into", str(document), "--name", "a"])
    expected = f"# Page\n<!-- figures: a -->\n{TABLE}\n<!-- end of figures -->\nrest\n"
    assert document.read_text() == expected
    with pytest.raises(ValueError, match="no place for these figures: <!-- figures: b -->"):
        insert_table(document, "b", TABLE)


def test_the_figures_of_the_page_are_those_that_were_measured():
    """docs/performance.md repeats docs/measurements/*.json and has no other figures."""
    page = (ROOT / "docs/performance.md").read_text()
    pattern = r"<!-- figures: (\w+) -->\n(.*?)\n<!-- end of figures -->"
    places = dict(re.findall(pattern, page, re.DOTALL))
    assert places
    measured = {path.stem: path for path in (ROOT / "docs/measurements").glob("*.json")}
    assert set(measured) <= set(places)
    for name, text in places.items():
        if name in measured:
            assert text == markdown_table(json.loads(measured[name].read_text())), name
        else:
            assert text == "Not measured yet."


def test_the_tool_measures_every_combination(configs, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train_tool", ROOT / "tools/benchmark.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    asked = []

    def measure(candidates, rounds):
        asked.append((candidates, rounds))
        return [Result(options.path, {"one": 1.0}) for options in candidates]

    monkeypatch.setattr(train_step, "measure_training", measure)
    output = tmp_path / "numbers.json"
    words = ["train", "--cfg", "a.yaml", "--compare", "b.yaml", "--precision", "fp32", "bf16"]
    words += ["--videos", "6", "--threads", "2", "--rounds", "3", "--output", str(output)]
    assert tool.main([*words, "--opts", "RNG_SEED", "7"]) == 0
    ((candidates, rounds),) = asked
    assert rounds == 3
    assert [(options.path, options.precision) for options in candidates] == [
        ("a.yaml", "fp32"),
        ("a.yaml", "bf16"),
        ("b.yaml", "fp32"),
        ("b.yaml", "bf16"),
    ]
    assert candidates[0] == StepOptions("a.yaml", ("RNG_SEED", "7"), "fp32", False, 6, "cpu", 2)
    content = json.loads(output.read_text())
    assert len(content["results"]) == 4
    assert content["command"].startswith("python tools/benchmark.py train --cfg a.yaml --compare")
    with pytest.raises(ValueError, match="--videos and --rounds must be at least 1"):
        tool.main(["train", "--cfg", "a.yaml", "--videos", "0"])
