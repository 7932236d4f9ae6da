"""Which parts of our models the authors' code has, and what it calls their parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac.original_names import original_names
from vimpac_ext.heads import ClassificationHead, MaskedTokenHead, ProjectionHead

_COMPONENTS: tuple[tuple[str, type[nn.Module]], ...] = (
    ("backbone", VimpacTransformer),
    ("token_head", MaskedTokenHead),
    ("projection_head", ProjectionHead),
    ("classification_head", ClassificationHead),
)
# Parameters whose name in the authors' model contains one of these have no weight decay. Their
# fine-tuning has "bias" in place of ".bias", which is the same for all names that there are. What
# one may miss: the token head's LayerNorm and all BatchNorms are decayed, as are tables and [CLS].
_UNDECAYED = (
    ".bias",
    "LayerNorm.weight",
    ".ln.weight",
    "ln_1.weight",
    "ln_2.weight",
    "ln_3.weight",
    "ln_pre.weight",
    "ln_post.weight",
)


def is_undecayed(original_name: str) -> bool:
    """Whether the authors' code leaves a parameter (by its name there) without weight decay."""
    return any(pattern in original_name for pattern in _UNDECAYED)


def parts_of(model: Any) -> list[tuple[str, str, nn.Module]]:
    """Component, prefix of its parameters, and module, of each part that the authors' code has.

    Args:
        model: has ``backbone`` and ``heads``, as the tasks and `VimpacModel` have.
    """
    modules = {"backbone.": getattr(model, "backbone", None)}
    modules.update({f"heads.{name}.": head for name, head in getattr(model, "heads", {}).items()})
    return [
        (component, prefix, module)
        for prefix, module in modules.items()
        for component, kind in _COMPONENTS
        if isinstance(module, kind)
    ]


def original_state_names(
    model: Any, num_patterns: Sequence[int] | None = None
) -> dict[str, tuple[str, ...]]:
    """The authors' names of a model's parameters and buffers.

    Args:
        model: as for `parts_of`.
        num_patterns: for each attention block of a layer, how many axes it attends in parallel;
            None = name the projections of the first axis only.

    Returns:
        Our name -> their names (several where ours is a stack of theirs), for what they have.
    """
    names = {}
    for component, prefix, module in parts_of(model):
        if isinstance(module, VimpacTransformer) and num_patterns is None:
            first_layer: Any = module.layers[0]
            num_patterns = [1] * len(first_layer.attention_blocks)
        found = original_names(component, module.state_dict(), num_patterns or ())
        names.update({prefix + key: theirs for key, theirs in found.items()})
    return names


def merge_components(
    model: Any, components: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Puts tensors of components under their names in a model.

    Args:
        model: as for `parts_of`.
        components: as `convert_original_state_dict` returns them.
    """
    prefixes = {component: prefix for component, prefix, _ in parts_of(model)}
    return {
        prefixes[component] + key: tensor
        for component, state in components.items()
        for key, tensor in state.items()
    }
