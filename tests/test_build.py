from collections.abc import Sequence
from typing import Literal

import pytest
from fvcore.common.registry import Registry

from vimpac_ext.build import BuildError, build, check, wants

THINGS = Registry("THINGS")


@THINGS.register()
class Cell:
    def __init__(
        self,
        grid: tuple[int, int],
        size: int = 2,
        rate: float = 0.5,
        mode: Literal["a", "b"] = "a",
        names: str | Sequence[str] = (),
        limit: float | None = None,
    ) -> None:
        self.arguments = {"grid": grid, "size": size, "rate": rate, "mode": mode, "names": names}


def test_a_section_is_a_name_and_keyword_arguments():
    cell = build(THINGS, {"NAME": "Cell", "size": 4, "rate": 1}, grid=(3, 3), unused=1)
    assert cell.arguments == {"grid": (3, 3), "size": 4, "rate": 1, "mode": "a", "names": ()}


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"NAME": "Cel"}, ["'Cel'", "did you mean 'Cell'", "registered: Cell", "--plugin"]),
        ({"NAME": ""}, ["no NAME", "Cell"]),
        ({"NAME": "Cell", "sise": 1}, ["'sise'", "did you mean 'size'", "rate: float = 0.5"]),
        ({"NAME": "Cell", "size": "2"}, ["size of Cell must be int", "str '2'"]),
        ({"NAME": "Cell", "size": True}, ["must be int", "bool True"]),
        ({"NAME": "Cell", "rate": None}, ["must be float", "None"]),
        ({"NAME": "Cell", "mode": "c"}, ["Literal['a', 'b']", "'c'"]),
        ({"NAME": "Cell", "names": [1]}, ["names", "[1]"]),
        ({"NAME": "Cell", "grid": [1, 2]}, ["'grid'", "set by the program"]),
    ],
)
def test_mistakes_list_what_is_valid(section, parts):
    for attempt in (
        lambda: build(THINGS, section, "THING in my.yaml", grid=(1, 1)),
        lambda: check(THINGS, section, "THING in my.yaml", ["grid"]),
    ):
        with pytest.raises(BuildError) as error:
            attempt()
        assert str(error.value).startswith("THING in my.yaml: ")
        for part in parts:
            assert part in str(error.value)


def test_a_missing_argument_is_named():
    with pytest.raises(BuildError, match="Cell needs grid"):
        build(THINGS, {"NAME": "Cell"})


@pytest.mark.parametrize("value", ["one", ["one", "two"], []])
def test_unions_and_sequences_fit(value):
    assert build(THINGS, {"NAME": "Cell", "names": value}, grid=(1, 1)).arguments["names"] == value


def test_wants_tells_which_runtime_arguments_a_component_asks_for():
    assert wants(THINGS, {"NAME": "Cell"}, "grid")
    assert not wants(THINGS, {"NAME": "Cell"}, "vocab_size")
