"""The authors' checkpoints as models of this library."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import convert_original_state_dict
from vimpac_ext.backbones.vimpac.original_names import TIED_COPIES
from vimpac_ext.build import build
from vimpac_ext.checkpoints.architecture import Architecture, infer_architecture
from vimpac_ext.checkpoints.components import merge_components
from vimpac_ext.checkpoints.configuration import config_tree, full_config
from vimpac_ext.checkpoints.options import contradictions
from vimpac_ext.checkpoints.source import OriginalCheckpointError, OriginalFiles, read_original
from vimpac_ext.heads import MaskedTokenHead
from vimpac_ext.registries import BACKBONES, HEADS

_logger = logging.getLogger(__name__)


class VimpacModel(nn.Module):
    """A VIMPAC backbone with its heads; parameters are named as in the tasks.

    Args:
        architecture: what to build.

    Raises:
        BuildError: if a section of the architecture is wrong.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone: VimpacTransformer = build(
            BACKBONES,
            architecture.backbone,
            "BACKBONE",
            grid=architecture.grid,
            vocab_size=architecture.vocab_size,
        )
        self.heads = nn.ModuleDict(
            {
                name: build(
                    HEADS,
                    section,
                    f"HEADS.{name}",
                    embed_dim=self.backbone.embed_dim,
                    vocab_size=architecture.vocab_size,
                    num_classes=architecture.num_classes,
                    token_embedding=self.backbone.token_embedding,
                )
                for name, section in architecture.heads.items()
            }
        )

    def forward(self, tokens: Tensor, token_logits: bool = False) -> dict[str, Tensor]:
        """Encodes token clips.

        Args:
            tokens: integer (B, T, H, W) token ids; masked and padded positions hold the special
                ids (`vimpac_ext.structures.SpecialTokens`).
            token_logits: also give the logits of the tokens at all positions.

        Returns:
            "cls" (B, D) and "features" (B, T, H, W, D); of a pre-trained model "projection"
            (B, P) and, on request, "token_logits" (B, T, H, W, V+5); of a fine-tuned model
            "class_logits" (B, classes).

        Raises:
            ValueError: if token logits are asked of a model without a token head, or the clips are
                not of the model's grid or vocabulary.
        """
        outputs: dict[str, Tensor] = self.backbone(tokens)
        token_heads = [head for head in self.heads.values() if isinstance(head, MaskedTokenHead)]
        if token_logits and not token_heads:
            raise ValueError(
                f"the model has no token head, only {', '.join(self.heads) or 'a backbone'}"
            )
        for head in self.heads.values():
            if isinstance(head, MaskedTokenHead):
                if token_logits:
                    outputs["token_logits"] = head.logits(outputs["features"])
            else:
                outputs.update(head(outputs))
        return outputs


@dataclass(frozen=True)
class OriginalModel:
    """A checkpoint of the authors' code, understood.

    Attributes:
        files: what was read.
        state: its tensors under the names of `model`, as they are in the file.
        model: its model with its weights, in float32 and eval mode.
        tree: sections of a configuration for it.
        notes: what was assumed, and where options contradicted the tensors.
    """

    files: OriginalFiles
    state: dict[str, Tensor]
    model: VimpacModel
    tree: dict[str, Any]
    notes: tuple[str, ...]


def load_original(
    path: str | Path,
    *,
    grid: tuple[int, int, int] | None = None,
    layout: str | None = None,
    num_heads: int | None = None,
    activation: str = "relu",
) -> tuple[VimpacModel, CfgNode]:
    """Loads a checkpoint of the authors' code.

    The architecture is inferred from the tensors and, for what they cannot tell, from the options
    saved beside them. No arguments are needed for what the authors' scripts have written.

    Args:
        path: released zip, snapshot folder or ``classifier.pt``, pre-trained or fine-tuned (see
            `read_original`).
        grid: frames, height and width in tokens: needed with a single position table ("default")
            and no options.
        layout: attended axes, needed if nothing else tells.
        num_heads: if it is not one per 64 channels.
        activation: of the projection head.

    Returns:
        The model in eval mode, on the CPU, and a configuration whose BACKBONE, HEADS, MODEL and
        DATA describe it; TASK, LOSSES, MASKER and SOLVER are those of its training as far as the
        options tell, else the paper's.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        OriginalCheckpointError: if it is not such a checkpoint, or damaged.
    """
    original = understand(read_original(path), grid, layout, num_heads, activation)
    for note in original.notes:
        _logger.info("%s: %s", original.files.where, note)
    return original.model, full_config(original.tree)


def understand(
    files: OriginalFiles,
    grid: tuple[int, int, int] | None = None,
    layout: str | None = None,
    num_heads: int | None = None,
    activation: str = "relu",
) -> OriginalModel:
    """Builds the model of a checkpoint; arguments as of `load_original`.

    Raises:
        OriginalCheckpointError: if the tensors are not those of a VIMPAC model.
    """
    try:
        components = convert_original_state_dict(files.state)
        architecture = infer_architecture(
            files.state, components, files.arguments, grid, layout, num_heads, activation
        )
        with torch.device("meta"):  # the weights come from the file: none need be drawn
            model = VimpacModel(architecture)
        state = merge_components(model, components)
        require_same_shapes(model.state_dict(), state)
        _require_tied(files.state)
    except ValueError as error:
        raise OriginalCheckpointError(
            f"{files.where} is not a checkpoint of the authors' model: {error}"
        ) from error
    model.load_state_dict(state, assign=True)
    model.float().requires_grad_()
    notes = (*architecture.notes, *contradictions(architecture, files.arguments))
    tree = config_tree(architecture, files.arguments)
    return OriginalModel(files, state, model.eval(), tree, notes)


def require_same_shapes(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming some keys, unless all tensors of a model are there and fit."""
    problems = [f"{key} is missing" for key in own if key not in stored]
    problems += [f"{key} has no place" for key in stored if key not in own]
    problems += [
        f"{key} is {tuple(stored[key].shape)} in place of {tuple(own[key].shape)}"
        for key in own
        if key in stored and stored[key].shape != own[key].shape
    ]
    problems += [
        f"{key} has type {stored[key].dtype}"
        for key in own
        if key in stored and stored[key].is_floating_point() != own[key].is_floating_point()
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{', '.join(problems[:3])}{more}")


def _require_tied(state: Mapping[str, Tensor]) -> None:
    """The token head's output layer is stored a second time; it must be the same."""
    for copy, source in TIED_COPIES.items():
        if copy not in state:
            continue
        if source not in state or not torch.equal(state[copy], state[source]):
            raise ValueError(f"{copy} differs from {source}, to which it is tied")
