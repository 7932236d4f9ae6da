"""The README's example must run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from tiny_project import make_tiny_project

from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_task

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_component_registers_and_trains(tmp_path):
    block = re.search(r"<!-- example: checkerboard -->\n```python\n(.*?)```", README, re.DOTALL)
    module = tmp_path / "my_lab" / "masking.py"
    module.parent.mkdir()
    module.write_text(block[1])
    project = make_tiny_project(tmp_path)
    words = ["--cfg", project / "pretrain.yaml", "--plugin", "my_lab.masking"]
    words += ["MASKER.NAME", "CheckerboardMasker", "MASKER.cell", "4"]
    command = [sys.executable, ROOT / "tools/run_net.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("pretrain/checkpoints/*.pyth"))


def test_the_example_for_own_videos_builds(tmp_path):
    text, _ = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("configs/", f"{ROOT}/configs/"))
    cfg = prepare(path, ["NUM_GPUS", "0"]).cfg
    assert dict(cfg.TRAIN.DATASET) == {"NAME": "PathLabelList", "split": "train"}


def test_the_example_of_another_backbone_builds(tmp_path):
    _, text = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "mvit.yaml"
    path.write_text(text.replace("configs/", f"{ROOT}/configs/"))
    task = build_task(prepare(path, ["NUM_GPUS", "0"]).cfg)
    assert task.input_kind == "pixels"
    assert task.backbone.clip_size == (16, 224, 224)


def test_every_file_that_the_readme_names_exists():
    for path in re.findall(r"(?:configs|tools|tests|vimpac_ext)/[\w/.]*\w", README):
        assert (ROOT / path).exists(), path
