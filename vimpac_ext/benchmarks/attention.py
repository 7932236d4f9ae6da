"""Speed of the ways to attend along short rows with CLS, forward and backward."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimpac_ext.backbones.vimpac.axis_attention import key_biases, parse_layout
from vimpac_ext.benchmarks.floor import wait_for
from vimpac_ext.benchmarks.result import Result
from vimpac_ext.benchmarks.row_attention import RowAttention, alternatives, reference

_TURN = 0.02  # seconds that one turn lasts at least
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TOLERANCES = {"fp32": 1e-3, "bf16": 0.05}  # TF32 may be allowed on a GPU


@dataclass(frozen=True)
class RowOptions:
    """What is attended.

    Attributes:
        grid: frames, height and width in tokens.
        axis: "T", "H" or "W".
        precision: "fp32" or "bf16".
        clips: in a batch.
        heads: that attend along the axis.
        head_size: e.
        device: "cpu" or "cuda".
        compile: compile every way but "triton".
    """

    grid: tuple[int, int, int]
    axis: str
    precision: str
    clips: int = 8
    heads: int = 8
    head_size: int = 64
    device: str = "cpu"
    compile: bool = False


class RowCase:
    """Random queries, keys and values as a backbone has them, and gradients of the results."""

    def __init__(self, options: RowOptions) -> None:
        self.options = options
        self.pattern = parse_layout(options.axis)[0][0]
        generator = torch.Generator().manual_seed(0)

        def made(*shape: int) -> Tensor:
            numbers = torch.randn(options.clips, *shape, generator=generator)
            return numbers.to(options.device, _PRECISIONS[options.precision])

        size = (options.heads, options.head_size)
        self.inputs = made(3, *size), made(*options.grid, 3, *size)  # views of one product
        self.gradients = made(*size), made(*options.grid, *size)
        is_pad = torch.zeros(options.clips, *options.grid, dtype=torch.bool, device=options.device)
        self.key_bias = key_biases(is_pad, {self.pattern})[self.pattern]

    def results(self, way: RowAttention, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Values and gradients, in another type if given."""
        cls, tokens = (one.to(dtype).requires_grad_() for one in self.inputs)
        values = way(cls.unbind(1), tokens.unbind(4), self.key_bias, self.pattern)
        gradients = [one.to(dtype) for one in self.gradients]
        of_inputs = torch.autograd.grad(values, (cls, tokens), gradients)
        return *(value.detach() for value in values), *of_inputs

    def seconds(self, way: RowAttention, calls: int) -> float:
        """Wall-clock time of a forward and a backward pass, mean of some."""
        device = torch.device(self.options.device)
        wait_for(device)
        started = time.perf_counter()
        for _ in range(calls):
            self.results(way)
        wait_for(device)
        return (time.perf_counter() - started) / calls


def require_equal(case: RowCase, name: str, way: RowAttention) -> None:
    """Compares values and gradients with those of `reference` in float64.

    Raises:
        ArithmeticError: a way that does not compute the same, which is not worth measuring.
    """
    tolerance = _TOLERANCES[case.options.precision]
    for found, expected in zip(
        case.results(way), case.results(reference, torch.float64), strict=True
    ):
        error = float((found.double() - expected).abs().max() / expected.abs().max())
        if not error <= tolerance:  # nor is it if that is no number
            raise ArithmeticError(
                f"{name} differs from the reference by {error:.2g} of the largest number "
                f"(at most {tolerance} in {case.options.precision})"
            )


def measure_attention(candidates: Sequence[RowOptions], rounds: int = 9) -> list[Result]:
    """All ways for each, in turns.

    Args:
        candidates: one column of the table each.
        rounds: how often each way has its turn.

    Returns:
        For each, milliseconds of every way: the least, which a busy machine changes little, and the
        median.

    Raises:
        ArithmeticError: as `require_equal`.
    """
    return [_measure(options, rounds) for options in candidates]


def _measure(options: RowOptions, rounds: int) -> Result:
    case = RowCase(options)
    ways = alternatives(torch.device(options.device))
    for name, way in ways.items():
        if options.compile and name != "triton":
            ways[name] = torch.compile(way)
        require_equal(case, name, ways[name])
    calls = {name: _calls_in_a_turn(case, way) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(1000 * case.seconds(way, calls[name]))
    own = min(next(iter(times.values())))
    length = options.grid["THW".index(options.axis)]
    grid = " x ".join(map(str, options.grid))
    compiled = ", compiled" if options.compile else ""
    rows: dict[str, float] = {}
    summaries: list[tuple[str, Callable[[list[float]], float]]] = [
        ("least ms", min),
        ("median ms", statistics.median),
        ("least / own", lambda numbers: min(numbers) / own),
    ]
    for label, summary in summaries:
        rows |= {f"{name}: {label}": summary(numbers) for name, numbers in times.items()}
    return Result(
        f"{options.axis} of {grid}: CLS and {length} tokens, {options.clips} clips, "
        f"{options.heads} heads of {options.head_size}, {options.precision}{compiled}",
        rows,
    )


def _calls_in_a_turn(case: RowCase, way: RowAttention) -> int:
    """As many as fill the turn; also warms up."""
    case.seconds(way, 1)
    return max(1, round(_TURN / case.seconds(way, 2)))
