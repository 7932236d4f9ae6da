"""Linear and attentive probes of every family of the benchmark, on tiny clips."""

from pathlib import Path

import pytest
import torch

from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.optim import build_optimizer

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "benchmark"
FAMILIES = sorted(path.stem.removeprefix("k400_") for path in FOLDER.glob("k400_*.yaml"))
HUGGING_FACE = ("timesformer", "vivit", "videomae", "vjepa2")
TINY_MVIT = (
    "{depth: 2, embed_dim_mul: [[1, 2.0]], atten_head_mul: [[1, 2.0]], patch_embed_dim: 32, "
    "pool_q_stride_size: [[1, 1, 2, 2]], pool_kv_stride_adaptive: [1, 2, 2]}"
)
NARROW = {"slowfast": "{stem_dim_outs: [16, 2]}", "x3d": "{}"}  # of convolutions


def tiny(name):
    """Overrides that keep the kind of model and make it small."""
    values = {
        "DATA.TRAIN_CROP_SIZE": 32,
        "DATA.TEST_CROP_SIZE": 32,
        "MODEL.NUM_CLASSES": 3,
        "TASK.freeze_backbone": True,
        "TRAIN.PRECISION": "fp32",
        "SOLVER.BASE_LR": 0.01,
    }
    if name in HUGGING_FACE:
        pytest.importorskip("transformers")
        values["BACKBONE.options"] = (
            "{num_hidden_layers: 1, hidden_size: 96, num_attention_heads: 4}"
        )
    elif name.startswith(("frames", "space_time")):
        values["BACKBONE.options"] = "{depth: 1}"
    elif name == "vimpac":
        values |= {"BACKBONE.num_layers": 1, "BACKBONE.embed_dim": 64, "DATA.VOCAB_SIZE": 64}
        values["BACKBONE.num_heads"] = 2
    elif name == "mvit":
        values["BACKBONE.options"] = TINY_MVIT
    else:
        values["BACKBONE.global_pool"] = True
        values["BACKBONE.options"] = NARROW.get(name, "{stem_dim_out: 16}")
    return values


def a_clip(task, cfg):
    side = cfg.DATA.TRAIN_CROP_SIZE
    if task.input_kind == "tokens":
        return torch.randint(cfg.DATA.VOCAB_SIZE, (2, 1, cfg.DATA.NUM_FRAMES, side // 8, side // 8))
    return torch.rand(2, 1, 3, cfg.DATA.NUM_FRAMES, side, side)


@pytest.mark.parametrize("head", ["ClassificationHead", "AttentiveHead"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_a_probe_trains_the_head_alone(name, head):
    values = {**tiny(name), "HEADS.classification.NAME": head}
    overrides = [str(word) for pair in values.items() for word in pair]
    cfg = prepare(FOLDER / f"k400_{name}.yaml", overrides).cfg
    torch.manual_seed(0)
    task = build_task(cfg).train()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    clips = a_clip(task, cfg)
    batch = {"clips": clips, "label": torch.tensor([0, 2])}
    optimizer = build_optimizer(task, cfg.SOLVER)
    losses = []
    for _ in range(2):
        loss = task.training_step(batch, torch.Generator().manual_seed(0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = task.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert changed
    assert all(key.startswith("heads.classification.") for key in changed)
    assert losses[0] == pytest.approx(torch.tensor(3.0).log().item())  # all classes are equal

    task.eval()
    with torch.no_grad():
        outputs = task.encode(clips[:, 0])
        read = task.heads["classification"]
        logits = read(outputs)["class_logits"]
        if head == "AttentiveHead":
            for frame, row in ((0, 0), (-1, -1)):
                other = outputs["features"].clone()
                other[:, frame, row, 0] = other[:, frame, row, 0].flip(-1)
                moved = (read({**outputs, "features": other})["class_logits"] - logits).abs()
                assert (moved.amax(dim=1) > 0).all()
