"""The tiny project with videos, and the tokenizer whose name its tokens carry: it can be drawn."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from made_videos import MadeVideo
from tiny_project import VIEWS, make_tiny_project, write_store

from vimpac_ext.engine import prepare, run
from vimpac_ext.tokenizers import VQVAETokenizer

VOCAB_SIZE = 20


def make_drawn_project(folder: Path) -> SimpleNamespace:
    """Writes everything below ``folder`` and pre-trains for an epoch."""
    configs = make_tiny_project(folder)
    torch.manual_seed(0)
    tokenizer = VQVAETokenizer(None, vocab_size=VOCAB_SIZE, hidden_dim=8, code_dim=4)
    tokenizer.save(folder / "tokenizer.safetensors")
    shutil.rmtree(folder / "tokens_train")
    write_store(folder / "tokens_train", VIEWS["train"], tokenizer.fingerprint)
    run(prepare(configs / "pretrain.yaml", ["SOLVER.MAX_EPOCH", "1"]))
    videos = folder / "data/clips"
    videos.mkdir()
    MadeVideo("video_0.mp4").write(videos)  # 4 s, 8 frames at 2 fps
    MadeVideo("short.mp4", times=range(25)).write(videos)  # 2 frames at 2 fps
    return SimpleNamespace(
        folder=folder,
        videos=videos,
        config=configs / "pretrain.yaml",
        finetune=configs / "finetune.yaml",
        overrides=[
            *("TOKENIZER.NAME", "VQVAETokenizer"),
            *("TOKENIZER.weights", str(folder / "tokenizer.safetensors")),
        ],
    )
