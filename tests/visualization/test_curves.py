"""Scalars from metrics.jsonl and the curves drawn of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from vimpac_ext.visualization import (
    RunFileError,
    draw_curves,
    read_metrics,
    read_result,
    read_table,
    run_labels,
    save_plot,
)


def write_metrics(folder, lines, end=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + end)


def iteration(update, **scalars):
    return {"_type": "train_iter", "update": update, "epoch": "1/2", "gpu_mem": "0.0G", **scalars}


def test_scalars_are_read_by_kind(tmp_path):
    lines = [
        iteration(10, loss=2.5, dt=0.1, paused=True),
        iteration(20, loss=float("nan"), dt=0.2),
        {"_type": "test_final", "update": 20, "top1_acc": "61.50", "protocol_id": "123456789012"},
        iteration(30, loss=1.5),
        {"_type": "test_final", "update": 20, "top1_acc": "62.00"},
    ]
    write_metrics(tmp_path, lines, end='{"_type": "train_it')  # killed
    metrics = read_metrics(tmp_path)
    assert metrics.series == {
        "train_iter/loss": [(10, 2.5), (30, 1.5)],
        "test_final/top1_acc": [(20, 62.0)],
    }
    assert metrics.timings == {"train_iter/dt": [(10, 0.1), (20, 0.2)]}


def test_a_line_that_is_no_event_is_named(tmp_path):
    write_metrics(tmp_path, [iteration(1, loss=1.0)], end="[1]\n")
    with pytest.raises(RunFileError, match=r"metrics\.jsonl, line 2: expected .* found '\[1\]'"):
        read_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path / "nowhere")


def test_results_and_tables_that_are_something_else_are_named(tmp_path):
    assert read_result(tmp_path) is None
    assert read_table(tmp_path / "a.csv") is None
    (tmp_path / "test").mkdir()
    for text, message in (("{", "is not JSON"), ('{"top1": 1}', "no mean_class_accuracy, prot")):
        (tmp_path / "test/result.json").write_text(text)
        with pytest.raises(RunFileError, match=rf"result\.json {message}|{message}"):
            read_result(tmp_path)
    (tmp_path / "a.csv").write_text('x,y\n"1,5",2\n3\n')
    with pytest.raises(RunFileError, match=r"a\.csv, row 3 has 1 cells, the header has 2"):
        read_table(tmp_path / "a.csv")


RUNS = {
    "one": {"train_iter/loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "val_epoch/loss": [(3, 7.0)]},
    "two": {"train_iter/loss": [(1, 2.5), (3, 0.5)], "train_iter/$lr$": [(1, 0.1), (2, 0.2)]},
}


def test_each_run_is_a_line_of_its_values():
    figure = draw_curves(RUNS)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    # A single value is no curve and is drawn only when it is asked for.
    assert list(panels) == ["train_iter/loss", "train_iter/$lr$"]
    drawn = [line.get_xydata().tolist() for line in panels["train_iter/loss"].lines]
    assert drawn == [[[1, 3], [2, 2], [3, 1]], [[1, 2.5], [3, 0.5]]]
    assert len(panels["train_iter/$lr$"].lines) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    lr_colour = panels["train_iter/$lr$"].lines[0].get_color()
    assert lr_colour == panels["train_iter/loss"].lines[1].get_color()


def test_scalars_are_chosen_by_name_with_or_without_their_kind():
    def titles(*scalars):
        return [a.get_title() for a in draw_curves(RUNS, scalars).axes if a.get_visible()]

    assert titles("loss") == ["train_iter/loss", "val_epoch/loss"]
    assert titles("val_epoch/loss") == ["val_epoch/loss"]
    with pytest.raises(ValueError, match=r"no scalar 'los'; there are: train_iter/loss, val_epoch"):
        titles("los")
    with pytest.raises(ValueError, match="no scalars in a"):
        draw_curves({"a": {}})


def test_the_written_picture_shows_every_run_in_its_colour(tmp_path):
    save_plot(tmp_path / "both.png", draw_curves(RUNS, ["train_iter/loss"]))
    save_plot(tmp_path / "one.png", draw_curves({"one": RUNS["one"]}, ["train_iter/loss"]))

    def has(name, colour):
        pixels = imread(tmp_path / name)[..., :3]
        return (np.abs(pixels * 255 - colour).max(-1) < 12).sum() > 100

    blue, orange = (31, 119, 180), (255, 127, 14)
    assert has("both.png", blue)
    assert has("both.png", orange)
    assert has("one.png", blue)
    assert not has("one.png", orange)


def test_labels_are_the_shortest_ends_of_paths_that_differ(tmp_path):
    assert run_labels([Path("a/x"), Path("a/y/")]) == ["x", "y"]
    assert run_labels([Path("a/s0/fine"), Path("a/s1/fine")]) == ["s0/fine", "s1/fine"]
    with pytest.raises(ValueError, match="given twice"):
        run_labels([tmp_path, tmp_path / "b" / ".."])
