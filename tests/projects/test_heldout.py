"""Held-out losses: pairs are drawn as in training, and means are in the units that are told."""

import json

import numpy as np
import pytest
import torch
from paper_tables import heldout
from tiny_project import make_tiny_project

from vimpac_ext.data import StoreMeta, TokenStoreWriter
from vimpac_ext.engine import prepare

FRAMES = 20


class Recorder(torch.nn.Module):
    """A task that gets three quarters right and keeps the pairs that it was given."""

    clip_mode = "pair"

    def __init__(self):
        super().__init__()
        self.starts = []

    def training_step(self, batch, generator):
        assert not self.training
        assert isinstance(generator, torch.Generator)
        self.starts.append(batch["clips"][:, :, 0, 0, 0])
        return {"mask_accuracy": torch.tensor(0.75), "contrast_loss": torch.tensor(2.0)}


@pytest.mark.parametrize(("limit", "farthest"), [("null", FRAMES - 3), ("2.0", 4), ("0.0", 0)])
def test_pairs_are_as_far_apart_as_in_training(limit, farthest, tmp_path, monkeypatch):
    configs = make_tiny_project(tmp_path)
    meta = StoreMeta("AnyTokenizer", "A:1", 20, 8, 2.0, ("16center16",), (2, 2))
    with TokenStoreWriter(tmp_path / "long", meta) as writer:
        frames = np.broadcast_to(np.arange(FRAMES)[:, None, None], (FRAMES, 2, 2))
        for i in range(8):  # every token is the number of its frame
            writer.add(f"clips/video_{i}", {"16center16": frames})
    task = Recorder()
    monkeypatch.setattr(heldout, "build_task", lambda cfg: task)
    monkeypatch.setattr(heldout, "find_checkpoint", lambda path: path)
    monkeypatch.setattr(heldout, "load_model", lambda *arguments: None)
    words = ["TEST.ENABLE", "True", "TEST.NUM_SPATIAL_CROPS", "1", "TRAIN.ENABLE", "False"]
    words += ["TEST.DATASET.NAME", "PathLabelList", "TEST.DATASET.split", "test"]
    words += ["TEST.TOKEN_STORE", str(tmp_path / "long"), "DATA.MAX_PAIR_DISTANCE", limit]
    words += ["OUTPUT_DIR", str(tmp_path / "out"), "TEST.CHECKPOINT_FILE_PATH", str(tmp_path)]
    found = heldout.evaluate_heldout(prepare(configs / "pretrain.yaml", words))
    starts = torch.cat(task.starts)
    assert (starts[:, 0] - starts[:, 1]).abs().max() == farthest  # 2 frames a second
    assert len(starts) == found["pairs"] == 1000
    assert (found["mask_accuracy"], found["contrast_loss"]) == pytest.approx((75.0, 2.0))
    assert found["videos"] == 8
    assert json.loads((tmp_path / "out/heldout.json").read_text()) == found
