"""Scalars from metrics.jsonl and the curves drawn of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from vimpac_ext.visualization import (
    RunFileError,
    draw_curves,
    line_styles,
    read_metrics,
    read_result,
    read_table,
    run_labels,
    save_plot,
)
from vimpac_ext.visualization.texts import missing_letters_as_boxes


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


@pytest.mark.parametrize(
    "line",
    [
        b'{"_type": "a", "update": null, "loss": 1}',
        b'{"_type": "a", "update": 1.5, "loss": 1}',
        b'{"_type": "a", "update": 1, "top1_acc": "abc"}',
        b'{"_type": "a", "update": 1, "loss": 1' + b"0" * 400 + b"}",
        b"\xff\xfe",
        b"",
    ],
)
def test_every_bad_line_is_named(tmp_path, line):
    write_metrics(tmp_path, [iteration(1, loss=1.0)])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(RunFileError, match=r"metrics\.jsonl, line 2: expected "):
        read_metrics(tmp_path)


def test_lines_end_at_line_feeds_alone(tmp_path):
    text = json.dumps(iteration(1, loss=1.0, note="a\u2028b\x85c"), ensure_ascii=False)
    (tmp_path / "metrics.jsonl").write_text(text + "\n", encoding="utf-8")
    assert read_metrics(tmp_path).series == {"train_iter/loss": [(1, 1.0)]}


def test_values_that_are_not_finite_are_listed(tmp_path):
    """Of several for an update the last counts, whatever it is."""
    values = [(3, "nan"), (1, 1.0), (2, "-inf"), (4, 4.0), (4, "nan"), (5, "nan"), (5, 5.0)]
    write_metrics(tmp_path, [iteration(u, loss=float(v), dt=float("inf")) for u, v in values])
    metrics = read_metrics(tmp_path)
    assert metrics.series == {"train_iter/loss": [(1, 1.0), (5, 5.0)]}
    assert metrics.timings == {}
    assert metrics.not_finite == {"train_iter/loss": [2, 3, 4], "train_iter/dt": [1, 2, 3, 4, 5]}
    assert metrics.left_out() == [
        "train_iter/loss (3 values not finite, updates 2, 3, 4)",
        "train_iter/dt (5 values not finite, updates 1, 2, 3, 4, 5)",
    ]


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


LOSS = {"train_iter/loss": [(1, 3.0), (2, 2.0)]}


@pytest.mark.parametrize(
    "name",
    ["run_of/" * 30, "W" * 150, "\u5f71" * 60, "_old $x$ \u65e5"],
    ids=["parts", "wide", "chinese", "underscore"],
)
def test_names_of_runs_are_whole_and_within_the_picture(tmp_path, name):
    figure = draw_curves({"one": LOSS, name: LOSS})
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.replace("\n", "") for text in shown] == ["one", name]
    save_plot(tmp_path / "a.png", figure)  # warnings of letters without a glyph are errors here
    picture = imread(tmp_path / "a.png")[..., :3]
    panel = figure.axes[0].get_position()
    legend = picture[: int((1 - panel.y1) * len(picture)) - 2]
    letters = (legend < 0.4).all(-1).any(0)
    assert letters.any()
    assert not letters[-8:].any()
    [legend] = figure.legends
    with missing_letters_as_boxes():
        extent = legend.get_window_extent()
    assert extent.y0 >= figure.axes[0].title.get_window_extent().y1
    assert 150 < panel.height * len(picture) < 330  # the legend leaves the panel its room


def test_long_names_are_broken_after_their_parts():
    [text] = draw_curves({"some_words_of/" * 10: LOSS}).legends[0].get_texts()
    lines = text.get_text().split("\n")
    assert len(lines) > 2
    assert all(line.endswith(("_", "/")) for line in lines)


@pytest.mark.parametrize("num_runs", [1, 10, 20, 25, 30, 31, 70])
def test_no_two_runs_have_one_style(num_runs):
    styles = line_styles(num_runs)
    assert len(set(styles)) == len(styles) == num_runs
    figure = draw_curves({f"run {i}": LOSS for i in range(num_runs)})
    lines = figure.axes[0].lines
    drawn = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(drawn) == num_runs


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
