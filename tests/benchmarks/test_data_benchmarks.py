"""The benchmarks of the data path run, and compare what they say they compare."""

import importlib.util
import json
from pathlib import Path

import pytest

from vimpac_ext.benchmarks.extraction_speed import measure_extraction
from vimpac_ext.benchmarks.result import Result, speeds_in_turns
from vimpac_ext.benchmarks.store_opening import measure_store_opening
from vimpac_ext.benchmarks.token_loader import measure_token_loader

ROOT = Path(__file__).resolve().parents[2]


def test_token_loader(tmp_path):
    """Equal clips of both formats are asserted inside."""
    rows = measure_token_loader(tmp_path, num_videos=3, num_frames=40, seconds=0.05).rows
    assert rows["ratio"] == rows["our store, samples/s"] / rows["whole records, samples/s"]
    assert rows["our store, bytes of a sample"] == 5 * (16 * 16 * 2 + 4)
    assert rows["whole records, bytes of a sample"] == 40 * 16 * 16 * 2


def test_extraction(tmp_path):
    rows = measure_extraction(
        tmp_path, num_videos=2, video_seconds=1, fps=5.0, tokenizer="none", seconds=0.05
    ).rows
    assert all(number > 0 for name, number in rows.items() if name.endswith(("frames/s", "ms")))


@pytest.mark.slow
def test_opening(tmp_path):
    rows = measure_store_opening(tmp_path, num_videos=2000, num_shards=3, num_runs=1).rows
    assert len(rows) == 10
    assert all(number >= 0 for number in rows.values())


def test_speeds_are_medians_of_work_per_time(monkeypatch):
    clock, milliseconds = [0.0], iter([999, 10, 10, 30, 10, 20])  # first to warm up

    def work():
        clock[0] += next(milliseconds) / 1000
        return 5

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.process_time", lambda: clock[0] / 2)
    speed = speeds_in_turns({"a": work}, 5 * 0.009)["a"]
    assert speed.per_second == pytest.approx(5 / 0.01)
    assert speed.cpu_ms == pytest.approx(10 / 5 / 2)


def test_result_as_text():
    text = str(Result("title", {"short": 1234.5, "longer name": 0.25}))
    assert text.splitlines() == ["title", "  short        1,234", "  longer name  0.25"]


def test_tool_writes_numbers_and_machine(tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(
        "vimpac_ext.benchmarks.token_loader.measure_token_loader",
        lambda folder, seconds: measure_token_loader(folder, 2, 10, seconds),
    )
    output = tmp_path / "numbers.json"
    words = ["data", "--only", "loader", "--seconds", "0.01", "--output", str(output)]
    assert module.main(words) == 0
    content = json.loads(output.read_text())
    assert content["machine"]["cores"] >= 1
    assert content["results"][0]["title"].startswith("token loader, 2 videos x 10 frames")
    assert "whole records, samples/s" in capsys.readouterr().out
