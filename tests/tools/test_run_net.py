"""The command line as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_project import make_tiny_project

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = '''
import torch
from torch import nn

from vimpac_ext.registries import BACKBONES, HEADS, MASKERS


@MASKERS.register()
class CheckerboardMasker:
    """Hides every other token."""

    def __init__(self, cell: int = 2):
        self.cell = cell

    def __call__(self, tokens, generator):
        positions = torch.arange(tokens[0].numel(), device=tokens.device)
        return (positions % self.cell == 0).view(tokens.shape[1:]).expand(tokens.shape)


@BACKBONES.register()
class BagOfTokens(nn.Module):
    """No attention at all."""

    input_kind = "tokens"

    def __init__(self, vocab_size: int, width: int = 8):
        super().__init__()
        self.embed_dim = width
        self.token_embedding = nn.Embedding(vocab_size + 5, width)

    def forward(self, clip):
        features = self.token_embedding(clip)
        return {"cls": features.mean(dim=(1, 2, 3)), "features": features}


@HEADS.register()
class BilinearHead(nn.Module):
    def __init__(self, embed_dim: int, num_classes: int, rank: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(embed_dim, rank), nn.Linear(rank, num_classes))

    def forward(self, outputs):
        return {"class_logits": self.layers(outputs["cls"])}
'''


def run_tool(*words, cwd, tool="run_net.py", **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


def test_components_from_outside_the_package(project, tmp_path):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "parts.py").write_text(PLUGIN)
    pretrain = ["--cfg", project / "pretrain.yaml", "--plugin", "my_lab.parts"]
    pretrain += ["MASKER.NAME", "CheckerboardMasker", "MASKER.cell", "3"]
    pretrain += ["BACKBONE.NAME", "BagOfTokens"]
    done = run_tool(*pretrain, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "pretrain/config.yaml").read_text())
    assert saved["PLUGINS"] == ["my_lab.parts"]
    assert saved["MASKER"] == {"NAME": "CheckerboardMasker", "cell": 3}

    config = yaml.safe_load((project / "finetune.yaml").read_text())
    config["PLUGINS"] = ["my_lab.parts"]
    config["BACKBONE"] = "BagOfTokens"
    config["HEADS"] = {"classification": {"NAME": "BilinearHead", "rank": 3}}
    (project / "finetune.yaml").write_text(yaml.safe_dump(config))
    done = run_tool("--cfg", project / "finetune.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "finetune/test/result.json").read_text())
    assert result["protocol"]["decoded_videos"] == 8

    listed = run_tool("--list", "--plugin", "my_lab.parts", cwd=tmp_path)
    assert "CheckerboardMasker(cell: int=2)" in listed.stdout


def test_several_configs_run_in_order_and_both_override_forms_work(project, tmp_path):
    files = [project / "pretrain.yaml", project / "finetune.yaml"]
    done = run_tool("--cfg", *files, "SOLVER.MAX_EPOCH", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "pretrain/checkpoints").iterdir()] == [
        "checkpoint_epoch_00001.pyth"
    ]
    assert (tmp_path / "finetune/test/confusion.png").stat().st_size > 1000
    done = run_tool("--cfg", files[0], "--opts", "SOLVER.MAX_EPOCH", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pretrain/checkpoints/checkpoint_epoch_00003.pyth").is_file()
    assert "resumed with other settings than before: SOLVER.MAX_EPOCH 1 -> 3" in done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["TRAIN.BACH_SIZE", "8"], ["'TRAIN.BACH_SIZE'", "did you mean 'TRAIN.BATCH_SIZE'"]),
        (["TRAIN.BATCH_SIZE", "eight"], ["TRAIN.BATCH_SIZE", "must be int"]),
        (["TRAIN.BATCH_SIZE"], ["KEY VALUE pairs"]),
        (["MASKER.num_blocs", "8"], ["'num_blocs'", "did you mean 'num_blocks'"]),
        (["MASKER.NAME", "BlokMasker"], ["'BlokMasker'", "did you mean 'BlockMasker'"]),
        (["--plugin", "no_such.module"], ["plug-in 'no_such.module' cannot be imported"]),
        (["NUM_GPUS", "1"], ["NUM_GPUS 0 to run on the CPU"]),
        (["TRAIN.BATCH_SIZE", "64"], ["only 8 training videos"]),
        (["DATA.PATH_TO_DATA_DIR", "nowhere"], ["folder 'nowhere' not found"]),
    ],
)
def test_bad_input_is_one_clear_message(project, tmp_path, words, parts):
    done = run_tool(
        "--cfg", project / "pretrain.yaml", *words, cwd=tmp_path, CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "pretrain/config.yaml").exists()
    assert not (tmp_path / "pretrain/checkpoints").exists()


def test_without_a_config_it_says_so(tmp_path):
    done = run_tool(cwd=tmp_path)
    assert done.returncode == 2
    assert "--cfg is required" in done.stderr
