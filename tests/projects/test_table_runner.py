"""Stages are shared, resumed, reported when they fail, and stop when told to."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from paper_tables.command import TableRun, parse_settings
from paper_tables.measures import line_fields, stage_names
from paper_tables.output import read_csv, write_csv
from paper_tables.plan import Planner
from paper_tables.runner import LOG, Runner, is_done, record_of
from paper_tables.spec import TableError, load_table
from paper_tables.stages import Stage
from tiny_project import make_tiny_project

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "projects/vimpac/run_table.py"


def stage(folder, name, code, needs=(), produced=""):
    kind, key = name.split("-")
    command = (sys.executable, "-c", code)
    return Stage(kind, key, folder / name, command, tuple(needs), produced)


def count(path):
    return f"open({str(path)!r}, 'a').write('x')"


def test_a_shared_stage_runs_once_and_done_stages_never_again(tmp_path):
    runs = tmp_path / "runs"
    shared = stage(tmp_path, "pretrain-1", count(runs))
    ends = [stage(tmp_path, f"finetune-{i}", count(runs), [shared]) for i in (1, 2)]
    said = []
    Runner(said.append).run([shared, ends[0], shared, ends[1]])
    assert runs.read_text() == "xxx"
    assert said[0] == "3 stages, 0 of them done before"
    record = record_of(ends[0])
    assert record["needs"] == ["pretrain-1"]
    assert record["seconds"] > 0
    Runner(said.append).run([shared, *ends])
    assert runs.read_text() == "xxx"
    assert said[-1] == "3 stages, 3 of them done before"


def test_a_failure_is_told_and_only_what_needs_it_is_left_out(tmp_path):
    bad = stage(tmp_path, "pretrain-1", "print('error: no data\\n  - in x'); raise SystemExit(1)")
    after = stage(tmp_path, "finetune-1", count(tmp_path / "after"), [bad])
    last = stage(tmp_path, "finetune-2", count(tmp_path / "after"), [after])
    other = stage(tmp_path, "pretrain-2", count(tmp_path / "other"))
    runner = Runner(lambda text: None)
    runner.run([bad, after, last, other])
    reason = "pretrain-1: error: no data - in x"
    assert runner.failures == dict.fromkeys(("pretrain-1", "finetune-1", "finetune-2"), reason)
    assert (tmp_path / "other").read_text() == "x"
    assert not (tmp_path / "after").exists()
    # Mended, all of it runs.
    good = stage(tmp_path, "pretrain-1", "pass")
    runner = Runner(lambda text: None)
    runner.run([good, after, last, other])
    assert runner.failures == {}
    assert (tmp_path / "after").read_text() == "xx"
    assert not list(tmp_path.rglob("failed.json"))


def test_a_killed_stage_says_so(tmp_path):
    killed = stage(tmp_path, "pretrain-1", "import os; os.kill(os.getpid(), 9)")
    runner = Runner(lambda text: None)
    runner.run([killed])
    assert runner.failures["pretrain-1"] == "pretrain-1: killed by signal 9 (SIGKILL)"


def test_seconds_add_up_over_attempts(tmp_path):
    runner = Runner(lambda text: None)
    runner.run([stage(tmp_path, "pretrain-1", "import time; time.sleep(0.3); raise SystemExit(1)")])
    done = stage(tmp_path, "pretrain-1", "pass")
    Runner(lambda text: None).run([done])
    assert record_of(done)["seconds"] > 0.3


def test_processor_time_and_load_stand_beside_the_seconds(tmp_path):
    """A stage that sleeps takes a second of the clock and little of the processor."""
    code = "import time; time.sleep(1)"
    sleeper = stage(tmp_path, "tokens-a", code)
    busy = stage(tmp_path, "tokens-b", "import time\nwhile time.process_time() < 1: pass")
    Runner(say=lambda _: None).run([sleeper, busy])
    first, second = record_of(sleeper), record_of(busy)
    assert first["seconds"] >= 1
    assert first["cpu_seconds"] < 0.7 < 1 <= second["cpu_seconds"]
    assert second["cpu_seconds"] <= second["seconds"] + 0.1
    assert first["load"] >= 0
    assert first["cores"] == os.cpu_count()


def test_a_store_of_the_users_own_is_taken_and_one_begun_here_is_completed(tmp_path):
    (tmp_path / "store").mkdir()
    tokens = stage(tmp_path, "tokens-1", "pass", produced=str(tmp_path / "store"))
    assert not is_done(tokens)
    (tmp_path / "store/meta.json").write_text("{}")
    assert is_done(tokens)
    tokens.folder.mkdir()
    (tokens.folder / LOG).write_text("$ begun\n")
    assert not is_done(tokens)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("listens", [True, False])
def test_a_signal_stops_the_runner_and_its_stage(signum, listens, tmp_path):
    ignore = "" if listens else "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    inner = (
        f"import os, signal, time; {ignore}open('new', 'w').write(str(os.getpid())); "
        "os.rename('new', 'pid'); time.sleep(600)"
    )
    code = (
        "import sys; from pathlib import Path; from paper_tables import runner;"
        "from paper_tables.stages import Stage; runner._GRACE_SECONDS = 0.2;"
        f"folder = Path({str(tmp_path / 'pretrain-1')!r});"
        f"stage = Stage('pretrain', '1', folder, (sys.executable, '-c', {inner!r}));"
        "runner.Runner().run([stage])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'projects/vimpac'}"}
    pid = tmp_path / "pid"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not pid.is_file() and time.monotonic() < deadline:
                time.sleep(0.05)
            stage = int(pid.read_text())
            process.send_signal(signum)
            assert b"KeyboardInterrupt" in process.communicate(timeout=120)[1]
        finally:
            process.kill()
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)
    assert not (tmp_path / "pretrain-1/stage.json").exists()
    assert (tmp_path / "pretrain-1/seconds.json").is_file()


@pytest.mark.parametrize("size", ["demo", "full"])
def test_equal_pretrainings_are_one_over_rows_and_tables(size, tmp_path):
    """The paper's default row stands in five tables; contrast alone in three."""

    def pretrain_of(number, name, seed=0):
        table = load_table(number, size)
        row = next(row for row in table.rows if row.name == name)
        return Planner(table, tmp_path).plan(row, seed).pretrain[-1].name

    defaults = {pretrain_of(7, "whole video"), pretrain_of(9, "MP, CL with mask")}
    norm = "post" if size == "full" else "standard pre (not in the paper)"  # the demo's
    defaults |= {pretrain_of(4, "MP + CL"), pretrain_of(14, f"T,H|W, {norm}")}
    assert len(defaults) == 1
    assert defaults != {pretrain_of(7, "the same clip")}
    assert defaults != {pretrain_of(4, "MP + CL", seed=1)}
    alone = {pretrain_of(4, "CL"), pretrain_of(9, "CL without mask")}
    assert alone == {pretrain_of(16, "contrast alone")}
    assert pretrain_of(4, "MP") == pretrain_of(16, "0")


@pytest.mark.parametrize("number", [1, 3, 5])
def test_few_labels_share_all_but_the_fine_tuning(number, tmp_path):
    """With fewer labels the pre-training and the tokens are those of the miniature."""
    sizes = [load_table(number, size) for size in ("demo", "few_labels")]
    for all_labels, few in zip(*(table.rows for table in sizes), strict=True):
        if all_labels.quoted:
            continue
        plans = [
            Planner(table, tmp_path).plan(row, 0)
            for table, row in zip(sizes, (all_labels, few), strict=True)
        ]
        kinds = ("data", "tokens", "pretrain", "heldout")
        names = [{s.name for s in plan.stages if s.kind in kinds} for plan in plans]
        assert names[0] == names[1]
        for target in plans[0].finetune:
            first, second = (plan.finetune[target].command for plan in plans)
            assert first != second
            assert "DemoFewLabels" in second
            assert second[second.index("TRAIN.DATASET.num_videos") + 1] == "80"


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_probe_shares_all_but_the_fine_tuning(number, tmp_path):
    """What is probed is the miniature's pre-trained model; without one, random weights."""
    sizes = [load_table(number, size) for size in ("demo", "probe")]
    for tuned, probed in zip(*(table.rows for table in sizes), strict=True):
        if tuned.quoted:
            continue
        plans = [
            Planner(table, tmp_path).plan(row, 0)
            for table, row in zip(sizes, (tuned, probed), strict=True)
        ]
        names = [{s.name for s in plan.stages if s.kind != end} for plan, end in
                 zip(plans, ("finetune", "probe"), strict=True)]  # fmt: skip
        assert names[0] == names[1]
        assert plans[0].finetune.keys() == plans[1].finetune.keys()
        for stage in plans[1].finetune.values():
            where = stage.command[stage.command.index("TEST.CHECKPOINT_FILE_PATH") + 1]
            assert where == (str(plans[1].pretrain[-1].folder) if plans[1].pretrain else "none")
            assert {need.name for need in stage.needs} <= {s.name for s in plans[1].stages}


def test_earlier_results_of_other_configurations_are_left_out(tmp_path, capsys):
    """What a row was before its configuration changed is not averaged with what it is now."""
    table = load_table(6)
    run = TableRun(6, "demo", [0], tmp_path)
    path = tmp_path / "tables/demo_table_06_runs.csv"
    stages = {
        seed: stage_names(run.planner.plan(table.rows[1], seed)) for seed in (1, 2)
    }  # fmt: skip
    stages[2] |= {"finetune:motion": "finetune-obsolete"}
    lines = [
        {"row": "5 blocks", "seed": seed, "status": "done", "top1:motion": 90.0 + seed,
         "stages": json.dumps(names)}
        for seed, names in stages.items()
    ]  # fmt: skip
    lines.append({"row": "5 blocks", "seed": 3, "status": "done", "top1:motion": 10.0})
    write_csv(path, line_fields(table), lines)
    run._write()
    assert "2 earlier results of other configurations" in capsys.readouterr().out
    assert [(entry["seed"], entry["top1:motion"]) for entry in read_csv(path)] == [(1, 91)]


def test_held_out_pairs_are_as_far_apart_as_those_of_training(tmp_path):
    """On the labelled videos, a quarter as long, three rows of Table 7 drew the same pairs."""
    table = load_table(7)
    plan = Planner(table, tmp_path).plan(table.rows[0], 3)
    trained, heldout = plan.pretrain[-1].needs[0], plan.heldout.needs[0]
    assert "--seed 1003" in shlex.join(heldout.command)
    assert "--num-unlabelled 200" in shlex.join(heldout.command)
    assert "--seed 3" in shlex.join(trained.command)
    words = list(plan.heldout.command)
    assert words[words.index("TEST.DATASET.split") + 1] == "unlabelled"
    assert "DATA.TARGET_FPS" not in words  # the pre-training's own
    root = words[words.index("DATA.PATH_TO_DATA_DIR") + 1]
    assert root == str(heldout.folder / "videos")


def test_settings_are_handed_on_as_they_were_given(tmp_path):
    """To the timing of the rows, which is another process, and to the command in the table."""
    words = ["pretrain.LOSSES.contrast=null", "both.DATA.SINGLE_FRAME=true", "pretrain.PLUGINS=[a]"]
    words += ["finetune.SOLVER.BASE_LR=1e-4", "finetune.OUTPUT_DIR="]
    settings = parse_settings(words)
    assert settings["pretrain"]["LOSSES.contrast"] is None
    command = shlex.split(TableRun(14, "demo", [0], tmp_path, settings=settings).command)
    assert parse_settings(command[command.index("--set") + 1 :]) == settings


def test_keys_do_not_depend_on_where_the_runs_lie(tmp_path):
    table = load_table(5)
    names = [
        [stage.name for stage in Planner(table, root).plan(table.rows[0], 0).stages]
        for root in (tmp_path / "a", tmp_path / "b")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("word", ["pretrain.SOLVER.MAX_EPOCH", "SOLVER.MAX_EPOCH=1", "both.=1"])
def test_settings_that_are_none(word):
    with pytest.raises(TableError, match="expected STAGE.KEY=VALUE"):
        parse_settings([word])


def tiny_table(tmp_path):
    """A table at "full" size whose configurations are those of a tiny project."""
    configs = make_tiny_project(tmp_path)
    description = {
        "number": 99,
        "title": "tiny",
        "section": "0",
        "measures": ["parameters", "mask_accuracy", "contrast_loss", "top1"],
        "full": {
            "pretrain": [str(configs / "pretrain.yaml")],
            "targets": {"tiny": {"config": str(configs / "finetune.yaml")}},
        },
        "rows": [
            {"name": "both", "paper": {"tiny": 50.0}},
            {"name": "none", "pretrain": "none"},
            {"name": "broken", "pretrain": {"DATA.PATH_TO_DATA_DIR": "nowhere"}},
        ],
    }
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "table_99.yaml").write_text(yaml.safe_dump(description))
    return folder


@pytest.mark.slow
def test_a_tiny_table_from_start_to_end(tmp_path, monkeypatch, capsys):
    import paper_tables.command as command

    folder = tiny_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_table", lambda n, size: load_table(n, size, folder))
    settings = parse_settings(["both.TRAIN.MICRO_BATCH_SIZE=4"])
    arguments = (99, "full", [0, 1], tmp_path / "out")
    assert command.TableRun(*arguments, settings=settings).run() == 1  # one row is broken
    shown = capsys.readouterr().out
    assert "folder 'nowhere' not found" in shown
    lines = command.read_csv(tmp_path / "out/tables/full_table_99_runs.csv")
    states = {(line["row"], line["seed"]): line["status"] for line in lines}
    assert states == {
        **{("both", seed): "done" for seed in (0, 1)},
        **{("none", seed): "done" for seed in (0, 1)},
        **{("broken", seed): "failed" for seed in (0, 1)},
    }
    for line in lines[:2]:
        stages = json.loads(line["stages"])
        result = tmp_path / "out" / stages["finetune:tiny"] / "test/result.json"
        assert line["top1:tiny"] == json.loads(result.read_text())["top1"]
        assert line["updates"] == 4  # 8 videos, batches of 4, two epochs
        assert 0 <= line["mask_accuracy"] <= 100
    assert lines[0]["mask_accuracy"] != lines[1]["mask_accuracy"]
    assert (tmp_path / "out/tables/full_table_99.png").stat().st_size > 5000
    page = (tmp_path / "out/tables/full_table_99.html").read_text(encoding="utf-8")
    assert "nowhere" in page  # why a row failed
    assert "Curves: pretrain 1" in page
    # Again: only what failed has another chance.
    command.TableRun(*arguments, settings=settings).run()
    assert capsys.readouterr().out.count("done in") == 0


def test_dry_run_of_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "5", "--rows", "block, 25"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "did you mean 'block, 256'" in done.stderr
