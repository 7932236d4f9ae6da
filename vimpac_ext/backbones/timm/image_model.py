"""Building timm's image models for frames of a given size."""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vimpac_ext import compat
from vimpac_ext.backbones.pixels import load_weights, read_state


def create_image_model(
    model: str, side: int | None, weights: str, pretrained: bool, options: dict[str, Any] | None
) -> Any:
    """Builds a timm model with its classifier.

    Args:
        model: timm's name, e.g. "vit_base_patch16_224".
        side: height and width of the frames in pixels; None = the model's own size.
        weights: file or URL of a state dict of the whole model, for any number of classes; "" =
            none.
        pretrained: take timm's own weights, downloaded once.
        options: further keyword arguments of `timm.create_model`.

    Raises:
        ValueError: timm has no such model, it does not take the options, or the weights do not fit.
        OSError: timm's weights cannot be had.
    """
    compat.install()
    import timm

    if not timm.is_model(model):
        similar = difflib.get_close_matches(model, timm.list_models(), 5)
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        raise ValueError(f"timm has no model {model!r}{hint} (see timm.list_models())")
    arguments = dict(options or {})
    fixed_size = timm.get_pretrained_cfg_value(model, "fixed_input_size")
    if side and fixed_size and "img_size" not in arguments:
        arguments["img_size"] = side
    try:
        network = timm.create_model(model, pretrained=pretrained and not weights, **arguments)
    except TypeError as error:  # how timm says that there is no such option
        if not options:
            raise
        raise ValueError(f"timm's {model} does not take the options {options} ({error})") from error
    except OSError as error:
        raise OSError(
            f"cannot get timm's weights of {model} ({error}). Where there is no network, give "
            "BACKBONE.weights a file of them"
        ) from error
    if side:
        _require_whole_patches(network, side)
    if weights:
        state = read_state(weights)
        _take_classes_of(network, state)
        load_weights(network, _resampled(state, network), weights)
    return network


def _take_classes_of(network: Any, state: dict[str, Tensor]) -> None:
    """Gives the model as many classes as the weights have."""
    name = network.default_cfg.get("classifier")
    weight = state.get(f"{name}.weight")
    if weight is not None and network.num_classes != len(weight):
        network.reset_classifier(len(weight))


def _resampled(state: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Fits a vision transformer's position table to the model's frame size, as timm does."""
    table = getattr(network, "pos_embed", None)
    if table is None or "pos_embed" not in state or state["pos_embed"].shape == table.shape:
        return state
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    resampled = resample_abs_pos_embed(
        state["pos_embed"], new_size=network.patch_embed.grid_size, num_prefix_tokens=prefix
    )
    return {**state, "pos_embed": resampled}


def layer_numbers(network: Any) -> dict[str, int]:
    """Layers as timm numbers them: parameter name -> 0 (stem), 1, ... and last the classifier's.

    They differ from those of our own backbones in that a vision transformer's last norm belongs to
    its last layer. Empty for a network whose layers timm does not number.
    """
    if not hasattr(network, "group_matcher"):
        return {}
    from timm.models import group_parameters

    matcher = network.group_matcher(coarse=False)
    return dict(group_parameters(network, matcher, reverse=True))


def channel_statistics(
    network: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """The channels' mean and deviation that the image model was trained with, unless given."""
    return mean or network.pretrained_cfg["mean"], std or network.pretrained_cfg["std"]


def square_side(clip_size: Sequence[int]) -> int:
    """Side of the frames in pixels.

    Raises:
        ValueError: if they are not square.
    """
    if clip_size[1] != clip_size[2]:
        raise ValueError(f"timm models take square frames, found {clip_size[1]} x {clip_size[2]}")
    return clip_size[1]


def _require_whole_patches(network: Any, side: int) -> None:
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    if patch is not None and (side % patch[0] or side % patch[1]):
        raise ValueError(
            f"frames of {side} x {side} pixels cannot be cut into patches of {patch[0]} x "
            f"{patch[1]}: set the crop sizes to a multiple"
        )
