"""Sections of our configuration <-> architectures, and the authors' options of the training."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.checkpoints.architecture import TOKEN_STRIDE, Architecture, number_option
from vimpac_ext.config.defaults import DEFAULTS
from vimpac_ext.heads import ProjectionHead
from vimpac_ext.structures import TokenGrid

Tree = dict[str, Any]

_DALLE_VOCAB_SIZE = 8192
_HEAD_NAMES = {
    "MaskedTokenHead": "token",
    "ProjectionHead": "contrast",
    "ClassificationHead": "classification",
}
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
_MAY_BE_ZERO = ("warm_up", "weight_decay", "clip_grad_norm", "seed")


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
    if architecture.vocab_size == _DALLE_VOCAB_SIZE:
        tree["TOKENIZER"] = {"NAME": "DalleTokenizer"}
    if grid.height == grid.width:
        size = grid.height * TOKEN_STRIDE
        tree["DATA"].update(TRAIN_CROP_SIZE=size, TEST_CROP_SIZE=size)
    tree.update(_task(architecture, options))
    for name, key, kind in _RENAMED:
        value = number_option(options, name, -1)
        if value > 0 or (value == 0 and name in _MAY_BE_ZERO):
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


def architecture_of_config(tree: Mapping[str, Any]) -> tuple[Architecture, dict[str, str]]:
    """The model that a configuration describes, if the authors' code may have such a one.

    Args:
        tree: a full configuration.

    Returns:
        The architecture, its heads named as in `config_tree`, and these names -> the config's.

    Raises:
        ValueError: if backbone or heads are not those of VIMPAC.
    """
    if tree["BACKBONE"]["NAME"] != VimpacTransformer.__name__:
        raise ValueError(f"the authors' program has no backbone {tree['BACKBONE']['NAME']!r}")
    heads: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for name, section in tree["HEADS"].items():
        standard = _HEAD_NAMES.get(section["NAME"])
        if standard is None or standard in heads:
            raise ValueError(f"the authors' program has no (second) head {section['NAME']!r}")
        options = _defaults_of(ProjectionHead) if standard == "contrast" else {}
        heads[standard] = {**options, **section}
        names[standard] = name
    data = tree["DATA"]
    side = data["TRAIN_CROP_SIZE"] // data["TOKEN_STRIDE"]
    architecture = Architecture(
        grid=TokenGrid(data["NUM_FRAMES"], side, side),
        vocab_size=data["VOCAB_SIZE"],
        backbone={**_defaults_of(VimpacTransformer), **tree["BACKBONE"]},
        heads=heads,
        num_classes=tree["MODEL"]["NUM_CLASSES"],
    )
    return architecture, names


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


def _defaults_of(component: Any) -> dict[str, Any]:
    parameters = inspect.signature(component).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


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
    task = {"NAME": "PretrainTask"}
    if options.get("mask_rand_replace") is True:
        task["noise"] = "block"
    tree = {"TASK": task, "LOSSES": losses}
    blocks = int(number_option(options, "mask_blocks", 5))
    if blocks > 0:
        tree["MASKER"] = {"NAME": "BlockMasker", "num_blocks": blocks}
    elif blocks < 0:  # their way to give a probability per token
        tree["MASKER"] = {"NAME": "UniformMasker", "ratio": -blocks / 1000}
    return tree
