"""Hugging Face video models: the library's own numbers, and published sizes."""

import pytest
import torch

from vimpac_ext import compat

transformers = pytest.importorskip("transformers")
compat.install()

from vimpac_ext.backbones import HuggingFaceBackbone  # noqa: E402  (after the check)
from vimpac_ext.evaluation import multiply_adds, parameter_count  # noqa: E402

SIZE = (4, 32, 32)
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@pytest.mark.parametrize("model_type", ["timesformer", "vivit", "videomae", "vjepa2"])
def test_equals_the_library(model_type, tmp_path):
    torch.manual_seed(0)
    sizes = ("frames_per_clip", "crop_size") if model_type == "vjepa2" else (
        "num_frames", "image_size")  # fmt: skip
    sizes = dict(zip(sizes, SIZE, strict=False))
    config = transformers.AutoConfig.for_model(model_type, **TINY, **sizes)
    theirs = transformers.AutoModel.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = HuggingFaceBackbone(SIZE, model_type, weights=str(tmp_path)).eval()
    clip = torch.rand(2, 3, *SIZE)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    frames = ((clip - mean) / std).transpose(1, 2)
    name = "pixel_values_videos" if model_type == "vjepa2" else "pixel_values"
    with torch.no_grad():
        hidden = theirs(**{name: frames}).last_hidden_state
        outputs = ours(clip)
    has_cls = model_type in ("timesformer", "vivit")
    cls = hidden[:, 0] if has_cls else hidden.mean(dim=1)
    torch.testing.assert_close(outputs["cls"], cls)
    torch.testing.assert_close(
        outputs["features"].flatten(1, 3).mean(dim=1), hidden[:, int(has_cls) :].mean(dim=1)
    )


@pytest.mark.parametrize("model_type", ["timesformer", "vivit", "videomae", "vjepa2"])
def test_features_stand_where_their_pixels_are(model_type):
    """Changing one patch changes the features: most of all those at its place."""
    torch.manual_seed(0)
    ours = HuggingFaceBackbone(SIZE, model_type, options={**TINY, "num_hidden_layers": 1}).eval()
    clip = torch.rand(1, 3, *SIZE)
    changed = clip.clone()
    changed[:, :, 2:, 16:, :16] += 1.0  # last frames, bottom left
    with torch.no_grad():
        change = (ours(changed)["features"] - ours(clip)["features"]).norm(dim=-1)[0]
    frames = change.shape[0]
    place = torch.nonzero(change == change.max())[0].tolist()
    assert place[1:] == [1, 0]
    assert place[0] >= frames // 2


def test_every_parameter_gets_a_gradient():
    for model_type in ("timesformer", "vivit", "videomae", "vjepa2"):
        ours = HuggingFaceBackbone(SIZE, model_type, options=TINY)
        ours(torch.rand(1, 3, *SIZE))["cls"].square().sum().backward()
        unused = [name for name, p in ours.named_parameters() if p.grad is None]
        assert unused == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "size", "billions", "millions"),
    [
        ("timesformer", (8, 224, 224), 196.7, 121.4),  # arXiv 2102.05095, Table 3
        ("videomae", (16, 224, 224), 180.5, 87.0),  # arXiv 2203.12602, Table 6
    ],
)
def test_published_size_and_cost(model_type, size, billions, millions):
    ours = HuggingFaceBackbone(size, model_type)
    cost = multiply_adds(ours, torch.zeros(1, 3, *size))
    assert cost / 1e9 == pytest.approx(billions, rel=0.01)
    assert parameter_count(ours) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_type": "videomea"}, "not one of timesformer, vivit, videomae, vjepa2"),
        ({"model_type": "videomae", "clip_size": (3, 32, 32)}, "patches of 2 x 16 x 16"),
        ({"model_type": "vivit", "clip_size": (4, 32, 48)}, "square frames"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceBackbone(**{"clip_size": SIZE, "options": TINY, **arguments})


def test_weights_for_another_size(tmp_path):
    config = transformers.AutoConfig.for_model("videomae", **TINY, num_frames=8, image_size=32)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="clips of 8 frames of 32 pixels"):
        HuggingFaceBackbone(SIZE, "videomae", weights=str(tmp_path))


def test_vjepa2_takes_clips_of_another_length_than_its_weights(tmp_path):
    """As its authors test weights for 64 frames on 16: its positions are rotary."""
    torch.manual_seed(0)
    sizes = {"frames_per_clip": 8, "crop_size": 32}
    config = transformers.AutoConfig.for_model("vjepa2", **TINY, **sizes)
    theirs = transformers.AutoModel.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = HuggingFaceBackbone(SIZE, "vjepa2", weights=str(tmp_path)).eval()
    clip = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        frames = ours.normalized(clip).transpose(1, 2)
        expected = theirs(pixel_values_videos=frames).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(ours(clip)["cls"], expected)
    with pytest.raises(ValueError, match="clips of 4 frames of 32 pixels"):
        HuggingFaceBackbone((4, 64, 64), "vjepa2", weights=str(tmp_path))


def test_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vimpac_ext\[hf\]'"):
        HuggingFaceBackbone(SIZE, "videomae")
