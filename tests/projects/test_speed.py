"""The speed column times each row's own model, rows in turns, and keeps what else is known."""

import json
from pathlib import Path

import pytest
import torch
from paper_tables.command import TableRun, parse_settings
from paper_tables.measures import backbone_parameters, line_fields, stage_names
from paper_tables.output import SPEED_FIELDS, read_csv, results_of, speed_of, write_csv
from paper_tables.plan import Planner
from paper_tables.report import provenance
from paper_tables.resolved import grid_of, resolve
from paper_tables.spec import TableError, load_table
from paper_tables.speed import time_rows, training_step


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("number", [2, 3, 14])
def test_the_model_and_the_clips_are_the_rows_own(number):
    table = load_table(number)
    planner = Planner(table, Path("out"))
    seen = set()
    for row in table.rows:
        cfg = resolve(row.pretrain[-1], planner.pretrain_overrides(row))
        step = training_step(planner, row, "cpu", videos=2)
        backbone = step.task.backbone
        size = sum(parameter.numel() for parameter in backbone.parameters())
        assert round(size / 1e6, 3) == backbone_parameters(planner, row)
        assert step.clip_shape == grid_of(cfg)
        assert step.num_clips == 4
        with torch.no_grad():
            loss = step.task.training_step(step.batch, torch.Generator().manual_seed(0))["loss"]
        seen.add((size, step.clip_shape, loss.item()))
    assert len(seen) == len(table.rows)


def test_rows_take_turns_and_a_step_updates_the_weights():
    table = load_table(3)
    planner = Planner(table, Path("out"))
    step = training_step(planner, table.rows[0], "cpu", videos=2)
    before = step.task.backbone.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    step.seconds()
    after = step.task.backbone.state_dict()
    assert any(not after[name].equal(value) for name, value in before.items())
    rows = list(table.rows[:2])
    entries = list(time_rows(planner, rows, "cpu", videos=2, rounds=2))
    names = [row.name for row in rows]
    assert [(entry["row"], entry["round"]) for entry in entries] == [
        *((name, 0) for name in names),
        *((name, 1) for name in names),
    ]
    for entry in entries:
        assert entry["clips"] == 4
        assert entry["cpu_seconds"] > 0
        assert entry["hardware"].endswith("1 thread")
        assert speed_of(entry) == 4 / entry["cpu_seconds"]
    (several,) = time_rows(planner, rows[:1], "cpu", videos=2, rounds=1, threads=2)
    assert "cpu_seconds" not in several  # threads share the work: only the clock tells
    assert speed_of(several) == 4 / several["seconds"]


def test_a_row_that_was_only_timed_has_its_parameters():
    table = load_table(14)
    entry = {"row": "TxHxW, post", "round": 0, "seconds": 2.0, "clips": 4, "parameters": 0.6}
    result = next(r for r in results_of(table, [], [entry]) if r.speed)
    assert result.spread("parameters").mean == 0.6
    assert result.spread("speed").mean == 2.0


def stages_of(run, row, seed):
    return json.dumps(stage_names(run.planner.plan(run.table.rows[row], seed)))


def test_a_timing_of_other_settings_is_not_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("paper_tables.command.Runner.run", lambda self, stages: None)
    run = TableRun(
        14, "demo", [0], tmp_path, settings=parse_settings(["both.BACKBONE.embed_dim=64"])
    )
    (stage,) = run._speed_stages()
    entry = {"row": "TxHxW, post", "round": 0, "seconds": 2.0, "clips": 4, "parameters": 0.6}
    write_csv(stage.folder / "speed.csv", SPEED_FIELDS, [entry])
    (stage.folder / "stage.json").write_text(json.dumps({"name": stage.name}))
    run.run_speed()
    path = tmp_path / "tables/demo_table_14_speed.csv"
    (timed,) = read_csv(path)
    assert timed["settings"] == "both.BACKBONE.embed_dim=64"
    said = provenance(run.table, [], [timed])
    assert "run_table.py 14 --speed --set both.BACKBONE.embed_dim=64`" in said
    TableRun(14, "demo", [0], tmp_path).run_speed()  # not timed: nothing is shown
    assert not path.exists()


@pytest.mark.parametrize("size", ["few_labels", "probe"])
def test_the_other_forms_of_the_miniature_time_nothing(size, tmp_path):
    """Their pre-training is the miniature's: a second timing would contradict the first."""
    run = TableRun(14, size, [0], tmp_path)
    assert run._speed_stages() == []
    with pytest.raises(TableError, match="has no speed"):
        run.run_speed()
    written = Path(__file__).resolve().parents[2] / "projects/vimpac/results"
    assert not list(written.glob(f"{size}_*_speed.csv"))


def test_timing_keeps_the_results_that_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paper_tables.command.Runner.run", lambda self, stages: None)
    table = load_table(14)
    run = TableRun(14, "demo", [0], tmp_path)
    lines = [
        {"row": "TxHxW, post", "seed": seed, "status": "done", "top1:motion": 50.0 + seed,
         "settings": settings, "stages": stages_of(run, 0, seed)}
        for seed, settings in ((0, ""), (1, ""), (2, "both.NUM_GPUS=1"))
    ]  # fmt: skip
    write_csv(tmp_path / "tables/demo_table_14_runs.csv", line_fields(table), lines)
    assert run.run_speed() == 0
    kept = read_csv(tmp_path / "tables/demo_table_14_runs.csv")
    assert [(line["seed"], line["top1:motion"]) for line in kept] == [(0, 50), (1, 51)]
    assert "1 earlier results of other configurations or settings" in capsys.readouterr().out
    with pytest.raises(TableError, match="table 5 has no speed; 2, 3, 14 have"):
        TableRun(5, "demo", [0], tmp_path).run_speed()


def test_another_seed_joins_those_that_were_run_before(tmp_path, monkeypatch):
    monkeypatch.setattr("paper_tables.command.Runner.run", lambda self, stages: None)
    table = load_table(6)
    run = TableRun(6, "demo", [1], tmp_path, rows=["4 blocks"])
    done = {"row": "4 blocks", "seed": 0, "status": "done", "top1:motion": 50.0}
    done["stages"] = stages_of(run, 0, 0)
    write_csv(tmp_path / "tables/demo_table_06_runs.csv", line_fields(table), [done])
    run.run()
    lines = read_csv(tmp_path / "tables/demo_table_06_runs.csv")
    assert [(line["seed"], line["status"]) for line in lines] == [(0, "done"), (1, "not run")]


def test_the_timing_has_a_name_of_its_own_and_changes_no_other(tmp_path, capsys):
    run = TableRun(14, "demo", [0], tmp_path)
    assert run.show() == 0
    printed = capsys.readouterr().out
    assert "projects/vimpac/speed.py 14 --output" in printed
    stages = {stage.name for plan in run.plans for stage in plan.stages}
    assert not any(name.startswith("speed-") for name in stages)
