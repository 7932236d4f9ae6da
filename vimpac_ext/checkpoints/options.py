"""What the authors' options (``args.pickle``) say of a model."""

from collections.abc import Mapping
from typing import Any

from vimpac_ext.backbones.vimpac.transformer import HEAD_SIZE
from vimpac_ext.checkpoints.architecture import (
    LAYOUT_PREFIX,
    TOKEN_STRIDE,
    Architecture,
)

Tree = dict[str, Any]


def architecture_options(architecture: Architecture) -> Tree:
    """The authors' options that describe a model (see `require_original`)."""
    section, grid = architecture.backbone, architecture.grid
    options = {
        "model": f"{LAYOUT_PREFIX}{section['layout']}",
        "layers": section["num_layers"],
        "hid_dim": section["embed_dim"],
        "pos_emb": section["position"],
        "pre_activation": section["norm"] != "post",
        "halve_att": section["halve_attention"],
        "halve_mlp": section["halve_mlp"],
        "vocab_size": architecture.vocab_size,
        "clip_len": grid.frames,
        "frame_size": grid.height * TOKEN_STRIDE,
    }
    if "contrast" in architecture.heads:
        head = architecture.heads["contrast"]
        options["nce_proj_layers"] = head["num_layers"]
        options["nce_proj_hid_dim"] = head["hidden_dim"]
        options["nce_bn_after_proj"] = head["norm_after_last"]
    return options


def contradictions(architecture: Architecture, options: Mapping[str, Any]) -> list[str]:
    """Where options describe another model than the tensors, for the user to know."""
    return [
        f"the options say {name} {options[name]!r}, the tensors {value!r}: the tensors are right"
        for name, value in architecture_options(architecture).items()
        if name in options and options[name] != value
    ]


def require_original(architecture: Architecture) -> None:
    """Checks that the authors' code has such a model.

    Raises:
        ValueError: listing all that it has not.
    """
    section, grid = architecture.backbone, architecture.grid
    head = architecture.heads.get("contrast", {})
    missing = {
        f"joined axes (layout {section['layout']!r})": "x" in section["layout"],
        "standard pre-LN (norm 'pre')": section["norm"] == "pre",
        "pre-LN with halved attention": section["norm"] != "post" and section["halve_attention"],
        f"{section.get('num_heads')} heads for a width of {section['embed_dim']}": section.get(
            "num_heads"
        )
        not in (None, section["embed_dim"] / HEAD_SIZE),
        f"frames of {grid.height} x {grid.width} tokens": grid.height != grid.width,
        f"{head.get('activation')} in the projection head": head.get("activation", "relu")
        != "relu",
    }
    found = [what for what, is_found in missing.items() if is_found]
    if found:
        raise ValueError(f"the authors' program has no {', no '.join(found)}")
