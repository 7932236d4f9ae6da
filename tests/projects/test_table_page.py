"""The web page of a table, parsed again and compared with the files that it is about."""

import json

from paper_tables.findings import judge, load_findings
from paper_tables.measures import line_fields
from paper_tables.output import results_of, table_cells, write_results
from paper_tables.page import write_page
from paper_tables.plan import Planner
from paper_tables.spec import load_table
from web_page import Page

ROWS = ("block, 128", "i.i.d., 128", "block, 256", "i.i.d., 256")


def write_stage(folder, losses):
    folder.mkdir(parents=True)
    lines = [
        {"_type": "train_iter", "update": 10 * i, "loss": loss} for i, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_page_says_what_the_results_say(tmp_path):
    table = load_table(5)
    lines = []
    for row in ROWS:
        for seed in (0, 1):
            # The two small rows share a pre-training, which is then drawn once.
            name = f"pretrain-{'small' if '128' in row else row[:5]}-{seed}".replace(" ", "")
            stages = {
                "pretrain 1": name,
                "finetune:motion": f"finetune-{row[:5]}-{row[-3:]}-{seed}",
            }
            for stage in stages.values():
                if not (tmp_path / stage).exists():
                    write_stage(tmp_path / stage, [3.0, 2.0, 1.0 + seed])
            line = {"row": row, "seed": seed, "status": "done", "reason": "", "seconds": 10.0}
            numbers = {"top1:motion": 60.5 + seed, "mask_accuracy": 40.0}
            lines.append({**line, **numbers, "stages": json.dumps(stages)})
    results = results_of(table, lines)
    write_results(tmp_path, table, results, "a command")
    path = tmp_path / "demo_table_05.html"
    write_page(path, Planner(table, tmp_path), results, "Made `by hand` <b>.")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    cells = table_cells(table, results)
    assert page.tables[0] == cells
    assert cells[1][2] == "61.0 ± 0.7"
    assert "Section 5.2.2 of the paper. Made by hand <b>." in page.paragraphs
    findings = [finding for finding in load_findings() if finding.table == 5]
    verdicts = [judge(finding, table, results) for finding in findings]
    assert page.table("finding", "here") == [
        [f.finding, v.word, v.sentence, f.comment] for f, v in zip(findings, verdicts, strict=True)
    ]
    changed = page.table("row", "configuration")
    assert [
        "i.i.d., 32 px",
        "configs/vimpac/demo/pretrain.yaml",
        "MASKER.NAME",
        '"UniformMasker"',
    ] in changed
    assert [
        "block, 64 px",
        "configs/vimpac/demo/finetune.yaml",
        "DATA.TRAIN_CROP_SIZE",
        "64",
    ] in changed
    seeds = page.table("row", "seed")
    assert [row[:2] for row in seeds] == [[row, str(seed)] for row in ROWS for seed in (0, 1)]
    fields = [
        field for field in line_fields(table) if field not in ("stages", "stage_seconds", "note")
    ]
    assert seeds[1][fields.index("top1:motion")] == "61.5"
    assert seeds[0][-1] == "pretrain-small-0, finetune-block-128-0"
    # The plot and the curves, in words.
    plot, pretrain, finetune = page.descriptions
    assert "motion top-1 (%): block, 32 px 61" in plot
    assert pretrain.count("3 at update 10, 1 at update 30") == 3
    assert "i.i.d., 32 px" not in pretrain
    assert finetune.count("3 at update 10, 1 at update 30") == 4
    assert all(source.startswith("data:") for source in page.sources)
    assert "http" not in text


def test_a_table_that_was_not_run_has_a_page(tmp_path):
    table = load_table(1, "full")
    results = results_of(table, [])
    path = tmp_path / "a.html"
    write_page(path, Planner(table, tmp_path), results, "Not run.")
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.tables[0]) == 1 + len(table.rows)
    assert page.headings[0] == f"Table 1 (full size): {table.title}"
    assert page.sources == []
