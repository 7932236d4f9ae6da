"""Model benchmark: numbers that can be checked by hand, and its tables."""

import argparse
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from vimpac_ext.benchmarks import models
from vimpac_ext.benchmarks.memory import PeakMemory
from vimpac_ext.benchmarks.models import MeasureOptions, ModelCost, measure_model
from vimpac_ext.benchmarks.models_command import add_models
from vimpac_ext.benchmarks.models_report import accuracies_of, write_models
from vimpac_ext.benchmarks.tables import read_csv, replace_block

ROOT = Path(__file__).resolve().parents[2]
FAST = MeasureOptions(seconds=0.0)


def write_config(folder, name="tiny", **changes):
    content = {
        "TASK": "FinetuneTask",
        "BACKBONE": {
            "NAME": "TimmSpaceTime",
            "model": "vit_tiny_patch16_224",
            "attention": "joint",
            "options": {"depth": 1, "embed_dim": 16, "num_heads": 2},
        },
        "HEADS": {"classification": {"NAME": "ClassificationHead"}},
        "LOSSES": {"classification": {"NAME": "CrossEntropyLoss"}},
        "MODEL": {"NUM_CLASSES": 7},
        "DATA": {"NUM_FRAMES": 2, "TRAIN_CROP_SIZE": 32, "TEST_CROP_SIZE": 32},
        "TEST": {"NUM_ENSEMBLE_VIEWS": 5, "NUM_SPATIAL_CROPS": 3},
        "OUTPUT_DIR": str(folder / "output" / name),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_parameters_and_cost_are_those_counted_by_hand(tmp_path):
    """A layer of width D over N tokens: 12 N D^2 + 2 N^2 D multiply-adds, 12 D^2 + 13 D values."""
    cost = measure_model(write_config(tmp_path), FAST)
    width, patches, pixels = 16, 2 * 2 * 2, 16 * 16 * 3
    tokens = patches + 1
    layer = 12 * width**2 + 13 * width
    embedding = pixels * width + width + width * (1 + 5 + 2)  # patches; [CLS], places, times
    assert round(cost.parameters * 1e6) == layer + embedding + 2 * width + 7 * (width + 1)
    flops = 12 * tokens * width**2 + 2 * tokens**2 * width + patches * pixels * width + 7 * width
    norms = 5 * tokens * width * 3  # fvcore counts a LayerNorm as 5 operations a value
    assert round(cost.gflops * 1e9) == flops + norms
    assert cost.gflops_of_all_views == 15 * cost.gflops
    assert (cost.clip, cost.precision) == ("2 x 32 x 32", "fp32 / fp32")
    assert min(cost.test_clips_per_second, cost.train_clips_per_second) > 0


def test_counts_the_clips_of_a_pair_and_times_a_step(tmp_path, monkeypatch):
    """With a clock that goes on by 1/4 s a step, 3 videos of 2 clips are 24 clips a second."""
    config = write_config(
        tmp_path,
        TASK="PretrainTask",
        BACKBONE={"NAME": "VimpacTransformer", "embed_dim": 16, "num_heads": 2, "num_layers": 1},
        MASKER={"NAME": "BlockMasker", "num_blocks": 2},
        HEADS={"contrast": {"NAME": "ProjectionHead", "hidden_dim": 8, "output_dim": 8}},
        LOSSES={"contrast": {"NAME": "InfoNCELoss"}},
    )
    ticks = iter(range(1000))
    monkeypatch.setattr(models.time, "perf_counter", lambda: next(ticks) / 4)
    cost = measure_model(config, replace(FAST, batch_size=3))
    assert cost.train_clips_per_second == 24
    assert cost.test_clips_per_second == 12
    assert cost.clip == "2 x 4 x 4"


def test_training_moves_the_weights(tmp_path):
    from vimpac_ext.engine import prepare
    from vimpac_ext.engine.assembly import build_task

    loaded = prepare(write_config(tmp_path))
    task = build_task(loaded.cfg)
    step, num_clips = models._training_step(loaded, task, 3, torch.device("cpu"), "fp32")
    before = task.heads["classification"].linear.weight.clone()
    step()
    assert num_clips == 3
    assert not torch.equal(before, task.heads["classification"].linear.weight)


def test_peak_memory_is_what_was_in_use():
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    before = memory.peak_mb()
    del_me = torch.ones(25_000_000)  # 100 MB
    del del_me
    assert 90 < memory.peak_mb() - before < 130


def test_the_accuracy_of_the_own_run_is_taken(tmp_path):
    result = tmp_path / "output" / "tiny" / "test" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"top1": 61.5}))
    assert measure_model(write_config(tmp_path), FAST).top1 == 61.5
    assert measure_model(write_config(tmp_path), FAST, top1=50.0).top1 == 50.0


def costs():
    first = ModelCost(
        "a", "Backbone x", 1.5, 2.0, 10, 3, "8 x 32 x 32", "fp32 / bf16",
        100.0, 20.0, 300.4, 900.0, 2,
    )  # fmt: skip
    return [replace(first, top1=70.0), replace(first, name="b", gflops=4.0)]


def test_files_say_what_was_measured(tmp_path):
    write_models(tmp_path, costs(), "`command`")
    first, second = read_csv(tmp_path / "models.csv")
    assert (first["gflops_of_all_views"], second["gflops_of_all_views"]) == ("60.0", "120.0")
    assert (first["top1"], second["top1"]) == ("70.0", "")
    text = (tmp_path / "models.md").read_text()
    assert text.startswith("`command`\n\n| config | backbone ")
    cells = "a | Backbone x | 8 x 32 x 32 | 1.50 | 2.00 × 10 x 3 | 100.00 | 20.00 | 300 | 900"
    assert f"| {cells} | fp32 / bf16 | 70.0 |" in text
    assert "- without an accuracy, and so not in the plot: b\n" in text
    assert (tmp_path / "models.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,top\na,3\n", "columns name,top1"),
        ("name,top1\na,high\n", "line 2: expected"),
        ("name,top1\na,70\nc,3\n", "line 3: 'c' is not measured; it is one of a, b"),
        ("name,top1\na,700\n", "a percentage, found 700"),
    ],
)
def test_bad_accuracies(tmp_path, text, message):
    path = tmp_path / "accuracies.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        accuracies_of(path, ["a", "b"])


def test_names_that_agree_have_their_folders():
    paths = [Path("a/x.yaml"), Path("b/x.yaml"), Path("b/y.yaml")]
    assert models.names_of(paths) == ["a/x", "b/x", "y"]


def test_a_document_gets_its_table(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("top\n<!-- models -->\nold\n<!-- end of models -->\nrest\n")
    replace_block(path, "models", "\\1 new\n")
    assert path.read_text() == "top\n<!-- models -->\n\\1 new\n<!-- end of models -->\nrest\n"
    with pytest.raises(ValueError, match=r"doc\.md must have one place between '<!-- demo -->'"):
        replace_block(path, "demo", "new")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--docs", "nowhere.md"], "there is no document nowhere.md"),
        (["--batch_size", "0"], "--batch_size at least 1"),
        (["--seconds", "-1"], "--seconds must be at least 0"),
    ],
)
def test_mistakes_are_told_before_measuring(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_models(parser.add_subparsers())
    arguments = parser.parse_args(["models", "a.yaml", *words])
    with pytest.raises(ValueError, match=re.escape(message)):
        arguments.run(arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_tool_measures_all_that_can_be_measured(tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools/benchmark.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    bad = write_config(tmp_path, "bad", BACKBONE={"NAME": "TimmFrames", "model": "resnt18"})
    killed = write_config(tmp_path, "killed", PLUGINS=["kills_its_process"])
    (tmp_path / "kills_its_process.py").write_text("import os\n\nos._exit(9)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    document, accuracies = tmp_path / "doc.md", tmp_path / "accuracies.csv"
    document.write_text("<!-- models -->\n<!-- end of models -->\n")
    accuracies.write_text("name,top1\ntiny,12.5\n")
    words = ["models", bad, killed, write_config(tmp_path), "--seconds", "0", "--device", "cpu"]
    words += ["--output", tmp_path / "out", "--docs", document, "--accuracy", accuracies]
    assert tool.main([*map(str, words), "--opts", "DATA.NUM_FRAMES", "3"]) == 1
    printed = capsys.readouterr().out
    assert "| tiny | TimmSpaceTime vit_tiny_patch16_224 | 3 x 32 x 32 |" in printed
    assert "bad was not measured: ValueError: timm has no model 'resnt18'" in printed
    rows = read_csv(tmp_path / "out" / "models.csv")
    assert [(row["name"], row["top1"]) for row in rows] == [
        ("bad", ""),
        ("killed", ""),
        ("tiny", "12.5"),
    ]
    assert "killed was not measured: BrokenProcessPool: A process" in printed
    assert "| tiny | TimmSpaceTime" in document.read_text()
