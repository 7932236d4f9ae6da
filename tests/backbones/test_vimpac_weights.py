"""Conversion from and to the authors' names, and to other token grids."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import (
    convert_original_state_dict,
    resize_position_tables,
    resize_table,
    to_original_state_dict,
)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"
BACKBONE_FIXTURES = sorted(path.name for path in FIXTURES.glob("backbone_*.npz"))


@pytest.mark.parametrize("name", BACKBONE_FIXTURES)
def test_weights_survive_the_round_trip_to_the_original_names(name):
    data = np.load(FIXTURES / name)
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    config = json.loads(str(data["config"]))
    back = to_original_state_dict(convert_original_state_dict(state), config["layout"])
    assert {key.removeprefix("backbone.") for key in back} == set(state)
    assert all(torch.equal(back[f"backbone.{key}"], state[key]) for key in state)


@pytest.mark.parametrize(
    "key", ["backbone.ln_pre.weights", "module.optimizer.step", "cls_fc.scale"]
)
def test_a_foreign_key_is_refused_by_name(key):
    with pytest.raises(ValueError, match=key):
        convert_original_state_dict({key: torch.zeros(1)})


def test_joined_axes_cannot_be_written_for_the_authors_code():
    model = VimpacTransformer((2, 2, 2), 20, embed_dim=16, num_heads=4, layout="T,HxW")
    with pytest.raises(ValueError, match="T,HxW.*single axes only"):
        to_original_state_dict({"backbone": model.state_dict()}, "T,HxW")


def test_whole_models_are_split_into_components():
    state = {
        "module.backbone.cls_param": torch.zeros(4),
        "module.cls_fc.weight": torch.zeros(2, 4),
        "module.mlm_head.decoder.weight": torch.zeros(9, 4),
        "module.mlm_head.bias": torch.zeros(9),
    }
    converted = convert_original_state_dict(state)
    assert {name: sorted(keys) for name, keys in converted.items()} == {
        "backbone": ["cls_token"],
        "classification_head": ["linear.weight"],
        "token_head": ["bias"],
    }


def test_position_tables_are_interpolated_as_in_the_original():
    data = np.load(FIXTURES / "pos_interp.npz")
    names = [name for name in data.files if name.endswith("/before")]
    assert names
    for name in names:
        before = torch.tensor(data[name])
        after = torch.tensor(data[name.replace("before", "after")])
        assert torch.equal(resize_table(before, len(after)), after), name


GRIDS = {  # of the groups in the fixture: before, after
    "a": ((5, 16, 16), (10, 16, 16)),
    "b": ((5, 16, 16), (5, 32, 32)),
    "c": ((5, 16, 16), (10, 32, 32)),
    "d": ((10, 32, 32), (5, 16, 16)),
    "e": ((4, 5, 6), (7, 11, 9)),
    "default": ((2, 3, 4), (3, 5, 6)),
    "temporal_separation": ((2, 3, 4), (3, 5, 6)),
}
TABLES = {
    "cls_pos_embedding": "position.cls",
    "temporal_pos_embedding": "position.frames",
    "height_pos_embedding": "position.height",
    "width_pos_embedding": "position.width",
    "spatial_pos_embedding": "position.spatial",
    "positional_embedding": "position.joint",
}


@pytest.mark.parametrize("group", GRIDS)
def test_a_model_for_another_grid_gets_the_tables_of_the_original(group):
    data = np.load(FIXTURES / "pos_interp.npz")
    position = group if group in ("default", "temporal_separation") else "hw_separation"
    source, target = (
        VimpacTransformer(
            grid, vocab_size=4, embed_dim=8, num_layers=1, num_heads=1, layout="T",
            position=position,
        )
        for grid in GRIDS[group]
    )  # fmt: skip
    state = source.state_dict()
    before, after = (
        {ours: torch.tensor(data[f"{group}/{name}/{when}"])
         for name, ours in TABLES.items() if f"{group}/{name}/{when}" in data.files}
        for when in ("before", "after")
    )  # fmt: skip
    assert before
    state.update(before)
    target.load_state_dict(target.adapt_state(state)[0])
    for name, table in after.items():
        assert torch.equal(target.state_dict()[name], table), name


@pytest.mark.parametrize("position", ["hw_separation", "temporal_separation", "default"])
def test_weights_move_to_another_grid(position):
    source, target = (
        VimpacTransformer(
            grid, vocab_size=20, embed_dim=16, num_layers=1, num_heads=4, position=position
        )
        for grid in ((3, 4, 5), (4, 4, 7))
    )
    state, changed = target.adapt_state(source.state_dict())
    target.load_state_dict(state)
    assert (
        changed
        == {
            "hw_separation": ["position.frames", "position.width"],
            "temporal_separation": ["position.frames", "position.spatial"],
            "default": ["position.joint"],
        }[position]
    )
    prefixed = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    resized = resize_position_tables(prefixed, (4, 4, 7))
    assert all(torch.equal(resized[f"backbone.{name}"], state[name]) for name in state)
