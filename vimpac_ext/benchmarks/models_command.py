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
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_models"))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--batch_size", type=int, help="videos; default: 8 on a GPU, 2 on a CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="a number (default: 5)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="", help="default: the config's"
    )
    parser.add_argument(
        "--accuracy",
        type=Path,
        metavar="CSV",
        help="columns name,top1 (percent); default: what a config's own test has given, if run",
    )
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    parser.add_argument("--docs", type=Path, metavar="MD", help="also put the table into this file")
    parser.set_defaults(run=run_models)


def add_demo(subcommands: Any) -> None:
    """Adds ``demo``."""
    parser = subcommands.add_parser(
        "demo", help="train and test five models on the demo's videos under one protocol"
    )
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        help="instead, try these learning rates for every model, on the videos of --rates_seed",
    )
    parser.add_argument("--rates_seed", type=int, default=100, help="default: 100")
    parser.add_argument("--docs", type=Path, metavar="MD", help="also put the table into this file")
    parser.set_defaults(run=run_demo)


def run_models(arguments: argparse.Namespace) -> int:
    """Measures, writes and prints; returns 1 if a model could not be measured."""
    import torch

    from vimpac_ext.benchmarks.models import MeasureOptions, measure_models, names_of
    from vimpac_ext.benchmarks.models_report import accuracies_of, models_markdown, write_models
    from vimpac_ext.benchmarks.result import machine
    from vimpac_ext.benchmarks.tables import replace_block

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
    print(f"\n{models_markdown(costs)}\nwrote {arguments.output}/models.md, .csv and .png")
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
    from vimpac_ext.command_line import start_logging

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
