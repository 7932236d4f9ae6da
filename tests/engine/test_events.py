import io
import json
import logging
import sys

import pytest
from tiny_project import make_tiny_project

from vimpac_ext.command_line import start_logging
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.events import EventLog


def test_lines_go_to_stdout_and_file(tmp_path, capsys):
    log = EventLog(tmp_path, tensorboard=False)
    log.write("train_iter", 3, {"loss": 1.23456789, "epoch": "1/2"})
    log.close()
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("json_stats: {")
    expected = {"_type": "train_iter", "update": 3, "loss": 1.23457, "epoch": "1/2"}
    assert json.loads(printed.removeprefix("json_stats: ")) == expected
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == expected


def test_a_resumed_run_removes_the_lines_it_writes_again(tmp_path):
    log = EventLog(tmp_path, tensorboard=False)
    for update in range(1, 6):
        log.write("train_iter", update, {"loss": 0.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 6, "los')  # killed while writing
    resumed = EventLog(tmp_path, tensorboard=False, first_update=4)
    resumed.write("train_iter", 4, {"loss": 1.0})
    resumed.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["update"], line["loss"]) for line in lines] == [
        (1, 0.0),
        (2, 0.0),
        (3, 0.0),
        (4, 1.0),
    ]


def test_tensorboard_has_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventLog(tmp_path, tensorboard=True)
    log.write("train_iter", 7, {"loss": 2.5, "epoch": "1/2"})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (scalar,) = events.Scalars("train_iter/loss")
    assert (scalar.step, scalar.value) == (7, 2.5)


def test_the_log_file_has_the_lines_and_the_terminal_has_them_once(tmp_path, capsys):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        start_logging(tmp_path)
        with EventLog(tmp_path, tensorboard=False) as log:
            log.write("train_iter", 3, {"loss": 0.5})
        logging.getLogger("vimpac_ext").info("something else")
        for handler in root.handlers:
            handler.close()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    written = (tmp_path / "stdout.log").read_text().splitlines()
    printed = capsys.readouterr().out.splitlines()
    for found in (written, printed):
        (line,) = (line for line in found if "json_stats: " in line)
        assert json.loads(line.split("json_stats: ")[1]) == {
            "_type": "train_iter",
            "update": 3,
            "loss": 0.5,
        }
        assert "I something else" in found


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_bar_on_a_terminal_and_plain_lines_elsewhere(stream, tmp_path, monkeypatch, capsys):
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    run(prepare(make_tiny_project(tmp_path) / "pretrain.yaml"))
    assert ("4/4" in stderr.getvalue()) == (stream is Terminal)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("json_stats: {") for line in lines) == 4
