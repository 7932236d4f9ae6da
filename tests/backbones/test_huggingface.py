"""Hugging Face video models: the library's own numbers, and published sizes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from vimpac_ext import compat

transformers = pytest.importorskip("transformers")
compat.install()

from vimpac_ext.backbones import HuggingFaceBackbone  # noqa: E402  (after the check)
from vimpac_ext.evaluation import multiply_adds, parameter_count  # noqa: E402
from vimpac_ext.heads import ClassificationHead  # noqa: E402

SIZE = (4, 32, 32)
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# The width of the MLP, 64, is named by each library model in its way.
MLP = dict.fromkeys(("timesformer", "vivit", "videomae"), {"intermediate_size": 64})
MLP["vjepa2"] = {"mlp_ratio": 64 / 48}


# image_mean and image_std that are published with facebook/timesformer-base-finetuned-k400,
# MCG-NJU/videomae-base and facebook/vjepa2-vitl-fpc64-256; ViViT's frames are from -1 to 1.
CHANNELS = {
    "timesformer": ([0.45], [0.225]),
    "vivit": ([0.5], [0.5]),
    "videomae": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "vjepa2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


def tiny(model_type, **more):
    return {**TINY, **MLP[model_type], **more}


@pytest.mark.parametrize("model_type", ["timesformer", "vivit", "videomae", "vjepa2"])
def test_equals_the_library(model_type, tmp_path):
    torch.manual_seed(0)
    sizes = ("frames_per_clip", "crop_size") if model_type == "vjepa2" else (
        "num_frames", "image_size")  # fmt: skip
    sizes = dict(zip(sizes, SIZE, strict=False))
    config = transformers.AutoConfig.for_model(model_type, **tiny(model_type), **sizes)
    theirs = transformers.AutoModel.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = HuggingFaceBackbone(SIZE, model_type, weights=str(tmp_path)).eval()
    clip = torch.rand(2, 3, *SIZE)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in CHANNELS[model_type])
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
    ours = HuggingFaceBackbone(
        SIZE, model_type, options=tiny(model_type, num_hidden_layers=1)
    ).eval()
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
        ours = HuggingFaceBackbone(SIZE, model_type, options=tiny(model_type))
        ours(torch.rand(1, 3, *SIZE))["cls"].square().sum().backward()
        unused = [name for name, p in ours.named_parameters() if p.grad is None]
        assert unused == []


def classifier(model_type, folder, labels=5, **options):
    """A fine-tuned model of the library with random weights, saved; and what it is called with."""
    torch.manual_seed(0)
    sizes = ("frames_per_clip", "crop_size") if model_type == "vjepa2" else (
        "num_frames", "image_size")  # fmt: skip
    sizes = dict(zip(sizes, SIZE, strict=False))
    options = tiny(model_type, **sizes, num_labels=labels, **options)
    config = transformers.AutoConfig.for_model(model_type, **options)
    model = transformers.AutoModelForVideoClassification.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model, "pixel_values_videos" if model_type == "vjepa2" else "pixel_values"


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("timesformer", {}),
        ("vivit", {}),
        ("videomae", {"use_mean_pooling": True}),
        ("videomae", {"use_mean_pooling": False}),
        ("vjepa2", {"num_pooler_layers": 1}),
    ],
)
def test_a_fine_tuned_classifier_gives_the_librarys_logits(model_type, options, tmp_path):
    theirs, name = classifier(model_type, tmp_path, **options)
    ours = HuggingFaceBackbone(SIZE, model_type, weights=str(tmp_path)).eval()
    head = ClassificationHead(ours.embed_dim, 5, ours.classifier, pretrained=True)
    clip = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        expected = theirs(**{name: ours.normalized(clip).transpose(1, 2)}).logits
        logits = head(ours(clip))["class_logits"]
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected)
    message = "classifier of 5 classes, but MODEL.NUM_CLASSES is 3: set pretrained False"
    with pytest.raises(ValueError, match=message):
        ClassificationHead(ours.embed_dim, 3, ours.classifier, pretrained=True)


def test_channels_may_be_normalised_otherwise():
    ours = HuggingFaceBackbone(SIZE, "timesformer", options=TINY, mean=[0.1, 0.2, 0.3])
    assert ours.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert ours.std.flatten().tolist() == pytest.approx([0.225] * 3)


def test_weights_without_a_classifier_say_so(tmp_path):
    config = transformers.AutoConfig.for_model("videomae", **TINY, num_frames=4, image_size=32)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    backbone = HuggingFaceBackbone(SIZE, "videomae", weights=str(tmp_path))
    with pytest.raises(ValueError, match="brought no classifier"):
        ClassificationHead(backbone.embed_dim, 5, backbone.classifier, pretrained=True)


def test_weights_with_parts_missing_are_refused(tmp_path):
    """The library fills gaps with random numbers and only warns."""
    classifier("videomae", tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["videomae.encoder.layer.1.output.dense.weight"]
    save_file(state, path, {"format": "pt"})
    message = "lacks 1 weights of a videomae, such as videomae.encoder.layer.1.output.dense.weight"
    with pytest.raises(ValueError, match=message):
        HuggingFaceBackbone(SIZE, "videomae", weights=str(tmp_path))


# Encoders of the sizes L, H and g, as V-JEPA 2's paper (arXiv 2506.09985) and code build them.
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
GIANT = {
    "hidden_size": 1408,
    "num_hidden_layers": 40,
    "num_attention_heads": 22,
    "mlp_ratio": 48 / 11,
}


@pytest.mark.parametrize(
    ("options", "millions"), [(LARGE, 300), (HUGE, 600), (GIANT, 1000)], ids=["L", "H", "g"]
)
def test_vjepa2_has_its_published_parameters(options, millions):
    """The models of V-JEPA 2's README (github.com/facebookresearch/vjepa2), to one digit."""
    with torch.device("meta"):
        ours = HuggingFaceBackbone((16, 256, 256), "vjepa2", options=options)
    digit = 10 ** (len(str(millions)) - 1)
    assert round(parameter_count(ours) / 1e6 / digit) * digit == millions


@pytest.mark.parametrize("model_type", ["timesformer", "vivit", "videomae", "vjepa2"])
def test_cost_is_the_one_by_hand(model_type):
    """A layer of width D over N tokens: 4 N D^2 + 2 N M D for an MLP of M, and 2 N^2 D."""
    ours = HuggingFaceBackbone(SIZE, model_type, options=tiny(model_type))
    width, mlp = 48, 64
    frames, rows, columns = (size // part for size, part in zip(SIZE, ours.patch, strict=True))
    tokens = frames * rows * columns
    patches = tokens * 3 * ours.patch[0] * ours.patch[1] * ours.patch[2] * width
    num_cls = int(model_type in ("timesformer", "vivit"))
    rest = tokens + num_cls  # of the projections behind the attention and of the MLP
    if model_type == "timesformer":
        # Time: a row of all frames at each place, a projection and another; then each frame with
        # a copy of [CLS].
        within = frames * (rows * columns + 1)
        time = 5 * tokens * width**2 + 2 * tokens * frames * width
        space = 4 * within * width**2 + 2 * within * (rows * columns + 1) * width
        layer = time + space + 2 * rest * mlp * width
        norms = tokens + within + rest
    else:
        layer = 4 * rest * width**2 + 2 * rest * mlp * width + 2 * rest**2 * width
        norms = 2 * rest
    last = 0 if model_type == "videomae" else rest
    expected = patches + 2 * layer + 5 * width * (2 * norms + last)  # fvcore: 5 for a value
    assert multiply_adds(ours, torch.zeros(1, 3, *SIZE)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "options", "size", "billions", "millions"),
    [
        ("timesformer", {}, (8, 224, 224), 196.7, 121.4),  # arXiv 2102.05095, Table 3
        ("videomae", {}, (16, 224, 224), 180.5, 87.0),  # arXiv 2203.12602, Table 6
        # ViViT-B/16x2, unfactorised (Model 1): arXiv 2103.15691, Table 2, with its classifier.
        ("vivit", {}, (32, 224, 224), 455.2, 88.9),
        # V-JEPA 2 publishes no cost; its ViT-L is VideoMAE's (Table 6) but for the positions.
        ("vjepa2", LARGE, (16, 224, 224), 597, 305),
    ],
)
def test_published_size_and_cost(model_type, options, size, billions, millions):
    ours = HuggingFaceBackbone(size, model_type, options=options)
    cost = multiply_adds(ours, torch.zeros(1, 3, *size))
    assert cost / 1e9 == pytest.approx(billions, rel=0.01)
    assert parameter_count(ours) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_type": "videomea"}, "not one of timesformer, vivit, videomae, vjepa2"),
        ({"model_type": "videomae", "clip_size": (3, 32, 32)}, "patches of 2 x 16 x 16"),
        ({"model_type": "vivit", "clip_size": (4, 32, 48)}, "square frames, found 32 x 48"),
        ({"model_type": "vivit", "options": {"hiden_size": 8}}, "has no option 'hiden_size'"),
        ({"model_type": "vivit", "weights": "a/b"}, "a/b has options of its own: set BACKBONE.op"),
        ({"model_type": "vivit", "options": {"num_frames": 8}}, "option num_frames: the clips"),
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


def test_names_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder '.*nowhere'. Give one that save_pretra"):
        HuggingFaceBackbone(SIZE, "videomae", weights=str(tmp_path / "nowhere"))
    config = transformers.AutoConfig.for_model("videomae", **TINY, num_frames=4, image_size=32)
    config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"BACKBONE.weights .*model\.safetensors"):
        HuggingFaceBackbone(SIZE, "videomae", weights=str(tmp_path))


def test_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vimpac_ext\[hf\]'"):
        HuggingFaceBackbone(SIZE, "videomae")
