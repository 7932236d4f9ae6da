"""What backbones that read frames share: normalisation, checks of the clip, pre-trained weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.files import local_path

# Of the models trained by PySlowFast and pytorchvideo, and of ImageNet models.
KINETICS_MEAN, KINETICS_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PixelBackbone(nn.Module):
    """Base of backbones over frames; the model that a subclass wraps stands in ``model``.

    Attributes:
        input_kind: "pixels".
        embed_dim: D, width of "cls".
        feature_dim: width of "features", D unless a subclass sets another.
        clip_size: frames, height and width that it was built for.
        classifier: the linear classifier that came with the wrapped model's weights, as "weight"
            (classes, D) and "bias" (classes), or None. It is no parameter of the backbone: a
            classification head may start from it (`ClassificationHead`, ``pretrained=True``).

    Args:
        clip_size: frames, height and width in pixels.
        mean: subtracted from each channel of frames in [0, 1].
        std: divides each channel then.
    """

    input_kind = "pixels"
    embed_dim: int
    _feature_dim: int | None = None
    model: Any  # its methods differ from library to library
    mean: Tensor
    std: Tensor

    def __init__(
        self, clip_size: Sequence[int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"{name} needs 3 values (R, G, B), found {list(values)}")
        self.clip_size = (int(clip_size[0]), int(clip_size[1]), int(clip_size[2]))
        self.classifier: dict[str, Tensor] | None = None
        shape = (1, 3, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(list(mean)).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(shape), persistent=False)

    @property
    def feature_dim(self) -> int:
        """Width of the feature map."""
        return self.embed_dim if self._feature_dim is None else self._feature_dim

    def normalized(self, clip: Tensor) -> Tensor:
        """Frames as the wrapped model expects them.

        Args:
            clip: float (B, 3, T, H, W) in [0, 1].

        Raises:
            ValueError: the clip has another number of axes or channels.
        """
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise ValueError(
                f"{type(self).__name__} takes clips of shape (B, 3, T, H, W), found "
                f"{tuple(clip.shape)}"
            )
        return (clip - self.mean) / self.std

    def require_fit(self, advice: str, clip_size: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Tries the model on a clip without computing anything.

        Args:
            advice: what to change, appended to the message.
            clip_size: frames, height and width; None = what it was built for.

        Returns:
            What it gives for one clip, without values (on the device "meta").

        Raises:
            ValueError: the model cannot take such a clip.
        """
        frames, height, width = clip_size or self.clip_size
        clip = torch.empty(1, 3, frames, height, width, device="meta")
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        shadows = {name: tensor.to("meta") for name, tensor in tensors.items()}
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                outputs: dict[str, Tensor] = torch.func.functional_call(self, shadows, (clip,))
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise ValueError(
                f"{type(self).__name__} cannot take clips of {frames} frames of {height} x "
                f"{width} pixels ({error}). {advice}"
            ) from error
        finally:
            self.train(was_training)
        return outputs


def detach_classifier(owner: nn.Module, name: str) -> nn.Linear:
    """Takes a wrapped model's last linear layer out; features come out in its place.

    Args:
        owner: the module that holds it.
        name: of the attribute.

    Returns:
        The layer.
    """
    linear = getattr(owner, name)
    assert isinstance(linear, nn.Linear)
    setattr(owner, name, nn.Identity())
    return linear


def read_state(source: str, unwrap: Sequence[str] = ("model_state", "state_dict")) -> dict:
    """Reads a state dict from a file or URL without executing anything from it.

    Args:
        source: ``.safetensors`` or a torch file, by path or URL (downloaded once, then cached).
        unwrap: keys under which training frameworks store the state dict in their checkpoints.

    Raises:
        ValueError: not a state dict, or it holds more than tensors and plain values.
        FileNotFoundError: there is no such file.
    """
    path = local_path(source)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets in a strange file
        raise ValueError(f"{source}: not a file of plain weights ({error})") from error
    for key in unwrap:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{source}: expected a state dict (names -> tensors)")
    return dict(content)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads a whole model; nothing may be missing, left over or of another shape.

    Raises:
        ValueError: naming the first keys that do not fit.
    """
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in state]
    problems += [f"unknown {name}" for name in state if name not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, needed {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(dict(state))


def refuse_sizes(options: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Refuses options that the size of the clips decides; they would be overwritten in silence.

    Raises:
        ValueError: naming them.
    """
    given = [name for name in sizes if name in options]
    if given:
        raise ValueError(
            f"option {', '.join(given)}: the clips decide it; leave it out of BACKBONE.options and "
            "set DATA.NUM_FRAMES and the crop sizes"
        )


def classifier_of(linear: nn.Linear) -> dict[str, Tensor]:
    """A linear layer's values, for `PixelBackbone.classifier`."""
    return {"weight": linear.weight.detach().clone(), "bias": linear.bias.detach().clone()}
