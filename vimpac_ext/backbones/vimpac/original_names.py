"""What the authors' code calls the parameters of our modules, and in which order it holds them."""

import re
from collections.abc import Iterable, Sequence

Renames = tuple[tuple[str, str], ...]

# The authors' name and ours; "#" stands for a number. A name that ends in "." (or is empty) is that
# of a module and stands for its tensors.
_BACKBONE: Renames = (
    ("embedding.weight", "token_embedding.weight"),
    ("cls_param", "cls_token"),
    ("positional_embedding.cls_pos_embedding", "position.cls"),
    ("positional_embedding.temporal_pos_embedding", "position.frames"),
    ("positional_embedding.height_pos_embedding", "position.height"),
    ("positional_embedding.width_pos_embedding", "position.width"),
    ("positional_embedding.spatial_pos_embedding", "position.spatial"),
    ("positional_embedding.positional_embedding", "position.joint"),
    ("ln_pre.", "input_norm."),
    ("ln_post.", "output_norm."),
    ("transformer.resblocks.#.mlp.c_fc.", "layers.#.mlp.expand."),
    ("transformer.resblocks.#.mlp.c_proj.", "layers.#.mlp.contract."),
    ("transformer.resblocks.#.ln.", "layers.#.mlp.norm."),
)
_OUTPUT = "layers.#.attention_blocks.#.output."
_NORM = "layers.#.attention_blocks.#.norm."
_POST_LN: Renames = (
    ("transformer.resblocks.#.attention_blocks.#.output.dense.", _OUTPUT),
    ("transformer.resblocks.#.attention_blocks.#.output.LayerNorm.", _NORM),
)
_PRE_LN: Renames = (
    ("transformer.resblocks.#.attention_blocks.#.dense.", _OUTPUT),
    ("transformer.resblocks.#.attention_blocks.#.LayerNorm.", _NORM),
)
_TOKEN_HEAD: Renames = (
    ("transform.0.", "transform."),
    ("transform.2.", "norm."),
    ("bias", "bias"),
)
_LINEAR: Renames = (("mlp.linear_#.", "linears.#."),)
_BATCH_NORM: Renames = (("mlp.bn_#.", "norms.#."),)
_LAYER_NORM: Renames = (("mlp.ln_#.", "norms.#."),)
_CLASSIFIER: Renames = (("", "linear."),)

# The authors' prefix of each component and its possible names.
COMPONENTS: dict[str, tuple[str, Renames]] = {
    "backbone": ("backbone.", _BACKBONE + _POST_LN + _PRE_LN),
    "token_head": ("mlm_head.", _TOKEN_HEAD),
    "projection_head": ("cls_head.", _LINEAR + _BATCH_NORM + _LAYER_NORM),
    "classification_head": ("cls_fc.", _CLASSIFIER),
}
# What the authors' files hold twice, and where the same stands.
TIED_COPIES = {
    "mlm_head.decoder.weight": "backbone.embedding.weight",
    "mlm_head.decoder.bias": "mlm_head.bias",
}

_TENSOR = "(weight|bias|running_mean|running_var|num_batches_tracked)"
QKV = ("query", "key", "value")
ORIGINAL_QKV = re.compile(
    r"transformer\.resblocks\.(\d+)\.attention_blocks\.(\d+)\.attentions\.(\d+)\.attention\."
    rf"({'|'.join(QKV)})\.(weight|bias)"
)
_ORDER = (  # names within a module of the authors' model, in the order in which it holds them
    *("backbone", "cls_param", "embedding", "positional_embedding", "cls_pos_embedding"),
    *("temporal_pos_embedding", "height_pos_embedding", "width_pos_embedding"),
    *("spatial_pos_embedding", "ln_pre", "transformer", "resblocks", "attention_blocks"),
    *("attentions", "attention", *QKV, "output", "dense", "LayerNorm"),
    *("mlm_head", "cls_head", "cls_fc", "mlp", "c_fc", "c_proj", "linear", "bn", "ln", "ln_post"),
    *("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    *("transform", "decoder"),
)
_OUR_QKV = re.compile(r"layers\.(\d+)\.attention_blocks\.(\d+)\.attention\.qkv\.(weight|bias)")


def original_names(
    component: str, keys: Iterable[str], num_patterns: Sequence[int]
) -> dict[str, tuple[str, ...]]:
    """The authors' names of our tensors.

    Args:
        component: "backbone", "token_head", "projection_head" or "classification_head".
        keys: all keys of the component's state dict.
        num_patterns: for each attention block of a layer, how many axes it attends in parallel.

    Returns:
        Our key -> their keys: one, or the queries, keys and values of which ours is the stack.
    """
    keys = list(keys)
    prefix, renames = COMPONENTS[component]
    if component == "backbone":
        renames = _BACKBONE + (_POST_LN if "input_norm.weight" in keys else _PRE_LN)
    elif component == "projection_head":
        has_statistics = any(key.endswith("running_mean") for key in keys)
        renames = _LINEAR + (_BATCH_NORM if has_statistics else _LAYER_NORM)
    reverse = tuple((ours, theirs) for theirs, ours in renames)
    names: dict[str, tuple[str, ...]] = {}
    for key in keys:
        if component == "backbone" and (match := _OUR_QKV.fullmatch(key)):
            layer, block, kind = match.groups()
            stem = f"{prefix}transformer.resblocks.{layer}.attention_blocks.{block}.attentions"
            names[key] = tuple(
                f"{stem}.{pattern}.attention.{which}.{kind}"
                for pattern in range(num_patterns[int(block)])
                for which in QKV
            )
            continue
        renamed = rename(key, reverse)
        assert renamed is not None, f"{key} is not a weight of our {component}"
        names[key] = (prefix + renamed,)
    return names


def original_position(key: str) -> tuple[tuple[int, int], ...]:
    """Sorts the authors' keys into the order of their model, which numbers optimizer states."""
    position = []
    for part in key.removeprefix("module.").split("."):
        name, _, number = part.rpartition("_") if part[-1].isdigit() else (part, "", "-1")
        position.append((int(number), _ORDER.index(name) if name else -1))
    return tuple(position)


def patterns_of_original(keys: Iterable[str]) -> tuple[int, ...]:
    """How many axes each attention block of a layer attends in parallel.

    Args:
        keys: of a state dict of the authors' code.

    Raises:
        ValueError: if there is no attention, or layers differ.
    """
    found: dict[int, dict[int, set[int]]] = {}
    for key in keys:
        name = key.removeprefix("module.").removeprefix(COMPONENTS["backbone"][0])
        if match := ORIGINAL_QKV.fullmatch(name):
            layer, block, pattern = map(int, match.groups()[:3])
            found.setdefault(layer, {}).setdefault(block, set()).add(pattern)
    layers = {
        tuple(len(blocks[block]) for block in sorted(blocks))
        for blocks in (found[layer] for layer in sorted(found))
    }
    if len(layers) != 1:
        raise ValueError(
            f"its layers have attention blocks of {sorted(layers)} axes"
            if layers
            else "it has no attention blocks"
        )
    return layers.pop()


def component_of(key: str) -> tuple[str, str, Renames]:
    """Component of an original key, the key within it, and the component's names."""
    for component, (prefix, renames) in COMPONENTS.items():
        if key.startswith(prefix):
            return component, key.removeprefix(prefix), renames
    return "backbone", key, COMPONENTS["backbone"][1]  # a backbone alone has no prefix


def rename(key: str, renames: Iterable[tuple[str, str]]) -> str | None:
    """A key's new name; None if it is none of the old ones."""
    for old, new in renames:
        is_module = old == "" or old.endswith(".")
        pattern = re.escape(old).replace(r"\#", r"(\d+)") + (_TENSOR if is_module else "")
        match = re.fullmatch(pattern, key)
        if match:
            renamed = new + ("#" if is_module else "")
            for group in match.groups():
                renamed = renamed.replace("#", group, 1)
            return renamed
    return None
