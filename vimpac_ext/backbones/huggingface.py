"""Video models of Hugging Face transformers: TimeSformer, ViViT, VideoMAE and V-JEPA 2."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vimpac_ext import compat
from vimpac_ext.backbones.layer_numbers import layer_number
from vimpac_ext.backbones.pixels import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINETICS_MEAN,
    KINETICS_STD,
    PixelBackbone,
    classifier_of,
    refuse_sizes,
)
from vimpac_ext.registries import BACKBONES

# Model type -> its names for the number of frames and for the side of a frame.
MODEL_TYPES = {
    "timesformer": ("num_frames", "image_size"),
    "vivit": ("num_frames", "image_size"),
    "videomae": ("num_frames", "image_size"),
    "vjepa2": ("frames_per_clip", "crop_size"),
}
# Mean and deviation of the channels that the published weights of a type were trained with.
STATISTICS = {
    "timesformer": (KINETICS_MEAN, KINETICS_STD),
    "vivit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # -1 to 1
    "videomae": (IMAGENET_MEAN, IMAGENET_STD),
    "vjepa2": (IMAGENET_MEAN, IMAGENET_STD),
}
_LAYERS = ("model.encoder.layer.", "model.layers.", "model.layer.")
_HAS_CLS = ("timesformer", "vivit")  # the others average over all tokens
_CLASSIFIER = "ForVideoClassification"
_UNUSED = ("pooler.", "predictor.")  # parts of models without a classifier


@BACKBONES.register()
class HuggingFaceBackbone(PixelBackbone):
    """A video transformer of the transformers library (the ``hf`` extra).

    Args:
        clip_size: frames, height and width in pixels.
        model_type: one of `MODEL_TYPES`.
        weights: folder written by ``save_pretrained``, or a name on the Hugging Face hub; "" =
            random weights. Only safetensors files are read. Fine-tuned classifiers (the library's
            ``...ForVideoClassification``) bring their classifier along; see `ClassificationHead`,
            ``pretrained=True``.
        options: of the model's configuration, e.g. {hidden_size: 384}; not with ``weights``.
        mean: of the channels; None = of the published weights of this type. Those of others may be
            for another one: see ``image_mean`` in their preprocessor_config.json.
        std: of the channels; None = the same.

    Raises:
        ValueError: an unknown type or option, weights of another type or size or with parts
            missing, or a size that the model cannot take.
        ImportError: transformers is not installed.
        OSError: the weights cannot be read or downloaded.
    """

    def __init__(
        self,
        clip_size: Sequence[int],
        model_type: str,
        weights: str = "",
        options: dict[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type={model_type!r} is not one of {', '.join(MODEL_TYPES)}")
        super().__init__(
            clip_size, mean or STATISTICS[model_type][0], std or STATISTICS[model_type][1]
        )
        if importlib.util.find_spec("transformers") is None:
            raise ImportError(
                "HuggingFaceBackbone needs transformers: pip install 'vimpac_ext[hf]'"
            )
        if weights and options:
            raise ValueError(
                f"{weights} has options of its own: set BACKBONE.options {{}} (found "
                f"{', '.join(options)})"
            )
        compat.install()
        self.model_type = model_type
        if self.clip_size[1] != self.clip_size[2]:
            sides = " x ".join(map(str, self.clip_size[1:]))
            raise ValueError(f"{model_type} takes square frames, found {sides}")
        config, model = self._load(weights) if weights else self._initialise(options or {})
        # What the checkpoint's own classifier reads, so that the two fit together.
        self.pooler: nn.Module | None = None
        self.cls_norm: nn.Module | None = None
        self._cls_is_first = model_type in _HAS_CLS
        if isinstance(getattr(model, "classifier", None), nn.Linear):
            self.classifier = classifier_of(model.classifier)
            self.pooler = getattr(model, "pooler", None)  # V-JEPA 2's attention
            self.cls_norm = getattr(model, "fc_norm", None)  # VideoMAE's, of the mean
            if model_type == "videomae" and self.cls_norm is None:
                self._cls_is_first = True
            model = model.base_model
        # Parts that a representation does not need would be parameters without a gradient.
        if model_type == "vivit":
            model.pooler = None
        self.model = model.encoder if model_type == "vjepa2" else model
        tubelet = getattr(config, "tubelet_size", 1)
        if not isinstance(tubelet, (list, tuple)):  # only ViViT's has all three sides
            tubelet = (tubelet, config.patch_size, config.patch_size)
        self.patch = tuple(tubelet)  # frames, height and width of a token
        self._require_whole_patches()
        self.embed_dim = config.hidden_size
        self.num_layers = config.num_hidden_layers
        self.require_fit("Set DATA.NUM_FRAMES and the crop sizes to what the model takes")

    @property
    def layers(self) -> nn.ModuleList:
        """The wrapped model's layers, in the order in which they are called."""
        starts = [name.removesuffix(".") for name in _LAYERS]
        found = (module for name, module in self.named_modules() if name in starts)
        layers = next(found)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def _load(self, weights: str) -> tuple[Any, Any]:
        """Configuration and model of a folder or hub name; with its classifier if it has one."""
        from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification

        _require_folder(weights)
        with _named(weights):
            config = AutoConfig.from_pretrained(weights)
        if config.model_type != self.model_type:
            raise ValueError(f"{weights} is a {config.model_type}, not a {self.model_type}")
        frames_key, side_key = MODEL_TYPES[self.model_type]
        frames, height, _ = self.clip_size
        if self.model_type == "vjepa2":  # rotary positions: weights fit clips of any length
            config.frames_per_clip = frames
        found = (getattr(config, frames_key), getattr(config, side_key))
        if found != (frames, height):
            raise ValueError(
                f"{weights} is for clips of {found[0]} frames of {found[1]} pixels: set "
                f"DATA.NUM_FRAMES and the crop sizes to these (found {frames} and {height})"
            )
        classifies = any(name.endswith(_CLASSIFIER) for name in config.architectures or ())
        kind = AutoModelForVideoClassification if classifies else AutoModel
        with _named(weights):
            model, report = kind.from_pretrained(
                weights, config=config, use_safetensors=True, output_loading_info=True
            )
        unused = () if classifies else _UNUSED  # transformers makes up what a file lacks
        missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
        if missing:
            raise ValueError(
                f"{weights} lacks {len(missing)} weights of a {self.model_type}, such as "
                f"{', '.join(missing[:3])}"
            )
        return config, model

    def _initialise(self, options: dict[str, Any]) -> tuple[Any, Any]:
        """Configuration and model with random weights."""
        from transformers import AutoConfig, AutoModel, PretrainedConfig

        known = AutoConfig.for_model(self.model_type).to_dict()
        for name in options:  # the library takes any name in silence
            if name not in known and name != "attn_implementation":
                own = sorted(known.keys() - PretrainedConfig().to_dict().keys())
                raise ValueError(f"{self.model_type} has no option {name!r}; its own: {own}")
        frames_key, side_key = MODEL_TYPES[self.model_type]
        sizes = {frames_key: self.clip_size[0], side_key: self.clip_size[1]}
        refuse_sizes(options, sizes)
        config = AutoConfig.for_model(self.model_type, **options, **sizes)
        return config, AutoModel.from_config(config)

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, 0 (embedding) to ``num_layers`` + 1 (see `layer_number`)."""
        return layer_number(name, ("model.embeddings.",), _LAYERS, self.num_layers)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        """Encodes clips.

        Args:
            clip: float (B, 3, T, H, W) in [0, 1].

        Returns:
            "cls" (B, D) and "features" (B, t, h, w, D). "cls" is what the classifier of the weights
            reads where they have one, else the [CLS] token or the mean of all tokens.
        """
        frames = self.normalized(clip).transpose(1, 2)  # (B, T, 3, H, W)
        name = "pixel_values_videos" if self.model_type == "vjepa2" else "pixel_values"
        x = self.model(**{name: frames}).last_hidden_state
        tokens = x[:, 1:] if self.model_type in _HAS_CLS else x
        return {"cls": self._cls(x), "features": self._grid(tokens)}

    def _cls(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        if self.pooler is not None:
            pooled: Tensor = self.pooler(x)
            return pooled
        if self._cls_is_first:
            return x[:, 0]
        mean = x.mean(dim=1)
        return mean if self.cls_norm is None else self.cls_norm(mean)

    def _grid(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, t, h, w, D)."""
        depth, height, width = (
            size // part for size, part in zip(self.clip_size, self.patch, strict=True)
        )
        if self.model_type == "timesformer":  # its tokens run over time fastest
            return tokens.unflatten(1, (height, width, depth)).permute(0, 3, 1, 2, 4)
        return tokens.unflatten(1, (depth, height, width))

    def _require_whole_patches(self) -> None:
        if any(size % part for size, part in zip(self.clip_size, self.patch, strict=True)):
            shape = " x ".join(map(str, self.clip_size))
            patch = " x ".join(map(str, self.patch))
            raise ValueError(
                f"a {self.model_type} cuts clips into patches of {patch} (frames x height x "
                f"width), which do not fit {shape}: set DATA.NUM_FRAMES and the crop sizes to "
                "multiples"
            )


def _require_folder(weights: str) -> None:
    """Refuses a path that is no folder; the library would take it for a bad name on the hub."""
    is_name = weights.count("/") == 1 and not weights.startswith(("/", ".", "~"))
    if not is_name and not Path(weights).is_dir():
        raise FileNotFoundError(
            f"BACKBONE.weights: no folder {weights!r}. Give one that save_pretrained wrote, or a "
            "name on the hub such as MCG-NJU/videomae-base"
        )


@contextmanager
def _named(weights: str) -> Iterator[None]:
    """Says which weights could not be had; the library's own messages do not always."""
    try:
        yield
    except OSError as error:
        advice = "save_pretrained writes such a folder"
        if not Path(weights).is_dir():
            advice = (
                f"without a network, give the folder that `hf download {weights} --local-dir "
                "FOLDER` fills elsewhere"
            )
        raise OSError(f"BACKBONE.weights {weights}: {error}\n{advice}") from error
