"""The pipeline on real clips, where they are: decode, tokenise, fine-tune, test."""

import json
import logging

import pytest
import yaml

from vimpac_ext.data import TokenStore, VideoFolder, spatial_views
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.extraction import extract_stores
from vimpac_ext.tasks.extract_tokens import extract
from vimpac_ext.tokenizers import DalleTokenizer

UNREADABLE = {"broken_decord_corrupted.mp4"}


@pytest.fixture
def config(real_videos, tmp_path):
    """A fine-tuning configuration over every clip, with made-up labels."""
    names = sorted(
        p.name for p in real_videos.iterdir() if p.suffix in (".mp4", ".avi", ".mkv", ".mov")
    )
    lines = [f"{name} {i % 2}" for i, name in enumerate(names)]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    dataset = {"NAME": "PathLabelList", "split": "all", "root": str(tmp_path)}
    dataset["path_prefix"] = str(real_videos)
    store = str(tmp_path / "tokens")
    tree = {
        "TASK": "FinetuneTask",
        "TOKENIZER": "VQVAETokenizer",
        "BACKBONE": {"NAME": "VimpacTransformer", "embed_dim": 16, "num_heads": 2, "num_layers": 1},
        "HEADS": {"classification": {"NAME": "ClassificationHead"}},
        "LOSSES": {"classification": {"NAME": "CrossEntropyLoss"}},
        "MODEL": {"NUM_CLASSES": 2},
        "DATA": {
            "NUM_FRAMES": 5,
            "TRAIN_CROP_SIZE": 64,
            "TEST_CROP_SIZE": 64,
            "VOCAB_SIZE": 64,
            "TRAIN_VIEWS": "center",
            "ON_BAD_VIDEO": "skip",
        },
        "DATA_LOADER": {"NUM_WORKERS": 0},
        "TRAIN": {"DATASET": dataset, "TOKEN_STORE": store, "BATCH_SIZE": 16},
        "TEST": {
            "DATASET": dataset,
            "TOKEN_STORE": store,
            "NUM_ENSEMBLE_VIEWS": 2,
            "NUM_SPATIAL_CROPS": 1,
        },
        "SOLVER": {"MAX_EPOCH": 1},
        "TENSORBOARD": False,
        "NUM_GPUS": 0,
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path, names


def test_every_clip_is_tokenised_or_reported_and_a_model_trains_on_them(config, tmp_path, caplog):
    path, names = config
    caplog.set_level(logging.INFO)
    summary = extract_stores(prepare(path))["TRAIN"]
    assert summary.num_extracted == len(names) - len(UNREADABLE)
    listed = (tmp_path / "tokens/bad_videos.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"].rsplit("/", 1)[-1] for line in listed} == UNREADABLE
    result = run(prepare(path))
    protocol = result["protocol"]
    assert protocol["expected_videos"] == len(names)
    assert protocol["missing_videos"] == len(UNREADABLE)


def test_the_dalle_architecture_tokenises_a_real_clip(real_videos, tmp_path):
    records = [
        record
        for record in VideoFolder(str(real_videos)).records
        if "decord_rotation_90" in record.video_id
    ]
    (view,) = spatial_views("center", 32)
    extract(records, DalleTokenizer(encoder=None), tmp_path / "dalle", 10.0, [view])
    store = TokenStore(tmp_path / "dalle")
    tokens = store.read(records[0].video_id, view.name, [0])
    assert tokens.shape == (1, 4, 4)
    assert len(set(tokens.ravel().tolist())) > 1
