"""The shipped configurations of other backbones: protocols, real clips, pre-training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task, views_of
from vimpac_ext.engine.optim import build_optimizer

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "benchmark"
FAMILIES = sorted(path.stem.removeprefix("k400_") for path in FOLDER.glob("k400_*.yaml"))
HUGGING_FACE = ("timesformer", "vivit", "videomae", "vjepa2")
CLIPS = ("k400_arm_wrestling.mp4", "k400_flipping_pancake.mkv", "ucf101_BaseballPitch_g01_c01.avi")

# Frames, rate, crop and views of Kinetics-400, as their authors (or model zoos) state them.
PUBLISHED = {
    "slow": (8, 8, 256, 10, 3),
    "slowfast": (32, 2, 256, 10, 3),
    "x3d": (16, 5, 256, 10, 3),
    "c2d": (8, 8, 256, 10, 3),
    "i3d": (8, 8, 256, 10, 3),
    "r2plus1d": (16, 4, 256, 10, 3),
    "csn": (32, 2, 256, 10, 3),
    "mvit": (16, 4, 224, 5, 1),
    "space_time_joint": (8, 32, 224, 1, 3),
    "space_time_divided": (8, 32, 224, 1, 3),
    "timesformer": (8, 32, 224, 1, 3),
    "vivit": (32, 2, 224, 4, 3),
    "videomae": (16, 4, 224, 5, 3),
    "vjepa2": (16, 4, 256, 8, 3),
}


def test_every_family_has_all_data_sets():
    for name in ("ssv2", "demo"):
        found = sorted(path.stem.removeprefix(f"{name}_") for path in FOLDER.glob(f"{name}_*.yaml"))
        assert found == FAMILIES
    assert set(FAMILIES) == {*PUBLISHED, "frames_mean", "frames_attention", "vimpac"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_protocols_of_kinetics_are_the_published_ones(name):
    cfg = prepare(FOLDER / f"k400_{name}.yaml").cfg
    found = (cfg.DATA.NUM_FRAMES, cfg.DATA.SAMPLING_RATE, cfg.DATA.TEST_CROP_SIZE)
    assert (*found, cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS) == PUBLISHED[name]
    rate = 25 if name == "vivit" else 30
    assert rate == cfg.DATA.TARGET_FPS


@pytest.mark.parametrize("name", FAMILIES)
def test_something_something_differs_in_data_and_recipe_only(name):
    kinetics, something = (prepare(FOLDER / f"{d}_{name}.yaml").cfg for d in ("k400", "ssv2"))
    assert kinetics.BACKBONE == something.BACKBONE
    assert kinetics.HEADS == something.HEADS
    assert (kinetics.MODEL.NUM_CLASSES, something.MODEL.NUM_CLASSES) == (400, 174)
    assert something.TEST.DATASET.NAME == something.TRAIN.DATASET.NAME == "SomethingSomethingV2"
    # Left and right are classes.
    if something.AUG.ENABLE:
        assert not something.AUG.FLIP
    else:
        assert not any(view.flip for view in views_of(something, "TRAIN"))
    assert kinetics.DATA.SAMPLING == "rate"
    # VIMPAC's clips have the paper's rate; those of frames are spread over the video.
    sampling = "rate" if name == "vimpac" else "segments"
    assert sampling == something.DATA.SAMPLING
    starts_from = something.TRAIN.CHECKPOINT_FILE_PATH
    assert starts_from in ("", kinetics.OUTPUT_DIR, kinetics.TRAIN.CHECKPOINT_FILE_PATH)


def small(name, dataset):
    """Overrides with which a model takes clips of 64 pixels in seconds on a CPU."""
    if name in HUGGING_FACE:
        pytest.importorskip("transformers")
    if dataset == "demo" and name != "vimpac":  # small as they are
        return {}
    values = {"DATA.TRAIN_CROP_SIZE": 64, "DATA.TEST_CROP_SIZE": 64}
    if name in HUGGING_FACE:
        values["BACKBONE.options"] = "{num_hidden_layers: 2}"
    elif name.startswith(("frames", "space_time")):
        values["BACKBONE.options"] = "{depth: 2}"
    elif name == "vimpac":
        tokens = {"DATA.TOKENS": "online", "TOKENIZER.NAME": "VQVAETokenizer"}
        stores = {"TRAIN.TOKEN_STORE": "", "TEST.TOKEN_STORE": ""}
        values |= {**tokens, **stores, "DATA.VOCAB_SIZE": 64, "BACKBONE.num_layers": 2}
    elif name != "mvit":
        values["BACKBONE.global_pool"] = True
    return values


@pytest.mark.parametrize("name", FAMILIES)
def test_the_demos_models_are_small_ones_of_the_family(name):
    kinetics, demo = (prepare(FOLDER / f"{d}_{name}.yaml").cfg for d in ("k400", "demo"))
    for key, default in (("NAME", ""), ("model_type", ""), ("pooling", "mean"), ("attention", "")):
        assert demo.BACKBONE.get(key, default) == kinetics.BACKBONE.get(key, default)
    if demo.BACKBONE.NAME == "PytorchVideoBackbone":
        family = demo.BACKBONE.model.split("_")[0]
        assert kinetics.BACKBONE.model.split("_")[0] == family
    assert (demo.MODEL.NUM_CLASSES, demo.TRAIN.DATASET.check_size) == (10, False)
    test = demo.TEST
    assert (test.NUM_ENSEMBLE_VIEWS, test.NUM_SPATIAL_CROPS, demo.NUM_GPUS) == (10, 3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["k400", "ssv2", "demo"])
@pytest.mark.parametrize("name", FAMILIES)
def test_trains_and_tests_on_real_clips(name, dataset, real_videos, tmp_path):
    # The last class tells the list how many there are.
    last = {"k400": 400, "ssv2": 174, "demo": 10}[dataset] - 1
    lines = [
        f"{real_videos / clip} {label}" for clip, label in zip(CLIPS, (0, last, last), strict=True)
    ]
    (tmp_path / "train.csv").write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "test.csv").write_text(lines[2] + "\n")
    values = {
        "DATA.PATH_TO_DATA_DIR": tmp_path,
        "TRAIN.DATASET.NAME": "PathLabelList",
        "TRAIN.DATASET.split": "train",
        "TEST.DATASET.NAME": "PathLabelList",
        "TEST.DATASET.split": "test",
        "TRAIN.BATCH_SIZE": 2,
        "TRAIN.MICRO_BATCH_SIZE": 0,
        "TRAIN.CHECKPOINT_FILE_PATH": "",
        "TRAIN.PRECISION": "fp32",
        "TRAIN.EVAL_PERIOD": 0,
        "TEST.PRECISION": "fp32",
        "TEST.BATCH_SIZE": 6,
        "SOLVER.MAX_EPOCH": 1,
        "SOLVER.WARMUP_EPOCHS": 0,
        "SOLVER.WARMUP_RATIO": 0.0,
        "DATA_LOADER.NUM_WORKERS": 0,
        "NUM_GPUS": 0,
        "TENSORBOARD": False,
        "OUTPUT_DIR": tmp_path / "output",
        **small(name, dataset),
    }
    overrides = [str(word) for pair in values.items() for word in pair]
    shipped = prepare(FOLDER / f"{dataset}_{name}.yaml").cfg.TEST
    views = min(shipped.NUM_ENSEMBLE_VIEWS, 2)
    overrides += ["TEST.NUM_ENSEMBLE_VIEWS", str(views)]
    loaded = prepare(FOLDER / f"{dataset}_{name}.yaml", overrides)
    protocol = run(loaded)["protocol"]
    assert protocol["temporal_views"] == views
    assert protocol["spatial_crops"] == shipped.NUM_SPATIAL_CROPS
    assert (protocol["expected_videos"], protocol["decoded_videos"]) == (1, 1)
    scores = np.load(tmp_path / "output/test/scores.npz")["scores"]
    assert scores.shape == (1, loaded.cfg.MODEL.NUM_CLASSES)
    np.testing.assert_allclose(scores.sum(), 1, atol=1e-4)
    # One step has changed the classifier, which starts with all classes equally likely.
    assert np.ptp(scores) > 0


TINY_MVIT = (
    "{depth: 2, embed_dim_mul: [[1, 2.0]], atten_head_mul: [[1, 2.0]], patch_embed_dim: 32, "
    "pool_q_stride_size: [[1, 1, 2, 2]], pool_kv_stride_adaptive: [1, 2, 2]}"
)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pretrain_mvit", TINY_MVIT),
        pytest.param("pretrain_space_time", "{depth: 2}", marks=pytest.mark.slow),
        pytest.param("pretrain_vit_tokens", "{depth: 2}", marks=pytest.mark.slow),
    ],
)
def test_the_loss_of_pre_training_falls(name, options):
    """Grey clips, each of another grey: what is visible tells the tokens that are hidden."""
    values = {
        "BACKBONE.options": options,
        "TOKENIZER.NAME": "VQVAETokenizer",
        "DATA.VOCAB_SIZE": 64,
        "DATA.NUM_FRAMES": 4,
        "DATA.TRAIN_CROP_SIZE": 32,
        "DATA.TEST_CROP_SIZE": 32,
        "HEADS.contrast.hidden_dim": 16,
        "HEADS.contrast.num_layers": 2,
        "SOLVER.BASE_LR": 2e-3,
    }
    overrides = [str(word) for pair in values.items() for word in pair]
    cfg = prepare(FOLDER / f"{name}.yaml", overrides).cfg
    torch.manual_seed(0)
    task = build_task(cfg).train()
    greys = torch.tensor([0.1, 0.35, 0.65, 0.9]).view(4, 1, 1, 1, 1)
    clips = greys.expand(4, 3, 4, 32, 32)
    if task.input_kind == "tokens":
        clips = torch.arange(4).view(4, 1, 1, 1).expand(4, 4, 4, 4)
    batch = {"clips": clips.unflatten(0, (2, 2))}
    optimizer = build_optimizer(task, cfg.SOLVER)
    losses = []
    for step in range(80):
        scalars = task.training_step(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        losses.append(scalars["token_loss"].item())
    assert losses[0] > 3.5  # log 64 = 4.2
    assert sum(losses[-5:]) / 5 < 1.2  # who knows the four tokens only has log 4 = 1.39


@pytest.mark.parametrize("model", ["slowfast_r50", "x3d_xs"])
def test_pretraining_reads_the_maps_of_convolutional_models(model):
    """Those with two pathways, or with a map narrower than "cls"; hidden tokens are predicted."""
    frames = 8 if model == "slowfast_r50" else 4
    values = {
        "BACKBONE.NAME": "PytorchVideoBackbone",
        "BACKBONE.model": model,
        "BACKBONE.global_pool": True,
        "BACKBONE.options": "{stem_dim_outs: [16, 2]}" if frames == 8 else "{}",
        "TOKENIZER.NAME": "VQVAETokenizer",
        "DATA.VOCAB_SIZE": 64,
        "DATA.NUM_FRAMES": frames,
        "DATA.TRAIN_CROP_SIZE": 64,
        "DATA.TEST_CROP_SIZE": 64,
    }
    overrides = [str(word) for pair in values.items() for word in pair]
    task = build_task(prepare(FOLDER / "pretrain_mvit.yaml", overrides).cfg).train()
    batch = {"clips": torch.rand(2, 2, 3, frames, 64, 64)}
    scalars = task.training_step(batch, torch.Generator().manual_seed(0))
    assert scalars["token_loss"].item() == pytest.approx(np.log(69), abs=0.5)  # of no knowledge
    scalars["loss"].backward()
    unused = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
