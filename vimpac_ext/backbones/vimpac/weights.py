"""Names and shapes of weights: the authors' state dicts <-> ours, position tables <-> grids.

The authors keep query, key and value of every axis apart; ours stand one under the other in one
matrix, so converting is more than renaming. Numerically nothing changes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_ext.backbones.vimpac.axis_attention import parse_layout
from vimpac_ext.backbones.vimpac.embedding import position_table_rows
from vimpac_ext.backbones.vimpac.original_names import (
    ORIGINAL_QKV,
    QKV,
    TIED_COPIES,
    component_of,
    original_names,
    original_position,
    rename,
)
from vimpac_ext.structures import TokenGrid

StateDict = dict[str, Tensor]


def convert_original_state_dict(state: Mapping[str, Tensor]) -> dict[str, StateDict]:
    """Turns a state dict of the authors' code into state dicts of our modules.

    Optimizer moments under the names of their parameters are converted by the same rules.

    Args:
        state: a backbone alone, a pre-training model (keys ``backbone.*``, ``mlm_head.*``,
            ``cls_head.*``) or a fine-tuned one (``backbone.*``, ``cls_fc.*``), with or without a
            leading ``module.``.

    Returns:
        For each component that is there ("backbone", "token_head", "projection_head",
        "classification_head") what its `load_state_dict` takes.

    Raises:
        ValueError: if a key does not belong to such a model, or a query, key or value is missing.
    """
    converted: dict[str, StateDict] = {}
    qkv: dict[str, dict[tuple[int, int], Tensor]] = {}
    for original_key, tensor in state.items():
        key = original_key.removeprefix("module.")
        if key in TIED_COPIES:
            continue
        component, name, renames = component_of(key)
        if component == "backbone" and (match := ORIGINAL_QKV.fullmatch(name)):
            layer, block, pattern, which, kind = match.groups()
            ours = f"layers.{layer}.attention_blocks.{block}.attention.qkv.{kind}"
            place = int(pattern), QKV.index(which)
            if place in qkv.setdefault(ours, {}):
                raise ValueError(f"{original_key} is there twice, with and without a prefix")
            qkv[ours][place] = tensor
            continue
        renamed = rename(name, renames)
        if renamed is None:
            raise ValueError(f"{original_key} is not a weight of the original VIMPAC model")
        if renamed in converted.setdefault(component, {}):
            raise ValueError(f"{original_key} is there twice, with and without a prefix")
        converted[component][renamed] = tensor
    for ours, parts in qkv.items():
        converted.setdefault("backbone", {})[ours] = _stack_qkv(ours, parts)
    return converted


def to_original_state_dict(components: Mapping[str, StateDict], layout: str) -> StateDict:
    """The inverse of `convert_original_state_dict`.

    Args:
        components: as returned there.
        layout: the backbone's layout string.

    Returns:
        State dict with the authors' keys in their model's order, prefixed by component, tied
        weights under both names.

    Raises:
        ValueError: if the layout has joined axes, which the authors' code lacks.
    """
    if "x" in layout:
        raise ValueError(
            f"a backbone with layout={layout!r} cannot be written for the authors' code: it "
            "attends along single axes only"
        )
    num_patterns = [len(block) for block in parse_layout(layout)]
    original: StateDict = {}
    for component, state in components.items():
        names = original_names(component, state, num_patterns)
        original.update(split_to_original(state, names))
    if "token_head" in components:
        original.update({copy: original[source] for copy, source in TIED_COPIES.items()})
    return {key: original[key] for key in sorted(original, key=original_position)}


def split_to_original(
    state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]]
) -> StateDict:
    """Puts tensors (weights, or moments of them) under the authors' names.

    Args:
        state: our key -> tensor.
        names: result of `original_names`, for at least these keys.
    """
    original: StateDict = {}
    for key, tensor in state.items():
        if len(names[key]) == 1:
            original[names[key][0]] = tensor
        else:
            pieces = tensor.chunk(len(names[key]))
            original.update(zip(names[key], (piece.clone() for piece in pieces), strict=True))
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


def _stack_qkv(name: str, parts: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """Queries, keys and values, by (axis, which of the three), one under the other."""
    places = sorted(parts)
    num_patterns, left = divmod(len(places), len(QKV))
    if left or places != [(p, which) for p in range(num_patterns) for which in range(len(QKV))]:
        raise ValueError(f"a query, key or value of {name} is missing; found {places}")
    if len({tensor.shape for tensor in parts.values()}) > 1:
        raise ValueError(f"the queries, keys and values of {name} differ in shape")
    return torch.cat([parts[place] for place in places])
