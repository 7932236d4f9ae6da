"""The comparison on the demo's videos: one protocol, resumable, and a table of its own rows."""

import argparse
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from vimpac_ext.backbones import TimmSpaceTime
from vimpac_ext.benchmarks import comparison
from vimpac_ext.benchmarks.comparison import (
    PRETRAIN,
    TITLES,
    Clock,
    ProtocolError,
    compare,
    require_one_protocol,
)
from vimpac_ext.benchmarks.comparison_report import (
    block_of,
    facts_of,
    publish,
    read_comparison,
    table_of,
    write_comparison,
)
from vimpac_ext.benchmarks.models_command import add_demo
from vimpac_ext.benchmarks.rates import rates_table, try_rates, write_rates
from vimpac_ext.benchmarks.tables import read_csv
from vimpac_ext.data.synthetic import make_demo_data
from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_task

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "benchmark" / "demo"
DOCUMENT = ROOT / "docs" / "benchmark.md"

CLIP_KEYS = ("NUM_FRAMES", "TARGET_FPS", "SAMPLING_RATE", "TEST_CROP_SIZE", "TRAIN_VIEWS")
TEST_KEYS = ("DATASET", "NUM_ENSEMBLE_VIEWS", "NUM_SPATIAL_CROPS", "START_RULE", "PRECISION")


def test_the_shipped_configs_train_and_test_on_the_same_clips():
    configs = {name: prepare(CONFIGS / f"{name}.yaml").cfg for name in TITLES}
    first = configs["vimpac"]
    for cfg in configs.values():
        assert [cfg.DATA[key] for key in CLIP_KEYS] == [first.DATA[key] for key in CLIP_KEYS]
        assert [cfg.TEST[key] for key in TEST_KEYS] == [first.TEST[key] for key in TEST_KEYS]
        assert cfg.TRAIN.DATASET == first.TRAIN.DATASET
        assert cfg.TRAIN.BATCH_SIZE == first.TRAIN.BATCH_SIZE


def test_only_attention_over_time_differs_between_the_vision_transformers():
    frames, space_time = (prepare(CONFIGS / f"{n}.yaml").cfg for n in ("frames", "space_time"))
    assert frames.keys() == space_time.keys()
    different = [key for key in frames if frames[key] != space_time[key]]
    assert sorted(different) == ["BACKBONE", "OUTPUT_DIR"]
    first, second = build_task(frames).eval(), build_task(space_time).eval()
    first_shapes, second_shapes = (
        {name: p.shape for name, p in task.named_parameters()} for task in (first, second)
    )
    assert second_shapes == {**first_shapes, "backbone.time_position": (1, 5, 1, 128)}
    # Where there is no time to attend to, the same weights give the same features.
    section = {key: value for key, value in space_time.BACKBONE.items() if key != "NAME"}
    one_frame = TimmSpaceTime((1, 32, 32), **section).eval()
    state = first.backbone.state_dict()
    assert one_frame.load_state_dict(state, strict=False).missing_keys == ["time_position"]
    clip = torch.rand(2, 3, 1, 32, 32)
    with torch.no_grad():
        expected = first.backbone(clip)["features"]
        torch.testing.assert_close(one_frame(clip)["features"], expected)


def test_transformers_of_the_comparison_have_one_head():
    names = ("vimpac", "vimpac_scratch", "frames", "space_time")
    heads = [prepare(CONFIGS / f"{name}.yaml").cfg.HEADS for name in names]
    assert all(head == heads[0] for head in heads)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--docs", "nowhere.md"], "there is no document nowhere.md"),
        (["--docs", "empty.md"], "empty.md must have one place between '<!-- demo -->'"),
        (["--docs", "empty.md", "--rates", "1e-3"], "between '<!-- rates -->'"),
        (["--seeds", "0", "1", "0"], "--seeds has a value twice: 0 1 0"),
        (["--seeds", "-1"], "seeds must be at least 0"),
        (["--rates", "0"], "learning rates (--rates) must be above 0"),
        (["--rates", "1e-3", "--rates_seed", "0"], "--rates_seed 0 is one of --seeds"),
    ],
)
def test_mistakes_are_told_before_hours_of_work(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.md").touch()
    parser = argparse.ArgumentParser()
    add_demo(parser.add_subparsers())
    arguments = parser.parse_args(["demo", "--output", "out", *words])
    with pytest.raises(ValueError, match=re.escape(message)):
        arguments.run(arguments)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", TITLES)
def test_models_are_tiny(name):
    task = build_task(prepare(CONFIGS / f"{name}.yaml").cfg)
    assert sum(parameter.numel() for parameter in task.parameters()) < 1.5e6


def test_results_of_different_protocols_are_refused():
    same = {"dataset": "A", "fps": 4, "tokenizer": "V:1"}
    require_one_protocol({"a": same, "b": {**same, "tokenizer": "none"}})
    message = "a and c were not tested alike, so they do not belong in one table: fps 4 and 8"
    with pytest.raises(ProtocolError, match=message):
        require_one_protocol({"a": same, "b": same, "c": {**same, "fps": 8}})


def test_the_clock_adds_up_over_interruptions(tmp_path, monkeypatch):
    ticks = iter([0.0, 10.0, 100.0, 105.0])
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: next(ticks))
    with pytest.raises(KeyboardInterrupt), Clock(tmp_path / "seconds.json").timed("a"):
        raise KeyboardInterrupt
    clock = Clock(tmp_path / "seconds.json")
    with clock.timed("a"):
        pass
    assert clock.seconds == {"a": 15.0}


def rows():
    common = {
        "gflops": 0.5,
        "tokenizer_gflops": 0.0,
        "temporal_views": 10,
        "spatial_crops": 3,
        "seconds_before": 7.0,
        "top5": 99.0,
        "test_videos": 200,
        "threads": 2,
        "processor": "Some CPU",
        "load_average": 0.5,
    }
    return [
        {"model": name, "title": TITLES[name], "seed": seed, "parameters": 0.25,
         "seconds": 60.0 + 20 * seed, "top1": top1 + seed, **common}
        for seed in (0, 1)
        for name, top1 in (("vimpac", 90.0), ("frames", 40.0))
    ]  # fmt: skip


def test_table_has_means_and_spread_over_seeds(tmp_path):
    lines = table_of(rows()).splitlines()
    expected = "| VIMPAC, pre-trained | 0.25 | 0.500 × 10 x 3 | 70 | 7 | 90.5 ± 0.7 | 90.0, 91.0 |"
    assert lines[2] == expected
    assert len(lines) == 4
    assert "--seeds 0 1` on Some CPU, 2 threads" in facts_of(rows())
    write_comparison(tmp_path, rows())
    assert table_of(read_comparison(tmp_path / "comparison.csv")) == table_of(rows())
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_rates_that_were_tried(tmp_path):
    tried = [
        {"model": "frames", "title": "ViT", "rate": rate, "top1": top1, "shipped": 1e-3}
        for rate, top1 in ((1e-3, 40.0), (1e-4, 30.0))
    ]
    expected = "| ViT | 30.0 | **40.0** | 0.001 |"
    assert rates_table(tried).splitlines()[2] == expected
    document = tmp_path / "benchmark.md"
    document.write_text("<!-- rates -->\n<!-- end of rates -->\n")
    write_rates(tmp_path / "output", tried, document)
    assert expected in document.read_text()
    assert read_csv(tmp_path / "benchmark_rates.csv")[0]["top1"] == "40.0"


def test_a_document_gets_table_and_files(tmp_path):
    document = tmp_path / "benchmark.md"
    document.write_text("<!-- demo -->\n<!-- end of demo -->\n")
    publish(document, rows())
    assert table_of(rows()) in document.read_text()
    assert read_comparison(tmp_path / "benchmark_demo.csv")[0]["top1"] == 90.0


def test_the_documented_table_is_that_of_its_file():
    results = DOCUMENT.with_name("benchmark_demo.csv")
    block = re.search(
        r"<!-- demo -->\n(.*?)\n<!-- end of demo -->", DOCUMENT.read_text(), re.DOTALL
    )
    if results.is_file():
        published = read_comparison(results)
        assert block[1] == block_of(published, results.stem)
        assert results.with_suffix(".png").is_file()
    else:
        assert block[1] == "Not run yet."


def small_configs(folder):
    """The shipped configurations with one epoch and few views."""
    folder.mkdir()
    for name in (PRETRAIN, *TITLES):
        text = f"_BASE_: {CONFIGS / name}.yaml\nSOLVER: {{MAX_EPOCH: 1}}\nTENSORBOARD: False\n"
        text += "TRAIN: {BATCH_SIZE: 10}\n"
        text += "TEST: {NUM_ENSEMBLE_VIEWS: 1, NUM_SPATIAL_CROPS: 3}\n"
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.slow
def test_runs_all_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    configs = small_configs(tmp_path / "configs")
    counts = {"num_train": 20, "num_validation": 10, "num_unlabelled": 10, "num_workers": 0}
    make_data = partial(make_demo_data, **counts)
    begun = []

    def interrupted(loaded):
        begun.append(Path(loaded.cfg.OUTPUT_DIR).name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return run(loaded)

    run = comparison.run
    monkeypatch.setattr(comparison, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(configs, tmp_path / "output", [0], make_data)
    found = compare(configs, tmp_path / "output", [0], make_data)
    assert begun == [PRETRAIN, "vimpac", "vimpac_scratch", *list(TITLES)[1:]]
    assert [row["model"] for row in found] == list(TITLES)
    assert all(row["test_videos"] == 10 and row["seconds"] > 0 for row in found)
    by_name = {row["model"]: row for row in found}
    assert by_name["vimpac"]["seconds_before"] > by_name["vimpac_scratch"]["seconds_before"] > 0
    assert by_name["frames"]["seconds_before"] == by_name["frames"]["tokenizer_gflops"] == 0
    assert by_name["vimpac"]["gflops"] > by_name["vimpac"]["tokenizer_gflops"] > 0
    again = compare(configs, tmp_path / "output", [0], make_data)
    assert [row["top1"] for row in again] == [row["top1"] for row in found]
    assert len(begun) == 3 + len(TITLES) - 1
    trials = try_rates(configs, tmp_path / "output", 0, [1e-3, 1e-4], make_data)
    assert [row["rate"] for row in trials] == [1e-3, 1e-4] * len(TITLES)
    assert trials[0]["top1"] == found[0]["top1"]  # the rate that VIMPAC has anyway
    changed = configs / "frames.yaml"
    text = changed.read_text()
    changed.write_text(text.replace("{MAX_EPOCH: 1}", "{MAX_EPOCH: 2}"))
    with pytest.raises(ProtocolError, match="runs of frames with other settings: choose another"):
        compare(configs, tmp_path / "output", [0], make_data)


def test_says_where_the_configs_are_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="needs a checkout"):
        compare(tmp_path, tmp_path / "output", [0])


def test_settings_do_not_depend_on_where_the_folder_is(tmp_path):
    for name in ("a", "b"):
        overrides = comparison.overrides_of("frames", tmp_path / name, 0)
        loaded = {"frames": prepare(CONFIGS / "frames.yaml", overrides)}
        comparison.require_same_settings(tmp_path / name, loaded)
    first, second = (json.loads((tmp_path / n / "settings.json").read_text()) for n in ("a", "b"))
    assert first == second
