"""Every shipped configuration must build, and say what it needs."""

import re
from pathlib import Path

import pytest
import torch

from vimpac_ext.config import load_config, stages_of
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task, views_of
from vimpac_ext.engine.requirements import MissingInputError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RUNNABLE = [path for path in CONFIGS if not path.name.startswith("_")]
# Some bases say all but the model.
COMPLETE = [path for path in CONFIGS if path in RUNNABLE or load_config(path).cfg.BACKBONE.NAME]
PAPER = ROOT / "configs" / "vimpac"


def name_of(path):
    return str(path.relative_to(ROOT / "configs"))


def build(path):
    """The task on the meta device: shapes without memory."""
    # Bases leave the number of classes to the configs built on them.
    overrides = ["MODEL.NUM_CLASSES", "7"] if path not in RUNNABLE else []
    is_online = load_config(path).cfg.DATA.TOKENS == "online"
    if is_online:  # the tokenizer with weights at hand
        overrides += ["TOKENIZER.NAME", "VQVAETokenizer", "DATA.VOCAB_SIZE", "64"]
    if load_config(path).cfg.TASK.get("mixup"):
        overrides += ["TASK.mixup", "0.0", "TASK.cutmix", "0.0"]
    cfg = prepare(path, overrides).cfg
    # Tokenizers load weights, pytorchvideo's MViT (like MixUp) reads numbers while it is built.
    has_values = is_online or cfg.TASK.NAME == "TrainTokenizerTask" or "mvit" in path.name
    with torch.device("cpu" if has_values else "meta"):
        return build_task(cfg)


@pytest.mark.parametrize("path", COMPLETE, ids=name_of)
def test_builds(path):
    assert sum(parameter.numel() for parameter in build(path).parameters()) > 0


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_is_headed_by_its_command(path):
    header = path.read_text()
    assert f"--cfg configs/{name_of(path)}" in header
    assert header.startswith("# ")


def backbone_parameters(name):
    task = build(PAPER / f"{name}.yaml")
    return sum(parameter.numel() for parameter in task.backbone.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [("pretrain_small", 29.4), ("pretrain_base", 119.7), ("pretrain_large", 210.1)],
)
def test_parameters_equal_table_11(name, millions):
    assert round(backbone_parameters(name) / 1e6, 1) == pytest.approx(millions, abs=0.051)


def test_table_12_pre_training():
    small, large, large_256 = (
        prepare(PAPER / f"pretrain_{name}.yaml").cfg for name in ("small", "large", "large_256")
    )
    for cfg in (small, large, large_256):
        assert cfg.TRAIN.BATCH_SIZE == 1024
        assert (cfg.SOLVER.BETAS, cfg.SOLVER.EPS) == ([0.9, 0.98], 1e-8)
        assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.CLIP_GRAD_L2NORM) == (0.05, 1.0)
        assert (cfg.DATA.NUM_FRAMES, cfg.DATA.TARGET_FPS) == (5, 2.0)
        assert cfg.BACKBONE.dropout == 0.1
        assert len(views_of(cfg, "TRAIN")) == 1
    assert (small.SOLVER.MAX_EPOCH, small.SOLVER.BASE_LR, small.SOLVER.WARMUP_RATIO) == (
        10,
        1e-3,
        0.1,
    )
    assert (large.SOLVER.BASE_LR, large.SOLVER.WARMUP_RATIO) == (3e-4, 0.05)
    assert large.SOLVER.MAX_EPOCH + large_256.SOLVER.MAX_EPOCH == 100
    assert large_256.SOLVER.SCHEDULE_START_EPOCH == large.SOLVER.MAX_EPOCH
    assert (large.MASKER.num_blocks, large_256.MASKER.num_blocks) == (5, 6)
    assert (large.TRAIN.MICRO_BATCH_SIZE, large_256.TRAIN.MICRO_BATCH_SIZE) == (256, 128)
    assert Path(large_256.TRAIN.CHECKPOINT_FILE_PATH) == Path(large.OUTPUT_DIR)


def test_the_curriculum_is_the_two_configs_of_the_large_model():
    stages = stages_of(prepare(PAPER / "pretrain_large_curriculum.yaml"))
    for stage, name in zip(stages, ("large", "large_256"), strict=True):
        alone = prepare(PAPER / f"pretrain_{name}.yaml").cfg.clone()
        alone.defrost()
        alone.OUTPUT_DIR = stage.cfg.OUTPUT_DIR
        if alone.TRAIN.CHECKPOINT_FILE_PATH:
            before = Path(stages[0].cfg.OUTPUT_DIR) / "checkpoints"
            alone.TRAIN.CHECKPOINT_FILE_PATH = str(before / "checkpoint_epoch_00090.pyth")
        assert stage.cfg == alone


@pytest.mark.parametrize(
    ("dataset", "epochs", "classes", "clip_fps", "train_views", "crops"),
    [
        ("ssv2", 22, 174, 4, 6, 1),
        ("diving48", 50, 48, 4, 12, 3),
        ("ucf101", 50, 101, 2, 12, 3),
        ("hmdb51", 50, 51, 4, 12, 3),
        ("k400", 30, 400, 2, 12, 3),
    ],
)
@pytest.mark.parametrize(("size", "rate"), [("small", 1e-4), ("large", 5e-5)])
def test_table_12_fine_tuning(dataset, epochs, classes, clip_fps, train_views, crops, size, rate):
    cfg = prepare(PAPER / f"{dataset}_{size}.yaml").cfg
    assert (epochs, classes) == (cfg.SOLVER.MAX_EPOCH, cfg.MODEL.NUM_CLASSES)
    assert (rate, 0.1) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_RATIO)
    assert (cfg.SOLVER.BETAS, cfg.SOLVER.WEIGHT_DECAY) == ([0.9, 0.999], 0.01)
    assert cfg.TRAIN.BATCH_SIZE == 128
    assert clip_fps == cfg.DATA.TARGET_FPS / cfg.DATA.SAMPLING_RATE
    assert len(views_of(cfg, "TRAIN")) == train_views
    assert len(views_of(cfg, "TEST")) == crops
    if size == "large":
        assert (cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE) == (10, 256)
        assert cfg.TEST.NUM_ENSEMBLE_VIEWS == 10


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_without_its_inputs_it_says_what_to_do(path, tmp_path, monkeypatch):
    loaded = prepare(path, ["NUM_GPUS", "0"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingInputError) as error:
        run(loaded)
    message = str(error.value)
    assert loaded.cfg.DATA.PATH_TO_DATA_DIR in message
    if loaded.cfg.TRAIN.TOKEN_STORE:
        assert loaded.cfg.TRAIN.TOKEN_STORE in message
        assert f"tools/extract_tokens.py --cfg {path}" in message
    initial = loaded.cfg.TRAIN.CHECKPOINT_FILE_PATH
    if initial:
        assert initial in message
        command = re.search(r"run_net.py --cfg (\S+)", message)
        assert initial == load_config(command[1]).cfg.OUTPUT_DIR
    assert not list(tmp_path.iterdir())


def test_the_monitor_that_a_comment_of_the_pretraining_configs_describes(tmp_path):
    lines = (PAPER / "_pretrain.yaml").read_text().splitlines()
    start = lines.index("#   TRAIN: {EVAL_PERIOD: 1}")
    block = [line.removeprefix("#   ") for line in lines[start:] if line.startswith("#   ")]
    path = tmp_path / "monitored.yaml"
    path.write_text("\n".join([f"_BASE_: {PAPER / 'pretrain_small.yaml'}", *block]))
    cfg = prepare(path).cfg
    assert cfg.KNN.ENABLE
    small = prepare(PAPER / "ucf101_small.yaml").cfg
    for phase in ("TRAIN", "TEST"):
        assert cfg.KNN[phase].TOKEN_STORE == small[phase].TOKEN_STORE
        assert cfg.KNN[phase].DATASET.root == small.DATA.PATH_TO_DATA_DIR
    assert cfg.KNN.TARGET_FPS == small.DATA.TARGET_FPS
    rate = cfg.KNN.TARGET_FPS / cfg.KNN.SAMPLING_RATE
    assert rate == cfg.DATA.TARGET_FPS / cfg.DATA.SAMPLING_RATE
