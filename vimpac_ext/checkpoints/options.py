"""The authors' options (``args.pickle``) <-> sections of our configuration."""

import copy
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode

from vimpac_ext.backbones.vimpac.transformer import HEAD_SIZE
from vimpac_ext.checkpoints.architecture import (
    LAYOUT_PREFIX,
    TOKEN_STRIDE,
    Architecture,
    number_option,
)
from vimpac_ext.config.defaults import DEFAULTS

Tree = dict[str, Any]

# Their option, our key, and the type of the value.
_RENAMED: tuple[tuple[str, str, type], ...] = (
    ("lr", "SOLVER.BASE_LR", float),
    ("epochs", "SOLVER.MAX_EPOCH", int),
    ("warm_up", "SOLVER.WARMUP_RATIO", float),
    ("epsilon", "SOLVER.EPS", float),
    ("weight_decay", "SOLVER.WEIGHT_DECAY", float),
    ("clip_grad_norm", "SOLVER.CLIP_GRAD_L2NORM", float),
    ("batch_size", "TRAIN.BATCH_SIZE", int),
    ("seed", "RNG_SEED", int),
)


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
        f"{head.get('norm')!r} in the projection head": head.get("norm", "bn") != "bn",
    }
    found = [what for what, is_found in missing.items() if is_found]
    if found:
        raise ValueError(f"the authors' program has no {', no '.join(found)}")


def config_tree(architecture: Architecture, options: Mapping[str, Any]) -> Tree:
    """Sections of a configuration: the model, and what the options say of its training.

    A grid that is not square has no place in a configuration; DATA then has no crop sizes.
    """
    grid = architecture.grid
    tree: Tree = {
        "BACKBONE": dict(architecture.backbone),
        "HEADS": copy.deepcopy(architecture.heads),
        "MODEL": {"NUM_CLASSES": architecture.num_classes},
        "DATA": {
            "NUM_FRAMES": grid.frames,
            "TOKEN_STRIDE": TOKEN_STRIDE,
            "VOCAB_SIZE": architecture.vocab_size,
        },
        "TRAIN": {},
        "SOLVER": {"OPTIMIZING_METHOD": "adamw_original", "NO_DECAY": "original"},
    }
    if grid.height == grid.width:
        size = grid.height * TOKEN_STRIDE
        tree["DATA"].update(TRAIN_CROP_SIZE=size, TEST_CROP_SIZE=size)
    tree.update(_task(architecture, options))
    for name, key, kind in _RENAMED:
        value = number_option(options, name, -1)
        if value >= 0:
            *sections, leaf = key.split(".")
            (tree[sections[0]] if sections else tree)[leaf] = kind(value)
    betas = [number_option(options, name, -1) for name in ("beta1", "beta2")]
    if min(betas) >= 0:
        tree["SOLVER"]["BETAS"] = betas
    return tree


def full_config(tree: Mapping[str, Any]) -> CfgNode:
    """The defaults with ``tree`` on top."""
    full = copy.deepcopy(DEFAULTS)
    for name, value in tree.items():
        is_plain_section = isinstance(value, Mapping) and "NAME" not in value and name != "HEADS"
        full[name] = {**full[name], **value} if is_plain_section else value
    if "DATA" in tree and "TRAIN_CROP_SIZE" not in tree["DATA"]:  # see `config_tree`
        del full["DATA"]["TRAIN_CROP_SIZE"], full["DATA"]["TEST_CROP_SIZE"]
    return CfgNode(copy.deepcopy(full))


def training_options(tree: Mapping[str, Any]) -> Tree:
    """The authors' options that our configuration states besides the model."""
    options: Tree = {}
    for name, key, _ in _RENAMED:
        node: Any = tree
        for part in key.split("."):
            node = node[part]
        options[name] = node
    solver = tree["SOLVER"]
    options["beta1"], options["beta2"] = solver["BETAS"]
    for option, head in (("mlm_weight", "MaskedTokenLoss"), ("nce_weight", "InfoNCELoss")):
        weights = [loss.get("weight", 1.0) for loss in tree["LOSSES"].values()
                   if loss["NAME"] == head]  # fmt: skip
        options[option] = float(sum(weights))
    dropout = tree["BACKBONE"].get("dropout", 0.1)
    return {**options, "dropout": dropout, "optim": "adamw", "lr_scheduler": "linear"}


def _task(architecture: Architecture, options: Mapping[str, Any]) -> Tree:
    """TASK, LOSSES and MASKER; what the options do not say is as in the paper."""
    if "classification" in architecture.heads:
        smoothing = number_option(options, "label_smoothing", 0.0)
        loss = {"NAME": "CrossEntropyLoss", "label_smoothing": smoothing}
        return {"TASK": {"NAME": "FinetuneTask"}, "LOSSES": {"classification": loss}}
    losses: Tree = {}
    if "token" in architecture.heads:
        weight = number_option(options, "mlm_weight", 1.0)
        losses["token"] = {"NAME": "MaskedTokenLoss", "weight": weight}
    if "contrast" in architecture.heads:
        weight = number_option(options, "nce_weight", 1.0)
        losses["contrast"] = {"NAME": "InfoNCELoss", "weight": weight}
    blocks = int(number_option(options, "mask_blocks", 5))
    masker = (
        {"NAME": "UniformMasker", "ratio": -blocks / 1000}  # their coding of a probability
        if blocks < 0
        else {"NAME": "BlockMasker", "num_blocks": max(1, blocks)}
    )
    return {"TASK": {"NAME": "PretrainTask"}, "LOSSES": losses, "MASKER": masker}
