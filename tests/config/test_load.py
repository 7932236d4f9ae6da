from pathlib import Path

import pytest

from vimpac_ext.config import ConfigError, load_config, validate


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_bases_files_and_overrides_win_in_that_order(tmp_path):
    write(tmp_path, "base.yaml", "SOLVER: {MAX_EPOCH: 3, BASE_LR: 0.1}\nLOG_PERIOD: 7\n")
    child = write(tmp_path, "child.yaml", "_BASE_: base.yaml\nSOLVER: {BASE_LR: 1e-3}\n")
    loaded = load_config(child, ["LOG_PERIOD", "9"])
    assert loaded.cfg.SOLVER.MAX_EPOCH == 3
    assert loaded.cfg.SOLVER.BASE_LR == 0.001  # not the string that YAML 1.1 makes of 1e-3
    assert loaded.cfg.LOG_PERIOD == 9
    assert loaded.where("SOLVER.MAX_EPOCH").endswith("base.yaml")
    assert loaded.where("SOLVER.BASE_LR").endswith("child.yaml")
    assert loaded.where("LOG_PERIOD") == "the command line"
    assert loaded.where("RNG_SEED") == "the defaults"


def test_the_config_is_frozen(tmp_path):
    cfg = load_config(write(tmp_path, "a.yaml", "")).cfg
    with pytest.raises(AttributeError):
        cfg.TRAIN.BATCH_SIZE = 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("TRAIN: {BACH_SIZE: 3}", ["'TRAIN.BACH_SIZE'", "'TRAIN.BATCH_SIZE'", "a.yaml"]),
        ("TRAINING: {BATCH_SIZE: 3}", ["'TRAINING'", "'TRAIN'", "a.yaml"]),
        ("WEIGHT_DECAY: 0.1", ["did you mean 'SOLVER.WEIGHT_DECAY'"]),
        ("TRAIN: {BATCH_SIZE: many}", ["TRAIN.BATCH_SIZE", "int", "str 'many'", "a.yaml"]),
        ("TRAIN: {BATCH_SIZE: 1.5}", ["TRAIN.BATCH_SIZE", "int", "float 1.5"]),
        ("TRAIN: {ENABLE: 1}", ["TRAIN.ENABLE", "bool", "int 1"]),
        ("TRAIN: 3", ["TRAIN", "section", "3"]),
        ("MASKER: {NAME: M, Cell: 3}", ["MASKER.Cell", "lower-case"]),
        ("HEADS: {token: {x: 3}}", ["HEADS.token", "NAME"]),
        ("- a\n- b", ["KEY: value", "list", "a.yaml"]),
        ("A: [", ["not valid YAML", "a.yaml"]),
        ("LOG_PERIOD: 1\nLOG_PERIOD: 2", ["'LOG_PERIOD' is given twice", "line 1"]),
        ("_BASE_: a.yaml", ["_BASE_ leads back"]),
        ("_BASE_: nowhere.yaml", ["not found", "nowhere.yaml"]),
        ("_BASE_: [3]", ["one or more file names", "[3]"]),
        ("_BASE_: 3", ["one or more file names", "3"]),
    ],
)
def test_mistakes_are_named_with_their_file(tmp_path, text, parts):
    path = write(tmp_path, "a.yaml", text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for part in parts:
        assert part in str(error.value)


def test_of_several_bases_a_later_one_wins(tmp_path):
    write(tmp_path, "model.yaml", "MASKER: {NAME: Blocks}\nLOG_PERIOD: 1\nRNG_SEED: 1\n")
    write(tmp_path, "data.yaml", "LOG_PERIOD: 2\nTRAIN: {BATCH_SIZE: 2}\n")
    path = write(tmp_path, "a.yaml", "_BASE_: [model.yaml, data.yaml]\nTRAIN: {BATCH_SIZE: 3}\n")
    loaded = load_config(path)
    cfg = loaded.cfg
    assert (cfg.MASKER.NAME, cfg.RNG_SEED, cfg.LOG_PERIOD) == ("Blocks", 1, 2)
    assert cfg.TRAIN.BATCH_SIZE == 3
    assert Path(loaded.where("LOG_PERIOD")).name == "data.yaml"


def test_a_changed_name_drops_the_old_component_s_arguments(tmp_path):
    write(tmp_path, "base.yaml", "MASKER: {NAME: BlockMasker, num_blocks: 5}\n")
    same = write(tmp_path, "same.yaml", "_BASE_: base.yaml\nMASKER: {num_blocks: 4}\n")
    other = write(tmp_path, "other.yaml", "_BASE_: base.yaml\nMASKER: {NAME: Checkers, cell: 2}\n")
    assert dict(load_config(same).cfg.MASKER) == {"NAME": "BlockMasker", "num_blocks": 4}
    assert dict(load_config(other).cfg.MASKER) == {"NAME": "Checkers", "cell": 2}
    by_override = load_config(same, ["MASKER.NAME", "Checkers"])
    assert dict(by_override.cfg.MASKER) == {"NAME": "Checkers"}
    assert "MASKER.num_blocks" not in by_override.sources


def test_losses_are_a_mapping_whose_entries_can_be_added_changed_and_removed(tmp_path):
    write(tmp_path, "base.yaml", "LOSSES: {token: {NAME: A, weight: 1.0}, contrast: {NAME: B}}\n")
    text = "_BASE_: base.yaml\nLOSSES: {contrast: null, token: {weight: 2.0}, extra: C}\n"
    losses = load_config(write(tmp_path, "child.yaml", text)).cfg.LOSSES
    assert {name: dict(section) for name, section in losses.items()} == {
        "token": {"NAME": "A", "weight": 2.0},
        "extra": {"NAME": "C"},
    }


def test_overrides_come_in_pairs(tmp_path):
    with pytest.raises(ConfigError, match="KEY VALUE pairs"):
        load_config(write(tmp_path, "a.yaml", ""), ["LOG_PERIOD"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["NUM_GPUS", "-1"], ["NUM_GPUS in the command line", "zero or more", "-1"]),
        (["TRAIN.PRECISION", "fp8"], ["TRAIN.PRECISION", "fp32, bf16", "'fp8'"]),
        (["TRAIN.BATCH_SIZE", "0"], ["TRAIN.BATCH_SIZE", "positive"]),
        (["TRAIN.MICRO_BATCH_SIZE", "7"], ["TRAIN.MICRO_BATCH_SIZE", "divisor", "64"]),
        (["DATA.TRAIN_CROP_SIZE", "0"], ["DATA.TRAIN_CROP_SIZE", "positive"]),
        (["EXTRACT.NUM_WORKERS", "0"], ["EXTRACT.NUM_WORKERS", "positive"]),
        (["SOLVER.BETAS", "[0.9]"], ["SOLVER.BETAS", "two numbers"]),
        (["SOLVER.SCHEDULE_EPOCHS", "5"], ["SOLVER.SCHEDULE_EPOCHS", "at least", "10"]),
        (["SOLVER.WARMUP_RATIO", "1.0"], ["SOLVER.WARMUP_RATIO", "below 1"]),
    ],
)
def test_values_are_checked_together(tmp_path, overrides, parts):
    path = write(tmp_path, "a.yaml", "")
    validate(load_config(path))
    with pytest.raises(ConfigError) as error:
        validate(load_config(path, overrides))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "tokens",
    [
        ["TOKENIZER.NAME", "DalleTokenizer"],
        ["DATA.TOKENS", "online"],
        ["TEST.TOKEN_STORE", "tokens"],
        ["TRAIN.TOKEN_STORE", "[a, b]"],
        ["KNN.TEST.TOKEN_STORE", "tokens"],
    ],
)
@pytest.mark.parametrize("key", ["DATA.TRAIN_CROP_SIZE", "DATA.TEST_CROP_SIZE"])
def test_crops_are_whole_tokens_where_there_are_tokens(tmp_path, tokens, key):
    path = write(tmp_path, "a.yaml", "")
    validate(load_config(path, [key, "182"]))  # of frames
    validate(load_config(path, [key, "184", *tokens]))
    with pytest.raises(ConfigError, match=rf"{key} .*a multiple of .*TOKEN_STRIDE \(8\).* 182"):
        validate(load_config(path, [key, "182", *tokens]))
