"""Every option of pre-training, from a configuration to the values of a step."""

import json
import math

import pytest
import torch
from tiny_project import make_tiny_project

from vimpac_ext.build import BuildError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.visualize import visualize
from vimpac_ext.maskers import BlockMasker, corrupt, num_blocks_for_ratio
from vimpac_ext.registries import MASKERS, TASKS
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.tasks.pretrain import PretrainTask

SPECIAL = SpecialTokens(20)
ONLY_TOKENS = ["HEADS.contrast", "null", "LOSSES.contrast", "null"]
ONLY_CONTRAST = ["HEADS.token", "null", "LOSSES.token", "null"]
NO_MASKER = ["MASKER.NAME", ""]
UNMASKED_CONTRAST = ["TASK.unmasked_heads", "[contrast]"]
NO_DROPOUT = ["BACKBONE.dropout", "0.0"]


@MASKERS.register()
class FirstFrameMasker:
    """A plug-in that knows of nothing but masks."""

    def __call__(self, tokens, generator):
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[:, 0] = True
        return mask


@TASKS.register()
class NeedsAMasker(PretrainTask):
    """A task of somebody else's, whose masker has no default."""

    def __init__(self, backbone, heads, losses, masker, vocab_size):
        super().__init__(backbone, heads, losses, vocab_size, masker)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_tiny_project(tmp_path_factory.mktemp("pretrain"))


@pytest.fixture
def batch():
    clips = torch.randint(20, (6, 2, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    clips[1, 0, 2] = SPECIAL.pad
    return {"clips": clips}


def built(project, *overrides):
    torch.manual_seed(1)
    return build_task(prepare(project / "pretrain.yaml", [*NO_DROPOUT, *overrides]).cfg).train()


def new_generator(seed=2):
    return torch.Generator().manual_seed(seed)


def step(task, batch, seed=2):
    """Scalars of a step and what the backbone was shown in it."""
    shown = []
    handle = task.backbone.register_forward_pre_hook(lambda _, inputs: shown.append(*inputs))
    scalars = task.training_step(batch, new_generator(seed))
    handle.remove()
    return scalars, shown


def originals(batch):
    return torch.cat([batch["clips"][:, 0], batch["clips"][:, 1]])


def masked(task, batch, seed=2):
    tokens = originals(batch)
    return corrupt(tokens, task.masker(tokens, new_generator(seed)), SPECIAL)


def token_loss_by_hand(task, batch, shown, mask):
    """Mean of -log p(original token) over the hidden positions, one by one."""
    features = task.backbone(shown)["features"]
    tokens, losses = originals(batch), []
    for clip, t, i, j in mask.nonzero().tolist():
        logits = task.heads["token"].logits(features[clip, t, i, j])
        losses.append(-logits.log_softmax(-1)[tokens[clip, t, i, j]])
    return torch.stack(losses).mean().item()


def contrast_loss_by_hand(task, shown, temperature=0.2):
    """Eqs. 4 and 5, anchor by anchor."""
    rows = task.heads["contrast"](task.backbone(shown))["projection"].detach().double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    num_videos, total = len(rows) // 2, 0.0
    for anchor in range(len(rows)):
        positive = (anchor + num_videos) % len(rows)
        scores = {k: math.exp(rows[anchor] @ rows[k] / temperature) for k in range(len(rows))}
        denominator = sum(score for k, score in scores.items() if k != anchor)
        total -= temperature * math.log(scores[positive] / denominator) / num_videos
    return total


def close(value):
    return pytest.approx(value, abs=2e-6)


def test_both_losses_come_from_one_pass_of_masked_clips(project, batch):
    task = built(project)
    scalars, shown = step(task, batch)
    hidden, mask = masked(task, batch)
    assert len(shown) == 1
    assert torch.equal(shown[0], hidden)
    assert 0 < mask.sum() < mask.numel()
    token, contrast = scalars["token_loss"].item(), scalars["contrast_loss"].item()
    assert token == close(token_loss_by_hand(task, batch, hidden, mask))
    assert contrast == close(contrast_loss_by_hand(task, hidden))
    assert scalars["loss"].item() == close(token + contrast)


@pytest.mark.parametrize(("token", "contrast"), [(1.0, 0.5), (0.25, 2.0), (0.0, 1.0)])
def test_loss_weights(project, batch, token, contrast):
    weights = ["LOSSES.token.weight", str(token), "LOSSES.contrast.weight", str(contrast)]
    scalars, _ = step(built(project, *weights), batch)
    plain, _ = step(built(project), batch)
    for name in ("token_loss", "contrast_loss"):
        assert scalars[name].item() == plain[name].item()  # logged without their weights
    expected = token * plain["token_loss"].item() + contrast * plain["contrast_loss"].item()
    assert scalars["loss"].item() == close(expected)


def test_contrast_without_mask_beside_masked_prediction(project, batch):
    task = built(project, *UNMASKED_CONTRAST)
    scalars, shown = step(task, batch)
    hidden, mask = masked(task, batch)
    assert len(shown) == 2
    assert torch.equal(shown[0], originals(batch))
    assert torch.equal(shown[1], hidden)
    token, contrast = scalars["token_loss"].item(), scalars["contrast_loss"].item()
    assert token == close(token_loss_by_hand(task, batch, hidden, mask))
    assert contrast == close(contrast_loss_by_hand(task, originals(batch)))
    assert scalars["loss"].item() == close(token + contrast)
    # The mask moves the one and not the other.
    other, _ = step(task, batch, seed=3)
    assert other["token_loss"].item() != token
    assert other["contrast_loss"].item() == contrast
    # Both passes train the backbone.
    tied = step(built(project), batch)[0]
    assert tied["contrast_loss"].item() != contrast


def test_gradients_of_both_passes_add_up(project, batch):
    task = built(project, *UNMASKED_CONTRAST)

    def gradient(name):
        task.zero_grad()
        for loss, module in task.losses.items():
            module.weight = float(name in (loss, "both"))
        step(task, batch)[0]["loss"].backward()
        return task.backbone.token_embedding.weight.grad.clone()

    token, contrast, both = map(gradient, ("token", "contrast", "both"))
    assert token.abs().max() > 0
    assert contrast.abs().max() > 0
    torch.testing.assert_close(both, token + contrast, atol=1e-6, rtol=1e-5)


def test_masked_prediction_alone(project, batch):
    task = built(project, *ONLY_TOKENS)
    assert list(task.heads) == ["token"]
    scalars, shown = step(task, batch)
    hidden, mask = masked(task, batch)
    assert len(shown) == 1
    assert set(scalars) == {"loss", "token_loss", "mask_accuracy"}
    assert scalars["loss"].item() == close(token_loss_by_hand(task, batch, hidden, mask))


def test_contrast_alone_of_masked_clips(project, batch):
    task = built(project, *ONLY_CONTRAST)
    scalars, shown = step(task, batch)
    hidden, _ = masked(task, batch)
    assert set(scalars) == {"loss", "contrast_loss"}
    assert len(shown) == 1
    assert torch.equal(shown[0], hidden)
    assert scalars["loss"].item() == close(contrast_loss_by_hand(task, hidden))


@pytest.mark.parametrize("how", [NO_MASKER, UNMASKED_CONTRAST, NO_MASKER + UNMASKED_CONTRAST])
def test_contrast_alone_of_original_clips(project, batch, how):
    task = built(project, *ONLY_CONTRAST, *how)
    scalars, shown = step(task, batch)
    assert set(scalars) == {"loss", "contrast_loss"}
    assert len(shown) == 1
    assert torch.equal(shown[0], originals(batch))
    assert scalars["loss"].item() == close(contrast_loss_by_hand(task, originals(batch)))


@pytest.mark.parametrize("how", [[], NO_MASKER])
def test_a_loss_may_read_the_backbone_itself(project, batch, how):
    no_heads = ["HEADS.token", "null", "HEADS.contrast", "null", "LOSSES.token", "null"]
    task = built(project, *no_heads, *how)
    task.losses["contrast"].forward = lambda outputs, targets: outputs["cls"].sum()
    scalars, shown = step(task, batch)
    assert len(shown) == 1
    assert torch.equal(shown[0], originals(batch) if how else masked(task, batch)[0])
    assert scalars["loss"].item() == close(task.backbone(shown[0])["cls"].sum().item())


def test_groups_of_videos_by_config(project, batch):
    task = built(project, *ONLY_CONTRAST, *NO_MASKER, "LOSSES.contrast.group_size", "3")
    scalars, shown = step(task, batch)
    rows = task.heads["contrast"](task.backbone(shown[0]))["projection"]
    groups = [rows[[0, 1, 2, 6, 7, 8]], rows[[3, 4, 5, 9, 10, 11]]]
    task.heads["contrast"].forward = lambda outputs: {"projection": outputs["cls"]}
    task.backbone.forward = lambda rows: {"cls": rows}
    expected = [contrast_loss_by_hand(task, group) for group in groups]
    assert scalars["loss"].item() == close(sum(expected) / 2)


@pytest.mark.parametrize("noise", ["token", "block"])
def test_noise_by_config(project, batch, noise):
    task = built(project, "TASK.noise", noise)
    differs = 0
    for seed in range(20):
        scalars, shown = step(task, batch, seed)
        _, mask = masked(task, batch, seed)  # noise does not move the mask itself
        seen, tokens = shown[0], originals(batch)
        assert torch.equal(seen[~mask], tokens[~mask])
        differs += int((seen[mask] != SPECIAL.mask).sum())
        assert (seen[mask] <= SPECIAL.mask).all()
        # The originals are predicted, of what is random or untouched as well.
        expected = token_loss_by_hand(task, batch, seen, mask)
        assert scalars["token_loss"].item() == close(expected)
    assert differs > 0


def test_noise_by_token_works_with_a_plugin_that_returns_a_mask(project, batch):
    masker = ["MASKER.NAME", "FirstFrameMasker"]
    task = built(project, *masker, "TASK.noise", "token")
    seen = torch.stack([step(task, batch, seed)[1][0][:, 0] for seed in range(30)])
    kept = originals(batch)[:, 0]
    assert (seen == SPECIAL.mask).double().mean().item() == pytest.approx(0.8, abs=0.05)
    # 10 % untouched, and of the 10 % random ones every twentieth is the same by chance.
    assert (seen == kept).double().mean().item() == pytest.approx(0.105, abs=0.04)


def test_a_target_ratio_by_config(project):
    masker = built(project, "MASKER.num_blocks", "null", "MASKER.ratio", "0.6").masker
    assert isinstance(masker, BlockMasker)
    assert masker.num_blocks == num_blocks_for_ratio((3, 2, 2), 0.6)
    # The middle frame is covered with p = 2/3, the outer ones with 5/12, a place with 1/4.
    assert masker.num_blocks == 7  # 59.8 %; 6 hide 54.4 %


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["MASKER.ratio", "0.15"], ["num_blocks=3 or ratio=0.15, not both"]),
        ([*NO_MASKER, "TASK.noise", "token"], ["TASK.noise='token'", "MASKER.NAME"]),
        (
            ["MASKER.NAME", "UniformMasker", "TASK.noise", "block"],
            ["TASK.noise='block'", "MASKER", "UniformMasker", "BlockMasker"],
        ),
        (["TASK.noise", "blok"], ["TASK in", "noise", "'blok'", "'block'"]),
        (
            ["TASK.unmasked_heads", "[contrst]"],
            ["TASK.unmasked_heads", "no 'contrst'", "HEADS", "contrast, token"],
        ),
        (
            [*ONLY_TOKENS, *UNMASKED_CONTRAST],
            ["TASK.unmasked_heads", "no 'contrast'", "only token"],
        ),
        (["TASK.NAME", "NeedsAMasker", *NO_MASKER], ["MASKER", "no NAME", "BlockMasker"]),
        (["MASKER.NAME", "TubeMasker", "MASKER.num_blocks", "3"], ["TubeMasker(ratio"]),
    ],
)
def test_what_does_not_fit_together_is_not_built(project, overrides, parts):
    with pytest.raises((ValueError, BuildError)) as error:
        built(project, *overrides)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["HEADS.token", "null"],
            ["LOSSES.token (MaskedTokenLoss) reads 'token_logits'", "Add a head", "projection"],
        ),
        (
            ["HEADS.contrast", "null"],
            ["LOSSES.contrast (InfoNCELoss) reads 'projection'", "token_logits"],
        ),
        (NO_MASKER, ["HEADS.token (MaskedTokenHead) reads 'mask'", "MASKER.NAME"]),
        (
            ["TASK.unmasked_heads", "[token]"],
            ["HEADS.token (MaskedTokenHead) reads 'mask'", "TASK.unmasked_heads"],
        ),
        (["LOSSES.token", "null", "LOSSES.contrast", "null"], ["LOSSES is empty"]),
        (["LOSSES.contrast.group_size", "4"], ["6 videos", "group_size=4", "MICRO_BATCH_SIZE"]),
    ],
)
def test_the_first_step_tells_what_is_missing(project, batch, overrides, parts):
    task = built(project, *overrides)
    with pytest.raises(ValueError, match=r".") as error:
        step(task, batch)
    for part in parts:
        assert part in str(error.value)


def test_a_key_error_of_a_component_stays_one(project, batch):
    task = built(project)
    task.heads["token"].forward = lambda outputs: {}["mask"]
    with pytest.raises(KeyError, match="mask"):
        step(task, batch)


def test_nothing_hidden_cannot_be_drawn(project, tmp_path):
    loaded = prepare(project / "pretrain.yaml", [*ONLY_CONTRAST, *NO_MASKER])
    with pytest.raises(ValueError, match="hides no tokens"):
        visualize(loaded, tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("name", "overrides", "losses"),
    [
        ("unmasked", UNMASKED_CONTRAST, {"token_loss", "contrast_loss"}),
        ("contrast", [*ONLY_CONTRAST, *NO_MASKER], {"contrast_loss"}),
        ("tokens", [*ONLY_TOKENS, "MASKER.NAME", "TubeMasker", "MASKER.ratio", "0.5",
                    "TASK.noise", "token"], {"token_loss"}),
    ],
)  # fmt: skip
def test_whole_runs(project, tmp_path, name, overrides, losses):
    output = ["OUTPUT_DIR", str(tmp_path / name), "SOLVER.MAX_EPOCH", "3"]
    run(prepare(project / "pretrain.yaml", [*overrides, *output]))
    lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if line["_type"] == "train_iter"]
    assert len(lines) == 6
    for line in lines:
        assert {key for key in line if key.endswith("_loss")} == losses
        assert line["loss"] == pytest.approx(sum(line[key] for key in losses), rel=1e-5)


@pytest.mark.parametrize("distance", ["-1", "far", "True"])
def test_the_distance_of_a_pair_is_a_number_of_seconds(project, distance):
    with pytest.raises(ValueError, match="DATA.MAX_PAIR_DISTANCE in the command line must be null"):
        prepare(project / "pretrain.yaml", ["DATA.MAX_PAIR_DISTANCE", distance])
