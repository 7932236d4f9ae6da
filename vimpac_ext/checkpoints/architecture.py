"""What a checkpoint's model is, read from the shapes of its tensors.

Only what shapes cannot tell is taken from elsewhere: which axes the attention blocks attend, the
number of heads, the activation of the projection head, and the grid behind flat position tables.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vimpac_ext.backbones.vimpac import POSITION_FORMS, parse_layout
from vimpac_ext.backbones.vimpac.original_names import patterns_of_original
from vimpac_ext.backbones.vimpac.transformer import HEAD_SIZE
from vimpac_ext.structures import SpecialTokens, TokenGrid

Components = Mapping[str, Mapping[str, Tensor]]

TOKEN_STRIDE = 8  # pixels per token side of the DALL-E tokenizer
LAYOUT_PREFIX = "efflayout"  # stands before the layout in the authors' option --model

# The layouts that the authors' command line admits. No two have the same numbers of parallel
# axes, so the tensors tell which one it is.
_LAYOUTS = ("T,H|W", "T,H,W", "T", "T,H", "T|H|W", "H|W,T")


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a model.

    Attributes:
        grid: the clips' size in tokens.
        vocab_size: codes of the tokenizer.
        backbone: section BACKBONE of a config.
        heads: section HEADS.
        num_classes: of the classification head; 0 without one.
        notes: what the tensors do not tell and was taken for granted.
    """

    grid: TokenGrid
    vocab_size: int
    backbone: dict[str, Any]
    heads: dict[str, dict[str, Any]]
    num_classes: int = 0
    notes: tuple[str, ...] = ()


def infer_architecture(
    state: Mapping[str, Tensor],
    components: Components,
    options: Mapping[str, Any],
    grid: tuple[int, int, int] | None = None,
    layout: str | None = None,
    num_heads: int | None = None,
    activation: str = "relu",
) -> Architecture:
    """Reads the architecture from tensors.

    Args:
        state: the authors' state dict.
        components: the same, converted.
        options: the authors' options, possibly none. Where they contradict the tensors (those of
            a fine-tuning run need not be its backbone's), the tensors are right.
        grid: frames, height, width in tokens, if neither tables nor options tell.
        layout: attended axes, if neither options nor the numbers of axes tell.
        num_heads: if it is not one per 64 channels, as it always is in the authors' code.
        activation: of the projection head, "relu" as always in the authors' pre-training.

    Raises:
        ValueError: if the tensors are not those of a VIMPAC model, or do not suffice.
    """
    if "backbone" not in components:
        raise ValueError("it has no backbone")
    backbone = components["backbone"]
    patterns = patterns_of_original(state)
    embed_dim = _size(backbone, "cls_token")
    attention_dim = _size(backbone, "layers.0.attention_blocks.0.attention.qkv.weight") // 3
    mlp_dim = _size(backbone, "layers.0.mlp.expand.weight")
    notes: list[str] = []
    section: dict[str, Any] = {
        "NAME": "VimpacTransformer",
        "embed_dim": embed_dim,
        "num_layers": _count(backbone, "layers.{}.mlp.expand.weight"),
        "layout": _layout(patterns, layout, options, notes),
        "norm": "post" if "input_norm.weight" in backbone else "pre_normalized_residual",
        "position": _position_form(backbone),
        "halve_attention": _is_half(attention_dim, embed_dim, "attention"),
        "halve_mlp": _is_half(mlp_dim, 4 * embed_dim, "MLP"),
        "dropout": number_option(options, "dropout", 0.1),
    }
    if num_heads is not None:
        section["num_heads"] = num_heads
    elif embed_dim % HEAD_SIZE:
        raise ValueError(
            f"its width of {embed_dim} is not a multiple of {HEAD_SIZE}, so that the number of "
            "heads is not known: give num_heads"
        )
    heads, num_classes = _heads(components, options, activation)
    vocab_size = _size(backbone, "token_embedding.weight") - SpecialTokens(0).num_embeddings
    if vocab_size < 1:
        raise ValueError("its embedding has no room for a vocabulary besides the special ids")
    return Architecture(
        grid=_grid(backbone, grid, options, notes),
        vocab_size=vocab_size,
        backbone=section,
        heads=heads,
        num_classes=num_classes,
        notes=tuple(notes),
    )


def number_option(options: Mapping[str, Any], name: str, default: float) -> float:
    """The number that an option holds; ``default`` if it is missing or holds something else."""
    value = options.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return default
    return float(value)


def _heads(
    components: Components, options: Mapping[str, Any], activation: str
) -> tuple[dict[str, dict[str, Any]], int]:
    """Section HEADS, with the names of the shipped configs, and the number of classes."""
    heads: dict[str, dict[str, Any]] = {}
    num_classes = 0
    if "token_head" in components:
        heads["token"] = {"NAME": "MaskedTokenHead"}
    if "projection_head" in components:
        head = components["projection_head"]
        num_layers = _count(head, "linears.{}.weight")
        has_statistics = any(key.endswith("running_mean") for key in head)
        heads["contrast"] = {
            "NAME": "ProjectionHead",
            "num_layers": num_layers,
            "hidden_dim": _size(head, "linears.0.weight"),
            "output_dim": _size(head, f"linears.{num_layers - 1}.weight"),
            # A single layer without a norm is the same with either.
            "norm": "bn" if has_statistics or num_layers == 1 else "ln",
            "activation": activation,
            "norm_after_last": f"norms.{num_layers - 1}.weight" in head,
        }
    if "classification_head" in components:
        num_classes = _size(components["classification_head"], "linear.weight")
        dropout = number_option(options, "last_dropout", 0.0)
        heads["classification"] = {"NAME": "ClassificationHead", "dropout": dropout}
    return heads, num_classes


def _layout(
    patterns: tuple[int, ...], given: str | None, options: Mapping[str, Any], notes: list[str]
) -> str:
    if given is not None:
        if _num_patterns(given) != patterns or "x" in given:  # theirs join no axes
            raise ValueError(
                f"layout {given!r} does not fit: in parallel, its blocks attend {patterns} axes"
            )
        return given
    model = str(options.get("model"))
    fitting = [layout for layout in _LAYOUTS if _num_patterns(layout) == patterns]
    if model.startswith(LAYOUT_PREFIX):
        named = model.removeprefix(LAYOUT_PREFIX)
        try:
            if _num_patterns(named) == patterns:
                return named
        except ValueError:  # not a layout: the tensors may do without
            pass
    if fitting:
        notes.append(f"layout {fitting[0]}: the only one of the authors' with such blocks")
        return fitting[0]
    raise ValueError(
        f"its attention blocks attend {patterns} axes in parallel, which is none of the authors' "
        f"layouts ({', '.join(_LAYOUTS)}): give layout"
    )


def _num_patterns(layout: str) -> tuple[int, ...]:
    return tuple(len(block) for block in parse_layout(layout))


def _position_form(backbone: Mapping[str, Tensor]) -> str:
    tables = {key.removeprefix("position.") for key in backbone if key.startswith("position.")}
    for form, names in POSITION_FORMS.items():
        if tables - {"cls"} == set(names):
            return form
    raise ValueError(f"its position tables are unknown: {', '.join(sorted(tables)) or 'none'}")


def _grid(
    backbone: Mapping[str, Tensor],
    given: tuple[int, int, int] | None,
    options: Mapping[str, Any],
    notes: list[str],
) -> TokenGrid:
    """The grid that the position tables were made for."""
    rows = {
        key.removeprefix("position."): _size(backbone, key)
        for key in backbone
        if key.startswith("position.")
    }
    side = int(number_option(options, "frame_size", 0)) // TOKEN_STRIDE
    if "height" in rows:
        found = TokenGrid(rows["frames"], rows["height"], rows["width"])
        if given is not None and found != tuple(given):
            raise ValueError(f"its position tables are for a grid of {tuple(found)}, not {given}")
        return found
    if given is not None:
        grid = TokenGrid(*given)
    elif "joint" in rows:
        grid = TokenGrid(int(number_option(options, "clip_len", 0)), side, side)
    else:
        square = math.isqrt(rows["spatial"])
        grid = TokenGrid(rows["frames"], square, square)
        notes.append(f"square frames of {square} x {square} tokens: always so in their code")
    expected = (
        {"joint": 1 + math.prod(grid)}
        if "joint" in rows
        else {"frames": grid.frames, "spatial": grid.height * grid.width}
    )
    if any(rows[name] != expected[name] for name in expected):
        found_rows = ", ".join(f"{name} {rows[name]}" for name in expected)
        raise ValueError(
            f"its position tables (rows: {found_rows}) do not fit a grid of {tuple(grid)}: "
            "give grid, its frames, height and width in tokens"
        )
    return grid


def _is_half(found: int, full: int, what: str) -> bool:
    if found not in (full, full // 2):
        raise ValueError(f"its {what} has a width of {found}, neither {full} nor half of that")
    return found != full


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in state:
        count += 1
    return count


def _size(state: Mapping[str, Tensor], key: str) -> int:
    """First dimension of a tensor that every model has."""
    if key not in state or state[key].numel() == 0 or state[key].ndim == 0:
        raise ValueError(f"{key} (in this library's names) is missing or empty")
    return len(state[key])
