"""Every row of every table builds, differs from the others, and has the paper's size."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from paper_tables.command import TableRun
from paper_tables.computed import compute
from paper_tables.findings import load_findings, measured_column
from paper_tables.measures import backbone_parameters
from paper_tables.plan import Planner
from paper_tables.resolved import flat, grid_of, resolve
from paper_tables.spec import SIZES, TableError, load_table, table_numbers

from vimpac_ext.data.synthetic_render import SHAPES
from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_task, token_grid
from vimpac_ext.maskers import BlockMasker, induced_mask_ratio

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = table_numbers()
TABLES = {(n, size): load_table(n, size) for n in NUMBERS for size in SIZES}
RUN = {key: table for key, table in TABLES.items() if table.kind == "runs"}
ROWS = [
    pytest.param(table, row, id=f"{table.name}-{row.name}")
    for table in RUN.values()
    for row in table.rows
    if not row.quoted
]


def planner(table):
    return Planner(table, Path("output/vimpac_tables"))


def configs(table, row):
    """Resolved configurations of a row, by stage."""
    plans = planner(table)
    found = {f"pretrain {c}": resolve(c, plans.pretrain_overrides(row)) for c in row.pretrain}
    for target in row.targets:
        found[target.name] = resolve(target.config, plans.finetune_overrides(target.overrides))
    return found


def test_every_table_of_the_brief_is_there():
    assert [*range(1, 11), 13, 14, 15, 16] == NUMBERS


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_builds(table, row):
    for cfg in configs(table, row).values():
        with torch.device("meta"):
            task = build_task(cfg)
        assert sum(parameter.numel() for parameter in task.parameters()) > 0
        group = task.losses["contrast"].group_size if "contrast" in task.losses else None
        batch = cfg.TRAIN.MICRO_BATCH_SIZE or cfg.TRAIN.BATCH_SIZE
        assert batch % (group or batch) == 0
    assert planner(table).plan(row, 0).stages


@pytest.mark.parametrize("number", sorted({number for number, _ in RUN}))
def test_every_printed_command_of_the_full_size_is_whole(number, tmp_path, capsys):
    """``run_table.py N --full --dry-run``: what it prints is read again as its tools would."""
    table = RUN[number, "full"]
    assert TableRun(number, "full", [0], tmp_path).show() == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.endswith(", seed 0")]
    assert len(rows) == sum(not row.quoted for row in table.rows)
    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("python ")]
    trained = 0
    for python, script, option, config, *words in commands:
        if script.endswith("speed.py"):
            assert (option, config) == (str(number), "--output")
            assert "--full" in words
            continue
        assert (python, option) == ("python", "--cfg")
        assert (ROOT / script).is_file()
        cfg = prepare(ROOT / config, words).cfg
        assert len(words) % 2 == 0
        if script == "tools/run_net.py":
            trained += 1
            assert cfg.OUTPUT_DIR.startswith(str(tmp_path))
            assert cfg.DATA.PATH_TO_DATA_DIR.startswith("data/")  # nothing of the demo
            assert cfg.NUM_GPUS > 0
            if cfg.TRAIN.CHECKPOINT_FILE_PATH:
                before = f"OUTPUT_DIR {cfg.TRAIN.CHECKPOINT_FILE_PATH}"
                assert any(line.endswith(before) for line in printed.splitlines())
    assert trained >= len(rows)
    assert not list(tmp_path.iterdir())


def test_lists_of_the_authors_folders_are_used_and_not_extracted(tmp_path):
    stores = {
        "TRAIN.TOKEN_STORE": ["data/a_hflip0", "data/a_hflip1"],
        "TEST.TOKEN_STORE": ["data/b"],
    }
    table = RUN[5, "full"]
    row = next(row for row in table.rows if not row.quoted)
    plan = Planner(table, tmp_path, {"finetune": stores}).plan(row, 0)
    for stage in plan.finetune.values():
        assert "tokens" not in {need.kind for need in stage.needs}
        _, _, option, config, *words = stage.command
        assert option == "--cfg"
        cfg = prepare(ROOT / config, words).cfg
        assert stores["TRAIN.TOKEN_STORE"] == cfg.TRAIN.TOKEN_STORE
        assert stores["TEST.TOKEN_STORE"] == cfg.TEST.TOKEN_STORE
    assert "tokens" not in {need.kind for need in plan.heldout.needs}
    assert '["data/b"]' in plan.heldout.command


@pytest.mark.parametrize("table", RUN.values(), ids=lambda table: table.name)
def test_rows_differ_from_each_other(table):
    rows = [row for row in table.rows if not row.quoted]
    resolved = [str({k: sorted(flat(c).items(), key=str) for k, c in configs(table, row).items()})
                for row in rows]  # fmt: skip
    assert len(set(resolved)) == len(rows)


@pytest.mark.parametrize("number", sorted({number for number, _ in RUN}))
def test_every_override_changes_something(number):
    """One that is the base's value in every row of both sizes would be a slip."""
    used = {}
    for size in SIZES:
        for row in RUN[number, size].rows:
            parts = [(config, row.pretrain_overrides) for config in row.pretrain]
            parts += [(target.config, target.overrides) for target in row.targets]
            for config, overrides in parts:
                base, own = flat(resolve(config, {})), flat(resolve(config, overrides))
                for key in overrides:
                    below = {k for k in own.keys() | base.keys() if k.startswith(key)}
                    differs = any(own.get(k) != base.get(k) for k in below)
                    used[key] = used.get(key, False) or differs
    # Given besides NAME, since another NAME drops the split of the one before.
    assert [key for key, found in used.items() if not found and not key.endswith(".split")] == []


# The paper's blocks give "T,HxW" 29.4M; it prints the 5 x 128 model's number for all of Table 3.
ELSEWHERE = {(14, "T,HxW, post"): 29.4, (3, "5 x 256"): 29.5, (3, "10 x 256"): 29.5}


@pytest.mark.parametrize("number", [2, 3, 14])
def test_parameters_are_those_of_the_paper(number):
    table = RUN[number, "full"]
    printed = {row.name: row.paper["parameters"] for row in table.rows if "parameters" in row.paper}
    found = {
        row.name: round(backbone_parameters(planner(table), row), 1)
        for row in table.rows
        if row.name in printed
    }
    assert len(printed) >= 4
    assert found == {name: ELSEWHERE.get((number, name), value) for name, value in printed.items()}


def test_table_10_is_the_formula_and_the_formula_is_the_masker():
    table = TABLES[10, "full"]
    for line, entry in zip(compute(table), table.content["grids"], strict=True):
        for blocks, printed in zip(table.content["blocks"], entry["paper"], strict=True):
            assert line[f"{blocks} blocks (%)"] == pytest.approx(printed, abs=0.15)
        chosen = entry["chosen"]
        assert chosen == min(
            table.content["blocks"], key=lambda n: abs(line[f"{n} blocks (%)"] - 15)
        )
    masks = BlockMasker(5)(torch.zeros(4000, 5, 16, 16), torch.Generator().manual_seed(0))
    assert 100 * masks.float().mean().item() == pytest.approx(
        compute(table)[0]["5 blocks (%)"], abs=0.5
    )


@pytest.mark.parametrize("number", [2, 3, 5, 6, 15])
def test_full_size_uses_the_papers_number_of_blocks(number):
    """Table 10's choice for the grid, except where the number of blocks is what is studied."""
    chosen = {tuple(e["grid"]): e["chosen"] for e in TABLES[10, "full"].content["grids"]}
    table = RUN[number, "full"]
    for row in table.rows:
        cfg = resolve(row.pretrain[-1], planner(table).pretrain_overrides(row))
        best = induced_mask_ratio(grid_of(cfg), chosen[grid_of(cfg)])
        if cfg.MASKER.NAME == "UniformMasker":
            ratio = best if number == 5 else float(row.name.split()[1]) / 100
            assert cfg.MASKER.ratio == pytest.approx(ratio, abs=0.001)
        elif number in (2, 3, 5):
            assert cfg.MASKER.num_blocks == chosen[grid_of(cfg)]
        else:
            assert f"{cfg.MASKER.num_blocks} blocks" in row.name


@pytest.mark.parametrize("size", SIZES)
def test_table_15_matches_ratios(size):
    table = RUN[15, size]
    shares = []
    for row in table.rows:
        cfg = resolve(row.pretrain[-1], planner(table).pretrain_overrides(row))
        block = cfg.MASKER.NAME == "BlockMasker"
        shares.append(
            induced_mask_ratio(grid_of(cfg), cfg.MASKER.num_blocks) if block else cfg.MASKER.ratio
        )
    np.testing.assert_allclose(shares[:3], shares[3:], atol=0.0011)


def test_table_13_classes_are_those_of_the_configs():
    sizes = {e["name"]: e["paper"] for e in TABLES[13, "full"].content["datasets"]}
    assert sizes["HowTo100M"] == {"train": 1238791, "seconds": 390}
    assert sizes["UCF101"] == {"train": 9537, "test": 3783, "classes": 101, "seconds": 7}
    for entry in TABLES[13, "full"].content["datasets"]:
        if "classes" in entry["paper"]:
            assert entry["paper"]["classes"] == resolve(entry["config"], {}).MODEL.NUM_CLASSES


def test_table_13_counts_what_is_there_and_says_what_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lists = tmp_path / "data/ucf101/ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{i} C{i}\n" for i in range(1, 102)))
    (lists / "trainlist01.txt").write_text("C1/v_C1_g01_c01.avi 1\nC2/v_C2_g01_c01.avi 2\n")
    (lists / "testlist01.txt").write_text("C1/v_C1_g02_c01.avi\n")
    lines = {line["data set"]: line for line in compute(TABLES[13, "full"])}
    assert (lines["UCF101"]["train videos"], lines["UCF101"]["test videos"]) == (2, 1)
    assert lines["UCF101"]["state"] == ""
    assert lines["SSV2"]["train videos"] is None
    assert "labels.json not found" in lines["SSV2"]["state"]


def test_the_shape_targets_have_as_many_classes_as_there_are_shapes():
    for number in (1, 4):
        for row in RUN[number, "demo"].rows:
            shape = [t for t in row.targets if t.name == "shape"]
            assert all(t.overrides["MODEL.NUM_CLASSES"] == len(SHAPES) for t in shape)


def test_input_sizes_of_table_3():
    grids = {
        row.name: token_grid(c := configs(RUN[3, "full"], row)["UCF101"], c.DATA.TEST_CROP_SIZE)
        for row in RUN[3, "full"].rows
    }
    assert grids == {
        "5 x 128": (5, 16, 16), "10 x 128": (10, 16, 16),
        "5 x 256": (5, 32, 32), "10 x 256": (10, 32, 32),
    }  # fmt: skip
    for row in RUN[3, "full"].rows:
        full = configs(RUN[3, "full"], row)["UCF101-Full-Reso"]
        assert (full.DATA.NUM_FRAMES, full.DATA.TEST_CROP_SIZE) == (10, 256)


def test_every_finding_is_about_rows_and_columns_that_exist():
    for finding in load_findings():
        for size in SIZES:
            table = RUN[finding.table, size]
            assert set(finding.rows) <= {row.name for row in table.rows}
            assert len(finding.gain_over) in (0, 2)
            assert measured_column(table, finding.measure) in table.columns
    assert {finding.table for finding in load_findings()} == {n for n, size in RUN}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rows:", "rowz:"), "unknown key 'rowz'; did you mean 'rows'"),
        (("pretrain: {MASKER", "pretrian: {MASKER"), "'pretrian'; did you mean 'pretrain'"),
        (("measures: [mask_accuracy", "measures: [mask_acuracy"), "did you mean 'mask_accuracy'"),
        (("name: 5 blocks", "name: 4 blocks"), "share the name '4 blocks'"),
    ],
)
def test_mistakes_in_a_description_are_named(tmp_path, change, message):
    folder = Path(__file__).resolve().parents[2] / "projects/vimpac/tables"
    text = (folder / "table_06.yaml").read_text()
    assert change[0] in text
    (tmp_path / "_small.yaml").write_text((folder / "_small.yaml").read_text())
    (tmp_path / "table_06.yaml").write_text(text.replace(*change))
    with pytest.raises(TableError, match=message):
        load_table(6, "demo", tmp_path)


def test_a_table_that_is_not_there():
    with pytest.raises(TableError, match="table 11 is not described.*1, 2, 3"):
        load_table(11)
