"""RESULTS.md says what the files say, and verdicts follow from the numbers."""

import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paper_tables.findings import (
    NOISE,
    NOT_RUN,
    ONE_SEED,
    OPPOSITE,
    SHOWS,
    Finding,
    judge,
    load_findings,
    measured_column,
)
from paper_tables.measures import line_fields
from paper_tables.output import SPEED_FIELDS, read_csv, results_of, write_csv
from paper_tables.report import collect, load_results, report
from paper_tables.spec import SIZES, TableError, load_table, table_numbers
from paper_tables.spread import chance_width, half_width, spread_of

from projects.vimpac.demo_shapes import DemoFewLabels, DemoShapes
from vimpac_ext.maskers import induced_mask_ratio

PROJECT = Path(__file__).resolve().parents[2] / "projects/vimpac"


def line(row, seed, top1, **more):
    # Each seed of a row has a stage of its own, and all of them one in common.
    seconds = json.dumps({f"finetune-{row}-{seed}": 10.0, "pretrain-of-all": 30.0})
    return {"row": row, "seed": seed, "status": "done", "top1:motion": top1, "seconds": 40.0,
            "test_videos": 200, "hardware": "an abacus", "stage_seconds": seconds,
            **more}  # fmt: skip


LINES = [
    *(line("block, 256", seed, top1, mask_accuracy=40 + seed) for seed, top1 in
      enumerate((60.0, 62.5, 61.0))),
    *(line("i.i.d., 256", seed, top1, mask_accuracy=55 + seed) for seed, top1 in
      enumerate((50.0, 51.5, 52.0))),
    line("block, 128", 0, 44.0),
    line("i.i.d., 128", 0, 33.0),
    {"row": "i.i.d., 128", "seed": 1, "status": "failed", "reason": "pretrain-1: no | memory"},
]  # fmt: skip


def cells_of(text, heading):
    """The rows of the first Markdown table below a heading."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, text in enumerate(lines) if text.startswith("| row"))
    rows = []
    for text in lines[start:]:
        if not text.startswith("|"):
            break
        rows.append([cell.strip() for cell in text.replace("\\|", "/").strip("|").split("|")])
    return rows[0], {row[0]: row for row in rows[2:]}


def check_numbers(results):
    """Every mean and spread of RESULTS.md, computed anew from the csv files."""
    text = report(results)
    checked = 0
    for number in table_numbers():
        for size in SIZES:
            table = load_table(number, size)
            if table.kind != "runs" or not (results / f"{table.name}_runs.csv").is_file():
                continue
            header, rows = cells_of(text, f"## Table {number}: {table.title} ({table.size_words})")
            assert len(rows) == len(table.rows)
            for row in table.rows:
                cells = rows[row.label.replace("|", "/")]
                for position, column in enumerate(table.columns, start=1):
                    if column in ("speed", "parameters"):
                        continue
                    values = [
                        float(entry[column])
                        for entry in read_csv(results / f"{table.name}_runs.csv")
                        if entry["row"] == row.name and entry[column] != ""
                    ]
                    digits = 2 if column == "contrast_loss" else 1
                    expected = f"{np.mean(values):.{digits}f}" if values else "-"
                    if len(values) > 1:
                        expected += f" ± {np.std(values, ddof=1):.{digits}f}"
                    assert cells[position] == expected
                    checked += bool(values)
                for name, printed in row.paper.items():
                    cell = cells[1 + len(table.columns) + table.paper_columns.index(name)]
                    assert float(cell.split(" ")[0]) == printed
    return text, checked


def test_numbers_are_those_of_the_files(tmp_path):
    table = load_table(5)
    write_csv(tmp_path / "demo_table_05_runs.csv", line_fields(table), LINES)
    text, checked = check_numbers(tmp_path)
    assert checked == 6
    _, rows = cells_of(text, "## Table 5")
    assert rows["block, 64 px"][2] == "61.2 ± 1.3"
    assert rows["i.i.d., 32 px"][-1] == "seeds 0; seed 1 failed: pretrain-1: no / memory"
    for said in ("--seeds 0 1 2`", "110 s for 9 trainings", "test videos: 200", "on an abacus"):
        assert said in text
    assert text.count("Not run.") == 11  # every other table, none left out


def test_committed_results_are_those_of_the_files():
    committed = (PROJECT / "RESULTS.md").read_text(encoding="utf-8")
    text, _ = check_numbers(PROJECT / "results")
    assert committed == text


def test_numbers_that_are_told_elsewhere_are_those_of_the_files():
    """In the README of the library, and how much the miniature hides in the head of RESULTS.md."""
    readme = " ".join((PROJECT.parents[1] / "README.md").read_text(encoding="utf-8").split())
    for size, row in (
        ("demo", "no pre-training, 4 times the epochs"),
        ("few_labels", "no pre-training, 4 times the epochs"),
        ("few_labels", "VIMPAC"),
    ):
        results = load_results(load_table(1, size), PROJECT / "results")
        found = next(result for result in results if result.row.name == row)
        assert found.spread("top1:motion").shown() in readme
    shares = {n: f"{100 * induced_mask_ratio((5, 4, 4), n):.0f} %" for n in (5, 10, 20)}
    assert f"hides {shares[10]} of the tokens" in " ".join(report(PROJECT / "results").split())
    comments = " ".join(f.comment for f in load_findings() if f.table in (6, 15))
    for blocks, share in shares.items():
        assert f"what {blocks} blocks hide, {share}" in comments
    assert f"10 against 20 blocks, which hide {shares[10]} and {shares[20]}" in comments
    assert f"10 against 5 blocks, which hide {shares[10]} and {shares[5]}" in comments


def test_one_command_writes_it_from_the_files_alone(tmp_path):
    shutil.copytree(PROJECT / "results", tmp_path / "results")
    words = ["--runs", str(tmp_path / "nowhere"), "--results", str(tmp_path / "results")]
    command = [sys.executable, str(PROJECT / "results.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "RESULTS.md").read_text() == (PROJECT / "RESULTS.md").read_text()


def test_committed_files_are_small_and_have_every_seed():
    for path in (PROJECT / "results").iterdir():
        assert path.suffix in (".csv", ".png")
        assert path.stat().st_size < 150_000
    for path in (PROJECT / "results").glob("*.csv"):
        text = path.read_text()
        assert path.stat().st_size < 50_000
        assert not re.search(r"(^|[\s,\"'])/\w+/", text), f"{path} tells of folders"
    for path in (PROJECT / "results").glob("*_runs.csv"):
        lines = read_csv(path)
        assert len({(line["row"], line["seed"]) for line in lines}) == len(lines)
        for entry in lines:
            if entry["status"] == "done":
                assert entry["seconds"] > 0
                assert entry["hardware"]
                assert json.loads(entry["stages"])


@pytest.mark.parametrize(
    ("higher", "lower", "equal", "word"),
    [
        ((60, 62, 61), (50, 51, 52), False, SHOWS),
        ((50, 51, 52), (60, 62, 61), False, OPPOSITE),
        ((60, 50, 55), (50, 52, 54), False, NOISE),
        ((60,), (10,), False, ONE_SEED),  # is no evidence
        # A video or two of 200, by chance alike in all seeds, are less than their number can tell.
        ((94.5, 95.0, 95.5), (95.5, 96.0, 96.0), False, NOISE),
        ((98.5, 99.0, 99.5), (92.5, 93.0, 93.5), False, SHOWS),
        ((100, 100, 100), (99.0, 99.0, 99.5), False, NOISE),  # 600 against 595 of 600 videos
        ((), (10,), False, NOT_RUN),
        ((60, 61, 62), (60.5, 61, 61), True, NOISE),  # 600 test videos leave 5.5 points open
        ((90, 91, 92), (90.5, 91, 91), True, "no difference found"),
        ((60, 50, 55), (50, 52, 54), True, NOISE),  # the interval is far wider than five points
        ((60, 62, 61), (50, 51, 52), True, "a difference shows"),
        ((60,), (60,), True, ONE_SEED),
    ],
)
def test_verdicts(higher, lower, equal, word):
    table = load_table(5)
    lines = [line("block, 256", seed, value) for seed, value in enumerate(higher)]
    lines += [line("i.i.d., 256", seed, value) for seed, value in enumerate(lower)]
    finding = Finding(5, "x", "top1:UCF101", "block, 256", "i.i.d., 256", "y", equal)
    assert judge(finding, table, results_of(table, lines)).word == word


def test_rows_at_the_ceiling_are_called_too_easy():
    table = load_table(5)
    apart = Finding(5, "x", "top1:UCF101", "block, 256", "i.i.d., 256", "y", equal=True)
    lines = [line("block, 256", seed, 98.5) for seed in range(3)]
    lines += [line("i.i.d., 256", seed, 92.5) for seed in range(3)]
    verdict = judge(apart, table, results_of(table, lines))
    assert verdict.word == "a difference shows"
    assert "little left to tell" not in verdict.sentence
    finding = Finding(5, "x", "top1:UCF101", "block, 256", "i.i.d., 256", "y")
    for top1, easy in ((98.0, True), (80.0, False)):
        lines = [line("block, 256", seed, 99.0) for seed in (0, 1)]
        lines += [line("i.i.d., 256", seed, top1 + seed) for seed in (0, 1)]
        verdict = judge(finding, table, results_of(table, lines))
        assert ("Both are above 90 %, where this task has little left to tell" in
                verdict.sentence) == easy  # fmt: skip


def test_what_is_missing_for_a_verdict_is_said():
    table = load_table(5)
    finding = Finding(5, "x", "top1:UCF101", "block, 128", "i.i.d., 128", "y")
    for lines, said in (
        ([], "No seed of 'block, 32 px' and 'i.i.d., 32 px' is finished."),
        (
            [line("block, 128", seed, 50.0) for seed in (0, 2)],
            "No seed is finished for both: 'block, 32 px' has seed 0, 2, 'i.i.d., 32 px' has none.",
        ),
    ):
        verdict = judge(finding, table, results_of(table, lines))
        assert (verdict.word, verdict.sentence) == (NOT_RUN, said)
    lines = [line("block, 128", seed, 50.0) for seed in (0, 2)] + [line("i.i.d., 128", 2, 40.0)]
    verdict = judge(finding, table, results_of(table, lines))
    assert (verdict.word, verdict.difference) == (ONE_SEED, "+10.0")
    assert verdict.sentence.endswith("difference +10.0, one seed.")


def test_gains_over_other_rows_can_be_compared():
    """Large frames gain 10.2 points on average over the three seeds, small ones 4 in each."""
    table = load_table(5)
    lines = [entry for entry in LINES if "128" not in entry["row"]]
    for row, top1 in (("block, 128", 44.0), ("i.i.d., 128", 40.0)):
        lines += [line(row, seed, top1) for seed in (0, 1, 2)]
    finding = next(f for f in load_findings() if f.gain_over)
    verdict = judge(finding, table, results_of(table, lines))
    assert "10.0 ± 1.0 for 'block, 64 px' over 'i.i.d., 64 px'" in verdict.sentence
    assert "4.0 ± 0.0 for 'block, 32 px' over 'i.i.d., 32 px'" in verdict.sentence
    # Half of the interval by the videos alone: four accuracies of about 50 %, 600 videos each.
    assert verdict.difference == "+6.0 ± 7.8"
    assert verdict.word == NOISE
    assert judge(finding, table, results_of(table, lines[:-3])).word == NOT_RUN


def test_two_columns_of_a_row_can_be_compared():
    table = load_table(3)
    lines = [
        line("5 x 128", seed, 50.0 + seed, **{"top1:motion-full-size": 70.0 + seed})
        for seed in range(3)
    ]
    finding = next(f for f in load_findings() if f.lower_measure)
    verdict = judge(finding, table, results_of(table, lines))
    assert verdict.word == SHOWS
    assert "71.0 ± 1.0 for '3 frames, 32 px' (motion-full-size top-1 (%))" in verdict.sentence
    assert "51.0 ± 1.0 for '3 frames, 32 px' (motion top-1 (%))" in verdict.sentence


def test_the_test_videos_alone_widen_the_interval():
    # By hand: 122 and 102 of 204, variances 0.24039 / 204 and 0.25 / 204.
    assert chance_width([(0.6, 200), (0.5, 200)], 1) == pytest.approx(9.610, abs=0.001)
    # Three times the videos: a third of the variance.
    three = chance_width([(0.6, 200), (0.5, 200)] * 3, 3)
    assert three == pytest.approx(9.610 / 3**0.5, abs=0.001)
    assert chance_width([(1.0, 200)] * 2, 1) > 1  # all right is not certain to stay so
    assert chance_width([], 3) == 0.0


def test_a_table_of_some_rows_says_how_it_was_run(tmp_path):
    table = load_table(5)
    chosen = [line("block, 128", 0, 44.0), line("i.i.d., 128", 0, 33.0)]
    write_csv(tmp_path / "probe_table_05_runs.csv", line_fields(table), chosen)
    text = report(tmp_path)
    assert '`python projects/vimpac/run_table.py 5 --probe --seeds 0 --rows "block, 128"' in text
    overview = text[: text.index("## Table 1")]
    assert "| **not run** | **cannot be told from one seed** (+11.0) |" in overview
    assert "| **not run** | - |" in overview


def test_counts_of_data_sets_stand_in_it(tmp_path):
    entry = {"data set": "motion", "train videos": 500, "state": ""}
    (tmp_path / "runs/tables").mkdir(parents=True)
    write_csv(tmp_path / "runs/tables/demo_table_13.csv", list(entry), [entry])
    collect(tmp_path / "runs", tmp_path / "results")
    assert "Table 13: Data sets (miniature)" in report(tmp_path / "results")
    assert "| motion | 500 | - |" in report(tmp_path / "results")


def test_load_processor_time_and_notes_are_told_and_stay(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    stages = json.dumps({"finetune:motion": "finetune-c"})
    (runs / "finetune-c/test").mkdir(parents=True)
    record = {"seconds": 40.0, "cpu_seconds": 10.0, "load": 7.25, "hardware": "an abacus"}
    (runs / "finetune-c/stage.json").write_text(json.dumps(record))
    result = {"top1": 77.5, "protocol": {"scored_videos": 40}}
    (runs / "finetune-c/test/result.json").write_text(json.dumps(result))
    table = load_table(5)
    old = line("block, 256", 3, 1.0, stages=stages)
    write_csv(runs / "tables/demo_table_05_runs.csv", line_fields(table), [old])
    collect(runs, results, note="On a train.")
    collect(runs, results)  # without the note: it stays
    text = report(results)
    for said in (
        "40 s for 1 trainings and evaluations, 25 % of it processor time",
        "on an abacus (load average up to 7.2). On a train.",
    ):
        assert said in text


def test_differences_are_taken_seed_by_seed():
    """Seeds differ much, but in each of them the first row is two points better."""
    table = load_table(5)
    many = {"test_videos": 10**7}
    values = [(seed, 50 + 10 * seed + 0.1 * (seed % 2)) for seed in (0, 1, 2)]
    lines = [line("block, 256", seed, value, **many) for seed, value in values]
    lines += [line("i.i.d., 256", seed, 48 + 10 * seed, **many) for seed in (2, 1, 0, 7)]
    finding = Finding(5, "x", "top1:UCF101", "block, 256", "i.i.d., 256", "y")
    verdict = judge(finding, table, results_of(table, lines))
    assert verdict.word == SHOWS
    assert "difference +2.0 ± 0.1 (95 %), 3 seeds" in verdict.sentence


def test_confidence_interval_and_spread():
    differences = [1.0, 2.0, 4.0, 5.0]
    # By hand: s = 1.8257, t(0.975, 3) = 3.182, so 3.182 * 1.8257 / 2.
    assert half_width(differences) == pytest.approx(2.905, abs=0.001)
    assert half_width([3.0]) == float("inf")
    assert spread_of(differences).std == pytest.approx(statistics.stdev(differences))
    assert spread_of([]) is None


def test_speed_is_compared_round_by_round(tmp_path):
    entries = [
        {"row": row, "round": turn, "seconds": seconds * (1 + turn), "clips": 8, "hardware": "x"}
        for turn in range(3)
        for row, seconds in (("T,H|W, post", 1.0), ("TxHxW, post", 4.0))
    ]
    write_csv(tmp_path / "demo_table_14_speed.csv", SPEED_FIELDS, entries)
    table = load_table(14)
    results = load_results(table, tmp_path)
    fast = next(result for result in results if result.row.name == "T,H|W, post")
    assert fast.spread("speed").mean == 4.0  # 8 clips in 2 s, the median of 1, 2, 3
    assert "| 1.0 (0.25x) |" in report(tmp_path)


def test_collect_reads_the_run_folders_again(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    stages = {"pretrain 1": "pretrain-a", "heldout": "heldout-b", "finetune:motion": "finetune-c"}
    for name in stages.values():
        (runs / name / "test").mkdir(parents=True)
        record = {"name": name, "seconds": 5.0, "hardware": "an abacus"}
        (runs / name / "stage.json").write_text(json.dumps(record))
    (runs / "heldout-b/heldout.json").write_text(json.dumps({"mask_accuracy": 31.25}))
    steps = [{"_type": "train_iter", "update": 10 * i, "dt": 0.5} for i in (1, 2)]
    (runs / "pretrain-a/metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    result = {"top1": 77.5, "protocol": {"scored_videos": 40}}
    (runs / "finetune-c/test/result.json").write_text(json.dumps(result))
    table = load_table(5)
    old = line("block, 256", 3, 1.0, mask_accuracy=2.0, stages=json.dumps(stages))
    write_csv(runs / "tables/demo_table_05_runs.csv", line_fields(table), [old])
    assert collect(runs, results) == [results / "demo_table_05_runs.csv"]
    (new,) = read_csv(results / "demo_table_05_runs.csv")
    assert (new["top1:motion"], new["mask_accuracy"], new["seconds"]) == (77.5, 31.25, 15.0)
    assert (new["updates"], new["updates_per_second"], new["test_videos"]) == (20, 2, 40)
    assert (results / "demo_table_05.png").stat().st_size > 5000


def test_a_line_whose_runs_are_partly_gone_stays_as_it_was(tmp_path):
    """Else numbers of two states would stand in one line."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    stages = {"heldout": "heldout-b", "finetune:motion": "finetune-c"}
    (runs / "heldout-b").mkdir(parents=True)
    (runs / "heldout-b/heldout.json").write_text(json.dumps({"mask_accuracy": 31.25}))
    old = line("block, 256", 3, 12.5, mask_accuracy=2.0, stages=json.dumps(stages))
    write_csv(runs / "tables/demo_table_05_runs.csv", line_fields(load_table(5)), [old])
    collect(runs, results)
    (new,) = read_csv(results / "demo_table_05_runs.csv")
    assert (new["top1:motion"], new["mask_accuracy"], new["status"]) == (12.5, 2.0, "done")


def test_results_are_not_replaced_by_less_unless_asked(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    name, table = "demo_table_05_runs.csv", load_table(5)
    write_csv(results / name, line_fields(table), LINES)
    fewer = [line("block, 256", 0, 61.0), {"row": "block, 256", "seed": 1, "status": "not run"}]
    write_csv(runs / "tables" / name, line_fields(table), fewer)
    before = (results / name).read_bytes()
    lost = r"has 7 results that .*runs lacks \(demo_table_05: 'block, 256', seed 1; .*--replace"
    with pytest.raises(TableError, match=lost):
        collect(runs, results)
    assert (results / name).read_bytes() == before
    collect(runs, results, replace=True)
    assert [entry["status"] for entry in read_csv(results / name)] == ["done", "not run"]


@pytest.mark.parametrize("number", [n for n in table_numbers() if n not in (10, 13)])
def test_whatever_is_measured_has_a_column(number):
    losses = {"mask_accuracy", "contrast_loss"}
    table = load_table(number)
    accuracies = {f"top1:{name}" for name in table.target_names}
    assert losses | accuracies <= set(line_fields(table))


def test_a_line_of_an_unknown_row_is_refused():
    with pytest.raises(ValueError, match="rows that it does not describe.*'blok'"):
        results_of(load_table(5), [line("blok", 0, 1.0)])


def test_each_finding_names_its_papers_direction_and_numbers():
    """In the paper's own numbers every "higher" row is higher (or, if equal, within two points)."""
    compared = 0
    for finding in load_findings():
        table = load_table(finding.table, "full")
        measures = (finding.measure, finding.lower_measure or finding.measure)
        columns = [table.paper_column(measured_column(table, measure)) for measure in measures]
        paper = {row.name: row.paper for row in table.rows}
        first, second = (
            paper[row].get(column)
            for row, column in zip((finding.higher, finding.lower), columns, strict=True)
        )
        if first is None or second is None:
            assert finding.table == 1  # our own controls
            continue
        bases = [paper[row][columns[0]] for row in finding.gain_over] or [0, 0]
        differs = (first - bases[0]) - (second - bases[1])
        assert abs(differs) <= 2 if finding.equal else differs > 0, finding
        for number, unit in re.findall(
            r"[Bb]y (?:a factor of )?([\d.]+)( points)?", finding.comment
        ):
            told = differs if unit else first / second
            if finding.gain_over:
                told = first - bases[0]
            assert float(number.rstrip(".")) == pytest.approx(abs(told), abs=0.051), finding
            compared += 1
    assert compared >= 20


def test_demo_shapes_are_the_same_videos_with_other_labels(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/labels.json").write_text(json.dumps({"Moving something up": "0"}))
    things = {"train": ("a plain ring", "a striped disc"), "validation": ("a plain disc",)}
    for split, names in things.items():
        entries = [
            {"id": str(i), "template": "Moving [something] up", "placeholders": [name]}
            for i, name in enumerate(names)
        ]
        (tmp_path / f"labels/{split}.json").write_text(json.dumps(entries))
    shapes = DemoShapes(str(tmp_path), "validation")
    assert shapes.class_names == ["disc", "ring"]
    assert [(r.video_id, r.label) for r in shapes.records] == [("0", 0)]
    assert [record.label for record in DemoShapes(str(tmp_path)).records] == [1, 0]
    few = DemoFewLabels(str(tmp_path), "train", 1, "shape")
    assert [(r.video_id, r.label) for r in few.records] == [("0", 1)]
    assert few.class_names == ["disc", "ring"]
    assert len({few.fingerprint, shapes.fingerprint, DemoShapes(str(tmp_path)).fingerprint}) == 3
    motions = DemoFewLabels(str(tmp_path), "train", 2)
    assert [record.label for record in motions.records] == [0, 0]
    for options, message in (((3,), "'train' has 2 videos"), ((1, "colour"), "not one of motion")):
        with pytest.raises(ValueError, match=message):
            DemoFewLabels(str(tmp_path), "train", *options)
