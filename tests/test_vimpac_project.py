"""The page about the paper and the authors' code: its options exist, its example runs."""

import re
from pathlib import Path

import pytest
import torch
from original_format import record, write_token_folder

from vimpac_ext.data.token_source import open_token_dataset
from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_dataset, build_task, open_store

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "projects" / "vimpac" / "README.md").read_text(encoding="utf-8")
PRETRAIN = ROOT / "configs" / "vimpac" / "pretrain_small.yaml"
FINETUNE = ROOT / "configs" / "vimpac" / "ucf101_small.yaml"

CODE = [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", PAGE)]
# `KEY VALUE [KEY VALUE]`: keys in capitals, at least up to the first dot.
OPTIONS = sorted({span for span in CODE if re.fullmatch(r"([A-Z_]+(\.\w+)* \S+ ?)+", span)})


def test_the_page_has_a_row_for_each_known_difference():
    rows = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 20))
    assert len(OPTIONS) > 40


@pytest.mark.parametrize("options", OPTIONS)
def test_options_exist(options):
    finetuning = re.search(r"(^| )(TEST|HEADS.classification|LOSSES.classification)\.", options)
    cfg = prepare(FINETUNE if finetuning else PRETRAIN, options.split()).cfg
    if options.startswith("BACKBONE."):
        with torch.device("meta"):  # shapes without memory
            build_task(cfg)


def test_files_exist():
    for path in re.findall(r"(?:configs|tools)/[\w/*.]*\w", PAGE):
        assert list(ROOT.glob(path)), path


def test_the_example_reads_the_authors_folders(tmp_path, monkeypatch):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "original.yaml"
    path.write_text(text.replace("configs/", f"{ROOT}/configs/"))
    for flip in (0, 1):
        for resize in (128, 160):
            for crop in ("top", "center", "bottom"):
                name = f"dalle_ucf101_train_test_fps16_hflip{flip}_{resize}{crop}128"
                values = {f"A/v_{i}": record([[[i] * 16] * 16] * 3, label=i) for i in range(4)}
                write_token_folder(tmp_path / "video_tokens" / name, values)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "trainlist01.txt").write_text("A/v_0.avi 1\nA/v_3.avi 4\n")
    (tmp_path / "splits" / "testlist01.txt").write_text("A/v_1.avi\n")
    monkeypatch.chdir(tmp_path)
    cfg = prepare(path).cfg
    for phase, labels, num_views in (("TRAIN", [0, 3], 12), ("TEST", [1], 3)):
        assert [record.label for record in build_dataset(cfg, phase).records] == labels
        assert len(open_store(cfg, phase).meta.views) == num_views
    (pattern,) = re.findall(r'open_token_dataset\("(.*?)"\)', PAGE)
    assert open_token_dataset(pattern)[2]["clips"].shape == (3, 5, 16, 16)
