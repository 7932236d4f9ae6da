"""From a checkpoint and a video to the picture."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_project import VOCAB_SIZE, make_drawn_project
from matplotlib.image import imread
from torch import nn

from vimpac_ext.config import ConfigError
from vimpac_ext.data import SpatialView, VideoReader
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.engine import prepare
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import FORMAT, CheckpointError
from vimpac_ext.engine.requirements import MissingInputError
from vimpac_ext.engine.visualize import complete_tokens, reconstruct, visualize
from vimpac_ext.maskers import BlockMasker
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.tokenizers import DalleTokenizer, VQVAETokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_drawn_project(tmp_path_factory.mktemp("project"))


def load(project, *overrides):
    return prepare(project.config, [*project.overrides, *overrides])


def tokenizer_of(project):
    return VQVAETokenizer(str(project.folder / "tokenizer.safetensors"))


def as_frames(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def as_images(frames):
    return (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_the_picture_of_a_video(project, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    picture = tmp_path / "picture.png"
    videos = [str(project.videos / name) for name in ("video_0.mp4", "short.mp4")]
    clip, short = visualize(load(project), picture, videos, seed=1)

    # The middle clip of 8 frames, in the view that the model was trained on.
    with VideoReader(videos[0]) as reader:
        frames = SpatialView.parse("16center16")(reader.frames_at(2.0, [2, 3, 4]))
    np.testing.assert_array_equal(clip.original, frames)
    tokenizer = tokenizer_of(project)
    tokens = tokenizer.encode(as_frames(frames))
    np.testing.assert_array_equal(clip.tokenized, as_images(tokenizer.decode(tokens)))

    mask = BlockMasker(3)(tokens[None], torch.Generator().manual_seed(1))[0]
    hidden = mask.numpy().repeat(8, axis=1).repeat(8, axis=2)
    assert 0 < hidden.mean() < 1
    assert clip.mask_ratio == pytest.approx(hidden.mean())
    np.testing.assert_array_equal(clip.masked[~hidden], clip.original[~hidden])
    assert (clip.masked[hidden] == 128).all()
    assert (clip.original[hidden] != 128).any()
    # A frame without hidden tokens is completed to what it was; the others may differ.
    for frame, whole in enumerate(~mask.flatten(1).any(1)):
        if whole:
            np.testing.assert_array_equal(clip.completed[frame], clip.tokenized[frame])

    # A video that is too short has no pictures of padding.
    assert short.original.shape == short.masked.shape == short.completed.shape == (2, 16, 16, 3)
    assert short.num_frames == 3

    log = caplog.text
    assert f"video_0.mp4: {100 * clip.mask_ratio:.1f} % of the tokens hidden" in log
    assert f"{100 * clip.accuracy:.1f} % of these predicted right" in log
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] > 900
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_the_seed_chooses_the_masks_and_the_first_training_video_is_the_default(project, tmp_path):
    def masked(seed):
        [clip] = visualize(load(project), tmp_path / "picture.png", seed=seed)
        assert clip.title == "clips/video_0"
        return clip.masked

    first = masked(0)
    np.testing.assert_array_equal(masked(0), first)
    assert any((masked(seed) != first).any() for seed in (1, 2))


class Favours(nn.Module):
    """A head that likes [MASK] best and then a code."""

    def forward(self, outputs):
        logits = torch.zeros(int(outputs["mask"].sum()), SpecialTokens(VOCAB_SIZE).num_embeddings)
        logits[:, SpecialTokens(VOCAB_SIZE).mask] = 2
        logits[:, 7] = 1
        return {"token_logits": logits}


def made_task(mask, heads, backbone=lambda tokens: {"seen": tokens}):
    return SimpleNamespace(
        masker=lambda tokens, generator: mask[None],
        backbone=backbone,
        heads=nn.ModuleDict(heads),
        special=SpecialTokens(VOCAB_SIZE),
    )


def test_completed_tokens_are_codes_where_hidden_and_the_same_elsewhere():
    tokens = torch.randint(8, VOCAB_SIZE, (3, 2, 2))
    tokens[2] = SpecialTokens(VOCAB_SIZE).pad
    drawn = torch.rand(3, 2, 2) < 0.5
    drawn[:, 0, 0] = True
    mask, completed = complete_tokens(
        made_task(drawn, {"token": Favours()}), tokens, torch.Generator()
    )
    torch.testing.assert_close(mask[:2], drawn[:2])
    assert not mask[2].any()  # padding is not hidden
    torch.testing.assert_close(completed[~mask], tokens[~mask], rtol=0, atol=0)
    assert (completed[mask] == 7).all()


def test_the_model_sees_no_token_that_it_is_asked_for():
    tokens = torch.randint(8, VOCAB_SIZE, (3, 2, 2), generator=torch.Generator().manual_seed(0))
    tokens[2] = SpecialTokens(VOCAB_SIZE).pad
    drawn = torch.tensor([[[1, 0], [0, 1]]] * 3).bool()
    seen = []

    def backbone(clip):
        seen.append(clip.clone())
        return {}

    complete_tokens(made_task(drawn, {"token": Favours()}, backbone), tokens, torch.Generator())
    [[clip]] = seen
    assert (clip[:2][drawn[:2]] == SpecialTokens(VOCAB_SIZE).mask).all()
    assert torch.equal(clip[:2][~drawn[:2]], tokens[:2][~drawn[:2]])
    assert torch.equal(clip[2], tokens[2])  # padding


PIXELS = [
    "BACKBONE",
    "{NAME: TimmSpaceTime, model: vit_tiny_patch16_224, attention: joint, "
    "options: {patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}}",
    *("DATA.TOKENS", "online", "TRAIN.TOKEN_STORE", ""),
    *("HEADS.contrast", "null", "LOSSES.contrast", "null"),
]


def untrained(project, folder, overrides):
    """A configuration and its task, whose checkpoint lies in a folder."""
    loaded = load(project, *overrides, "OUTPUT_DIR", str(folder))
    torch.manual_seed(1)
    task = build_task(loaded.cfg)
    folder.mkdir()
    torch.save(
        {"format": FORMAT, "model_state": task.state_dict(), "facts": {}, "update": 1},
        folder / "checkpoint_epoch_00001.pyth",
    )
    return loaded, task.eval()


@pytest.mark.parametrize("overrides", [[], PIXELS], ids=["tokens", "pixels"])
@pytest.mark.parametrize("video", ["video_0.mp4", "short.mp4"])
def test_predictions_are_those_of_a_training_step(project, tmp_path, overrides, video):
    """Of the same clip with the same mask; here the features of pixels have twice the grid."""
    loaded, task = untrained(project, tmp_path / "run", overrides)
    video = str(project.videos / video)
    [clip] = visualize(loaded, tmp_path / "picture.png", [video], seed=4)
    frames = torch.full((3, 3, 16, 16), torch.nan)
    frames[: len(clip.original)] = as_frames(clip.original)
    tokenizer, special = tokenizer_of(project), SpecialTokens(VOCAB_SIZE)
    real = tokenizer.encode(as_frames(clip.original))
    tokens = torch.cat([real, torch.full((3 - len(real), 2, 2), special.pad)])
    mask = BlockMasker(3)(tokens[None], torch.Generator().manual_seed(4))[0]
    mask[len(real) :] = False
    assert clip.mask_ratio == pytest.approx(mask[: len(real)].float().mean().item())
    both = mask.expand(2, 3, 2, 2)
    logits = []
    task.heads["token"].register_forward_hook(lambda head, i, o: logits.append(o["token_logits"]))
    shown = frames.transpose(0, 1) if overrides else tokens
    batch = {
        "clips": torch.stack([shown, shown])[None],
        "mask": both,
        "mask_positions": both.flatten().nonzero().squeeze(1),
        "hidden": torch.where(both, special.mask, tokens),
    }
    with torch.inference_mode():
        scalars = task.training_step(batch, torch.Generator())
    assert clip.accuracy == pytest.approx(float(scalars["mask_accuracy"]))
    completed = tokens.clone()
    completed[mask] = logits[0][: int(mask.sum()), :VOCAB_SIZE].argmax(-1)
    expected = as_images(tokenizer.decode(completed[: len(real)]))
    np.testing.assert_array_equal(clip.completed, expected)


def test_pixels_are_blank_where_tokens_are_hidden(project, tmp_path):
    _, task = untrained(project, tmp_path / "run", PIXELS)
    pixels, mask = torch.rand(3, 3, 16, 16), torch.zeros(3, 2, 2, dtype=torch.bool)
    pixels[:, 2] = torch.nan
    mask[0, 1, 0] = True
    seen = []
    task.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens = torch.zeros(3, 2, 2, dtype=torch.int64)
    tokens[2] = SpecialTokens(VOCAB_SIZE).pad
    hide = lambda tokens, generator: mask[None]  # noqa: E731
    with torch.inference_mode():
        complete_tokens(task, tokens, torch.Generator(), hide, pixels)
    [[clip]] = seen
    colours = torch.as_tensor(task.backbone.mean).flatten()
    for channel, colour in enumerate(colours.expand(3)):
        assert (clip[channel, 0, 8:, :8] == colour).all()
        assert (clip[channel, 2] == colour).all()
    seen_part = torch.ones(3, 16, 16, dtype=torch.bool)
    seen_part[0, 8:, :8] = seen_part[2] = False
    assert torch.equal(clip[:, seen_part], pixels[:, seen_part])


def test_the_mask_of_a_video_does_not_depend_on_those_before_it(project, tmp_path):
    first, second = (str(project.videos / name) for name in ("short.mp4", "video_0.mp4"))
    [alone] = visualize(load(project), tmp_path / "a.png", [second], seed=5)
    _, after = visualize(load(project), tmp_path / "b.png", [first, second], seed=5)
    np.testing.assert_array_equal(alone.masked, after.masked)
    assert 0 < alone.mask_ratio < 1


def test_accuracy_and_mask_ratio_count_neither_padding_nor_what_is_seen(project):
    tokenizer = tokenizer_of(project)
    frames = torch.rand(2, 3, 16, 16)
    tokens = tokenizer.encode(frames)
    drawn = torch.ones(3, 2, 2, dtype=torch.bool)
    drawn[0, 0, 0] = False
    task = made_task(drawn, {"token": Favours()})
    clip = reconstruct("a", frames, 3, tokenizer, task, torch.Generator())
    assert clip.mask_ratio == 7 / 8
    assert clip.accuracy == pytest.approx((tokens.flatten()[1:] == 7).sum().item() / 7)
    tokens.flatten()[1:] = 7
    np.testing.assert_array_equal(clip.completed, as_images(tokenizer.decode(tokens)))


def test_without_a_checkpoint_it_says_what_to_run(project, tmp_path):
    loaded = load(project, "OUTPUT_DIR", str(tmp_path / "nothing"))
    with pytest.raises(MissingInputError, match=r"no checkpoint in .*nothing.*run_net.py --cfg"):
        visualize(loaded, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_tokens_is_refused(project, tmp_path):
    other = tmp_path / "other.safetensors"
    VQVAETokenizer(None, vocab_size=VOCAB_SIZE, hidden_dim=8, code_dim=4).save(other)
    loaded = load(project, "TOKENIZER.weights", str(other))
    with pytest.raises(CheckpointError, match="tokenizer_fingerprint"):
        visualize(loaded, tmp_path / "picture.png")


def test_components_that_cannot_do_it_are_named(project, tmp_path, monkeypatch, fixtures_dir):
    picture = tmp_path / "picture.png"
    with pytest.raises(ConfigError, match=r"FinetuneTask hides no tokens; .*demo/pretrain.yaml"):
        visualize(prepare(project.finetune), picture)
    task = made_task(torch.ones(1, 2, 2, dtype=torch.bool), {"contrast": nn.Identity()})
    tokens, generator = torch.zeros(1, 2, 2, dtype=torch.int64), torch.Generator()
    with pytest.raises(ConfigError, match=r"HEADS \(Identity\) has none that predicts tokens"):
        complete_tokens(task, tokens, generator)
    dalle = DalleTokenizer(str(fixtures_dir / "original/dalle_encoder.pkl"))
    with pytest.raises(ValueError, match="DalleTokenizer has no decoder; give one"):
        reconstruct("a", torch.rand(1, 3, 16, 16), 1, dalle, task, generator)
    monkeypatch.delattr(VQVAETokenizer, "decode")
    with pytest.raises(ConfigError, match="VQVAETokenizer cannot draw tokens"):
        visualize(load(project), picture)
    assert not picture.exists()


def test_a_bad_video_is_named_and_the_old_picture_stays(project, tmp_path):
    picture, video = tmp_path / "picture.png", tmp_path / "empty.mp4"
    picture.write_bytes(b"old")
    video.touch()
    with pytest.raises(VideoDecodeError, match=r"empty\.mp4"):
        visualize(load(project), picture, [str(project.videos / "video_0.mp4"), str(video)])
    assert picture.read_bytes() == b"old"


def test_the_tool(project, tmp_path):
    def tool(*words):
        return subprocess.run(
            [sys.executable, str(ROOT / "tools/visualize.py"), *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    videos = [project.videos / "short.mp4", project.videos / "video_0.mp4"]
    options = ["--cfg", project.config, "--video", *videos, "--seed", "2", "--output", "p.png"]
    done = tool(*options, *project.overrides)
    assert done.returncode == 0, done.stderr
    assert "short.mp4: " in done.stdout
    assert "of the tokens hidden" in done.stdout
    assert imread(tmp_path / "p.png").shape[0] > 2 * 4 * 200

    done = tool("--cfg", project.config, "--output", "p.txt")
    assert done.returncode == 2
    assert "must end in .png or .gif or .mp4" in done.stderr
    done = tool("--cfg", project.config, "--output", "q.png", "OUTPUT_DIR", "nowhere")
    assert (done.returncode, done.stderr[:7]) == (1, "error: ")
    assert "no checkpoint in 'nowhere'" in done.stderr
