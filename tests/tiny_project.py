"""A project of random tokens that trains in a second: data set, stores and configurations."""

from pathlib import Path

import numpy as np
import yaml

from vimpac_ext.data import StoreMeta, TokenStoreWriter

NUM_VIDEOS = 8
CLASSES = 4
VIEWS = {"train": ("16center16",), "test": ("16top16", "16center16", "16bottom16")}

MODEL = {
    "NAME": "VimpacTransformer",
    "embed_dim": 16,
    "num_heads": 2,
    "num_layers": 1,
    "layout": "T,H|W",
    "dropout": 0.1,
}
DATA = {
    "NUM_FRAMES": 3,
    "TARGET_FPS": 2.0,
    "TRAIN_CROP_SIZE": 16,
    "TEST_CROP_SIZE": 16,
    "VOCAB_SIZE": 20,
}


def make_tiny_project(folder: Path) -> Path:
    """Writes everything below ``folder`` and returns the folder of the configs."""
    root = folder / "data"
    root.mkdir()
    lines = [f"clips/video_{i}.mp4 {i % CLASSES}" for i in range(NUM_VIDEOS)]
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
        write_store(folder / f"tokens_{split}", VIEWS[split])
    configs = folder / "configs"
    configs.mkdir()
    write_config(configs / "pretrain.yaml", pretrain_config(folder))
    write_config(configs / "finetune.yaml", finetune_config(folder))
    return configs


def write_store(folder: Path, views: tuple[str, ...], fingerprint: str = "A:1") -> None:
    """A store whose tokens depend on the class, so that it can be learned."""
    meta = StoreMeta("AnyTokenizer", fingerprint, 20, 8, 2.0, views, (2, 2))
    rng = np.random.default_rng(0)
    with TokenStoreWriter(folder, meta) as writer:
        for i in range(NUM_VIDEOS):
            tokens = rng.integers(0, 5, (6, 2, 2)) + 5 * (i % CLASSES)
            writer.add(f"clips/video_{i}", dict.fromkeys(views, tokens))


def write_config(path: Path, config: dict) -> None:
    path.write_text(yaml.safe_dump(config))


def _common(folder: Path, name: str) -> dict:
    return {
        "BACKBONE": MODEL,
        "DATA": {**DATA, "PATH_TO_DATA_DIR": str(folder / "data"), "TRAIN_VIEWS": "center"},
        "DATA_LOADER": {"NUM_WORKERS": 0},
        "TRAIN": {
            "DATASET": {"NAME": "PathLabelList", "split": "train"},
            "TOKEN_STORE": str(folder / "tokens_train"),
            "BATCH_SIZE": 4,
            "CHECKPOINT_PERIOD": 1,
        },
        "SOLVER": {"MAX_EPOCH": 2, "BASE_LR": 0.01},
        "TENSORBOARD": False,
        "LOG_PERIOD": 1,
        "NUM_GPUS": 0,
        "OUTPUT_DIR": str(folder / name),
    }


def pretrain_config(folder: Path) -> dict:
    return {
        **_common(folder, "pretrain"),
        "TASK": "PretrainTask",
        "MASKER": {"NAME": "BlockMasker", "num_blocks": 3},
        "HEADS": {
            "token": {"NAME": "MaskedTokenHead"},
            "contrast": {"NAME": "ProjectionHead", "hidden_dim": 8, "output_dim": 4},
        },
        "LOSSES": {"token": {"NAME": "MaskedTokenLoss"}, "contrast": {"NAME": "InfoNCELoss"}},
        "TEST": {"ENABLE": False},
    }


def finetune_config(folder: Path) -> dict:
    config = _common(folder, "finetune")
    config["TRAIN"]["CHECKPOINT_FILE_PATH"] = str(folder / "pretrain")
    return {
        **config,
        "TASK": "FinetuneTask",
        "HEADS": {"classification": {"NAME": "ClassificationHead"}},
        "LOSSES": {"classification": {"NAME": "CrossEntropyLoss"}},
        "MODEL": {"NUM_CLASSES": CLASSES},
        "TEST": {
            "DATASET": {"NAME": "PathLabelList", "split": "test"},
            "TOKEN_STORE": str(folder / "tokens_test"),
            "NUM_ENSEMBLE_VIEWS": 2,
            "NUM_SPATIAL_CROPS": 3,
            "BATCH_SIZE": 5,
        },
    }
