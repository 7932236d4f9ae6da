"""Names and shapes of weights: the authors' state dicts <-> ours, position tables <-> grids.

The authors keep query, key and value of every axis apart; ours stand one under the other in one
matrix, so converting is more than renaming. Numerically nothing changes.
"""

import re
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_ext.backbones.vimpac.axis_attention import parse_layout
from vimpac_ext.backbones.vimpac.embedding import position_table_rows
from vimpac_ext.structures import TokenGrid

StateDict = dict[str, Tensor]
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
_COMPONENTS: dict[str, tuple[str, Renames]] = {
    "backbone": ("backbone.", _BACKBONE + _POST_LN + _PRE_LN),
    "token_head": ("mlm_head.", _TOKEN_HEAD),
    "projection_head": ("cls_head.", _LINEAR + _BATCH_NORM + _LAYER_NORM),
    "classification_head": ("cls_fc.", _CLASSIFIER),
}
_TIED = "mlm_head.decoder."  # the token embedding and the bias of the token head, once more

_TENSOR = "(weight|bias|running_mean|running_var|num_batches_tracked)"
_QKV = ("query", "key", "value")
_ORIGINAL_QKV = re.compile(
    r"transformer\.resblocks\.(\d+)\.attention_blocks\.(\d+)\.attentions\.(\d+)\.attention\."
    rf"({'|'.join(_QKV)})\.(weight|bias)"
)
_OUR_QKV = re.compile(r"layers\.(\d+)\.attention_blocks\.(\d+)\.attention\.qkv\.(weight|bias)")


def convert_original_state_dict(state: Mapping[str, Tensor]) -> dict[str, StateDict]:
    """Turns a state dict of the authors' code into state dicts of our modules.

    Args:
        state: a backbone alone, a pre-training model (keys ``backbone.*``, ``mlm_head.*``,
            ``cls_head.*``) or a fine-tuned one (``backbone.*``, ``cls_fc.*``), with or without a
            leading ``module.``.

    Returns:
        For each component that is there ("backbone", "token_head", "projection_head",
        "classification_head") what its `load_state_dict` takes.

    Raises:
        ValueError: if a key does not belong to such a model.
    """
    converted: dict[str, StateDict] = {}
    qkv: dict[str, dict[tuple[int, int], Tensor]] = {}
    for original_key, tensor in state.items():
        key = original_key.removeprefix("module.")
        if key.startswith(_TIED):
            continue
        component, name, renames = _component(key)
        if component == "backbone" and (match := _ORIGINAL_QKV.fullmatch(name)):
            layer, block, axis, which, kind = match.groups()
            ours = f"layers.{layer}.attention_blocks.{block}.attention.qkv.{kind}"
            qkv.setdefault(ours, {})[int(axis), _QKV.index(which)] = tensor
            continue
        renamed = _rename(name, renames)
        if renamed is None:
            raise ValueError(f"{original_key} is not a weight of the original VIMPAC model")
        converted.setdefault(component, {})[renamed] = tensor
    for ours, parts in qkv.items():
        converted.setdefault("backbone", {})[ours] = torch.cat(
            [parts[place] for place in sorted(parts)]
        )
    return converted


def to_original_state_dict(components: Mapping[str, StateDict], layout: str) -> StateDict:
    """The inverse of `convert_original_state_dict`.

    Args:
        components: as returned there.
        layout: the backbone's layout string.

    Returns:
        State dict with the authors' keys, prefixed by component, tied weights under both names.

    Raises:
        ValueError: if the layout has joined axes, which the authors' code lacks.
    """
    if any(len(pattern) > 1 for block in parse_layout(layout) for pattern in block):
        raise ValueError(
            f"a backbone with layout={layout!r} cannot be written for the authors' code: it "
            "attends along single axes only"
        )
    backbone = components["backbone"]
    original: StateDict = {}
    for component, state in components.items():
        prefix, renames = _COMPONENTS[component]
        if component == "backbone":
            renames = _BACKBONE + (_POST_LN if "input_norm.weight" in backbone else _PRE_LN)
        elif component == "projection_head":
            has_statistics = any(key.endswith("running_mean") for key in state)
            renames = _LINEAR + (_BATCH_NORM if has_statistics else _LAYER_NORM)
        reverse = tuple((ours, theirs) for theirs, ours in renames)
        for key, tensor in state.items():
            if component == "backbone" and (match := _OUR_QKV.fullmatch(key)):
                original.update(_split_qkv(prefix, match, tensor, layout))
                continue
            renamed = _rename(key, reverse)
            assert renamed is not None, f"{key} is not a weight of our {component}"
            original[prefix + renamed] = tensor
    if "token_head" in components:
        original[f"{_TIED}weight"] = backbone["token_embedding.weight"]
        original[f"{_TIED}bias"] = components["token_head"]["bias"]
    return original


def resize_table(table: Tensor, rows: int) -> Tensor:
    """Linearly interpolates a table (n, D) to (rows, D), as the authors' code does.

    Args:
        table: position table, or an optimizer's moment of one.
        rows: wanted number of rows.
    """
    resized = F.interpolate(
        table.float().T[None], size=rows, mode="linear", align_corners=False
    )  # (1, D, rows)
    return resized[0].T.contiguous().to(table.dtype)


def resize_position_tables(state: Mapping[str, Tensor], grid: tuple[int, int, int]) -> StateDict:
    """Fits the position tables of a backbone's state dict to another token grid.

    Each table is interpolated on its own, as a sequence; other entries are passed on.

    Args:
        state: state dict of a `VimpacTransformer`, keys possibly prefixed.
        grid: the new frames, height and width in tokens.

    Returns:
        A new state dict.
    """
    rows = position_table_rows(TokenGrid(*grid))
    resized = dict(state)
    for key, tensor in state.items():
        parent, _, name = key.rpartition(".")
        is_table = parent == "position" or parent.endswith(".position")
        if is_table and name in rows and len(tensor) != rows[name]:
            resized[key] = resize_table(tensor, rows[name])
    return resized


def _component(key: str) -> tuple[str, str, Renames]:
    """Component of an original key, the key within it, and the component's names."""
    for component, (prefix, renames) in _COMPONENTS.items():
        if key.startswith(prefix):
            return component, key.removeprefix(prefix), renames
    return "backbone", key, _COMPONENTS["backbone"][1]  # a backbone alone has no prefix


def _rename(key: str, renames: Iterable[tuple[str, str]]) -> str | None:
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


def _split_qkv(prefix: str, match: re.Match[str], tensor: Tensor, layout: str) -> StateDict:
    layer, block, kind = match.groups()
    num_patterns = len(parse_layout(layout)[int(block)])
    stem = f"{prefix}transformer.resblocks.{layer}.attention_blocks.{block}.attentions"
    return {
        f"{stem}.{part // 3}.attention.{_QKV[part % 3]}.{kind}": piece.clone()
        for part, piece in enumerate(tensor.chunk(3 * num_patterns))
    }
