"""The subcommands of tools/benchmark.py that compare models."""

import argparse
import shlex
from pathlib import Path
from typing import Any

DEMO_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "benchmark" / "demo"


def add_models(subcommands: Any) -> None:
    """Adds ``models``."""
    parser = subcommands.add_parser(
        "models", help="parameters, GFLOPs x views, clips/s and memory of any configurations"
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/benchmark_models"),
        help="folder of models.md, .csv and .png (default: %(default)s)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--batch_size", type=int, help="videos; default: 8 on a GPU, 2 on a CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure for (default: 5)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="", help="default: the config's"
    )
    parser.add_argument(
        "--accuracy",
        type=Path,
        metavar="CSV",
        help="columns name,top1 (percent); default: what a config's own test has given, if run",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module to import first"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="overrides of all configs, last on the line: --opts DATA.NUM_FRAMES 8",
    )
    parser.add_argument("--docs", type=Path, metavar="MD", help="also put the table into this file")
    parser.set_defaults(run=run_models)


def add_demo(subcommands: Any) -> None:
    """Adds ``demo``."""
    parser = subcommands.add_parser(
        "demo",
        help="train and test five models on the demo's videos under one protocol",
        description="Makes the demo's videos, extracts tokens, pre-trains VIMPAC, trains and tests "
        "the models of configs/benchmark/demo on the CPU, and writes comparison.md, .csv and .png. "
        "Stages that are done are not done again.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/benchmark_demo"),
        help="folder of all runs and of the table (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="a table row has their mean; each has its own videos and weights (default: 0)",
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        help="instead, try these learning rates for every model, on the videos of --rates_seed",
    )
    parser.add_argument(
        "--rates_seed", type=int, default=100, help="not one of --seeds (default: 100)"
    )
    parser.add_argument("--docs", type=Path, metavar="MD", help="also put the table into this file")
    parser.set_defaults(run=run_demo)


def run_models(arguments: argparse.Namespace) -> int:
    """Measures, writes and prints; returns 1 if a model could not be measured."""
    import torch

    from vimpac_ext.benchmarks.models import MeasureOptions, measure_models, names_of
    from vimpac_ext.benchmarks.models_report import accuracies_of, models_markdown, write_models
    from vimpac_ext.benchmarks.result import machine
    from vimpac_ext.benchmarks.tables import replace_block, require_block

    if arguments.seconds < 0 or (arguments.batch_size is not None and arguments.batch_size < 1):
        raise ValueError("--seconds must be at least 0, --batch_size at least 1")
    if arguments.docs:
        require_block(arguments.docs, "models")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = MeasureOptions(
        device=device,
        batch_size=arguments.batch_size or (8 if device == "cuda" else 2),
        seconds=arguments.seconds,
        precision=arguments.precision,
        overrides=tuple(arguments.opts),
        plugins=tuple(arguments.plugin),
    )
    names = names_of(arguments.configs)
    accuracies = accuracies_of(arguments.accuracy, names) if arguments.accuracy else {}
    where = machine()
    words = ["python", "tools/benchmark.py", "models", *map(str, arguments.configs)]
    words += ["--batch_size", str(options.batch_size), "--seconds", f"{options.seconds:g}"]
    words += ["--device", device]
    words += ["--precision", options.precision] if options.precision else []
    words += ["--accuracy", str(arguments.accuracy)] if arguments.accuracy else []
    words += [word for module in options.plugins for word in ("--plugin", module)]
    words += ["--opts", *options.overrides] if options.overrides else []
    heading = (
        f"`{shlex.join(words)}`\n\n"
        f"{where['gpu'] if device == 'cuda' else where['processor']}, {torch.get_num_threads()} "
        f"threads, load average {where['load_average']} at the start, torch {where['torch']}. "
        f"Random clips, {options.batch_size} videos in a step; GFLOPs are 10^9 multiply-adds of a "
        "test clip (a tokenizer not counted); clips/s are medians; MB are 10^6 bytes at the peak."
    )
    costs = []
    for cost in measure_models(arguments.configs, options, accuracies):
        costs.append(cost)
        write_models(arguments.output, costs, heading)  # whatever comes next, these are there
        print(f"{cost.name}: {cost.error or 'measured'}", flush=True)
    picture_too = "" if all(cost.error for cost in costs) else " and .png"
    print(f"\n{models_markdown(costs)}\nwrote {arguments.output}/models.md, .csv{picture_too}")
    if arguments.docs:
        stem = f"{arguments.docs.stem}_models"
        picture = f"![The models of the table]({stem}.png)"
        text = f"{heading}\n\n{models_markdown(costs)}\n{picture}"
        replace_block(arguments.docs, "models", text)
        write_models(arguments.docs.parent, costs, heading, stem)
    return 1 if any(cost.error for cost in costs) else 0


def run_demo(arguments: argparse.Namespace) -> int:
    """Trains and tests what is not done, then writes and prints the table."""
    from vimpac_ext.benchmarks.comparison import compare
    from vimpac_ext.benchmarks.comparison_report import publish, table_of, write_comparison
    from vimpac_ext.benchmarks.tables import require_block
    from vimpac_ext.command_line import start_logging

    _require_demo_arguments(arguments)
    if arguments.docs:
        require_block(arguments.docs, "rates" if arguments.rates else "demo")
    start_logging(arguments.output)
    if arguments.rates:
        from vimpac_ext.benchmarks.rates import rates_table, try_rates, write_rates

        trials = try_rates(DEMO_CONFIGS, arguments.output, arguments.rates_seed, arguments.rates)
        write_rates(arguments.output, trials, arguments.docs)
        print(f"\n{rates_table(trials)}\nwrote {arguments.output}/rates.csv")
        return 0
    rows = compare(DEMO_CONFIGS, arguments.output, arguments.seeds)
    write_comparison(arguments.output, rows)
    print(f"\n{table_of(rows)}\nwrote {arguments.output}/comparison.md, .csv and .png")
    if arguments.docs:
        publish(arguments.docs, rows)
    return 0


def _require_demo_arguments(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what would be found out after hours, or never."""
    for name in ("seeds", "rates"):
        values = getattr(arguments, name) or []
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} has a value twice: {' '.join(f'{v:g}' for v in values)}")
    if any(seed < 0 for seed in (*arguments.seeds, arguments.rates_seed)):
        raise ValueError("seeds must be at least 0")
    if any(not rate > 0 for rate in arguments.rates or ()):
        raise ValueError("learning rates (--rates) must be above 0")
    if arguments.rates and arguments.rates_seed in arguments.seeds:
        raise ValueError(
            f"--rates_seed {arguments.rates_seed} is one of --seeds: rates are tried on "
            "videos that no result is tested on"
        )
