"""The subcommands of tools/benchmark.py: their arguments, and what they measure.

Measurements are imported when they are asked for, so that --help answers at once. Each subcommand
sets ``measurements``: parsed arguments -> functions of a temporary folder that return results.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any


def add_data(subcommands: Any) -> argparse.ArgumentParser:
    """The data path."""
    parts = ("loader", "opening", "decoding", "extraction")
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "data",
        help="token loader, opening of large stores, random clips of video files, extraction",
    )
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="a number (default: 10)")
    parser.add_argument("--num_videos", type=int, default=1_200_000, help="opening: %(default)s")
    parser.add_argument("--videos", nargs="+", type=Path, metavar="FILE", help="decoding: yours")
    parser.add_argument("--clips", type=int, default=20, help="decoding, a video: %(default)s")
    parser.add_argument("--fps", type=float, default=2.0, help="extraction: %(default)s")
    parser.add_argument("--views", default="center", help="extraction: %(default)s")
    parser.add_argument("--tokenizer", choices=("none", "vqvae", "dalle"), default="vqvae")
    parser.add_argument("--device", default="cpu", help="extraction: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.set_defaults(measurements=_data_measurements)
    return parser


def _data_measurements(arguments: argparse.Namespace) -> Iterator[Callable[[Path], Any]]:
    from vimpac_ext.benchmarks.decoding import measure_random_clips
    from vimpac_ext.benchmarks.extraction_speed import measure_extraction
    from vimpac_ext.benchmarks.store_opening import measure_store_opening
    from vimpac_ext.benchmarks.token_loader import measure_token_loader

    names = ("fps", "views", "tokenizer", "device", "precision", "seconds")
    options = {name: getattr(arguments, name) for name in names}
    videos = {str(path): path for path in arguments.videos or ()}
    measurements: dict[str, Callable[[Path], Any]] = {
        "loader": lambda folder: [measure_token_loader(folder, seconds=arguments.seconds)],
        "opening": lambda folder: [measure_store_opening(folder, arguments.num_videos)],
        "decoding": lambda folder: [measure_random_clips(folder, videos, arguments.clips)],
        "extraction": lambda folder: [measure_extraction(folder, **options)],
    }
    return (measurements[part] for part in arguments.only)


def add_train(subcommands: Any) -> argparse.ArgumentParser:
    """Training steps."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "train",
        help="a training step against the floor of its matrix products; needs no data",
        description="Whole training steps (masks, forward, losses, backward, clipping, update) of "
        "random clips: seconds, clips/s, peak memory of a process of its own, the time of the "
        "matrix products alone, and model FLOPs utilisation. All variants take turns.",
    )
    add = parser.add_argument
    add("--cfg", required=True, metavar="YAML", help="configuration")
    add("--compare", metavar="YAML", help="a second one, measured in turns with the first")
    add("--precision", nargs="+", choices=("fp32", "bf16"), help="default: TRAIN.PRECISION")
    add("--compile", nargs="+", choices=("no", "yes"), default=["no"], help="default: no")
    add("--videos", type=int, default=4, help="in a step, two clips of each in a pre-training (4)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    add("--threads", type=int, default=0, help="of the CPU (default: PyTorch's choice)")
    add("--rounds", type=int, default=5, help="steps that are timed (default: %(default)s)")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="overrides")
    parser.set_defaults(measurements=_train_measurements)
    return parser


def _train_measurements(arguments: argparse.Namespace) -> Iterator[Callable[[Path], Any]]:
    from vimpac_ext.benchmarks.train_step import StepOptions, measure_training

    if arguments.videos < 1 or arguments.rounds < 1 or arguments.threads < 0:
        raise ValueError("--videos and --rounds must be at least 1, --threads at least 0")
    paths = [arguments.cfg, *([arguments.compare] if arguments.compare else [])]
    variants = [
        StepOptions(
            path,
            tuple(arguments.opts),
            precision,
            compiled == "yes",
            arguments.videos,
            arguments.device,
            arguments.threads,
        )
        for path, precision, compiled in product(
            paths, arguments.precision or [""], arguments.compile
        )
    ]
    yield lambda folder: measure_training(variants, arguments.rounds)


def add_attention(subcommands: Any) -> argparse.ArgumentParser:
    """Ways to attend along short rows."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "attention",
        help="ways to compute the attention of short rows with CLS; needs no data",
        description="Forward and backward pass of the attention along one axis: as the backbone "
        "does it, PyTorch's fused attention on each row or on several in one masked sequence, "
        "products with CLS apart, and on a GPU with Triton a kernel of our own. Each is checked "
        "against a reference, then all take turns.",
    )
    add = parser.add_argument
    add("--grid", nargs="+", default=["5x16x16", "5x32x32"], metavar="TxHxW", help="in tokens")
    add("--axes", nargs="+", choices=("T", "H", "W"), default=["T", "H"], help="default: T H")
    add("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    add("--clips", type=int, default=8, help="in a batch (default: %(default)s)")
    add("--heads", type=int, default=8, help="along the axis (default: %(default)s)")
    add("--head_size", type=int, default=64, help="default: %(default)s")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    add("--compile", action="store_true", help="with torch.compile")
    add("--threads", type=int, default=0, help="of the CPU (default: PyTorch's choice)")
    add("--rounds", type=int, default=9, help="turns that are timed (default: %(default)s)")
    parser.set_defaults(measurements=_attention_measurements)
    return parser


def _attention_measurements(arguments: argparse.Namespace) -> Iterator[Callable[[Path], Any]]:
    import torch

    from vimpac_ext.benchmarks.attention import RowOptions, measure_attention

    numbers = (arguments.clips, arguments.heads, arguments.head_size, arguments.rounds)
    if min(numbers) < 1 or arguments.threads < 0:
        raise ValueError(
            "--clips, --heads, --head_size and --rounds must be at least 1, --threads at least 0"
        )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no such device")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sizes = (arguments.clips, arguments.heads, arguments.head_size)
    candidates = [
        RowOptions(_grid(grid), axis, precision, *sizes, arguments.device, arguments.compile)
        for precision, grid, axis in product(arguments.precision, arguments.grid, arguments.axes)
    ]
    yield lambda folder: measure_attention(candidates, arguments.rounds)


def _grid(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--grid must be three positive numbers such as 5x16x16, found {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])
