"""Learning rates for the comparison: every model gets the same trials, on videos of their own."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vimpac_ext.benchmarks.comparison import (
    TITLES,
    Row,
    once,
    overrides_of,
    prepare_seed,
    require_same_settings,
)
from vimpac_ext.benchmarks.tables import markdown_table, number, replace_block, write_csv
from vimpac_ext.data.synthetic import make_demo_data
from vimpac_ext.engine import prepare, run


def try_rates(
    configs: Path,
    output: Path,
    seed: int,
    rates: Sequence[float],
    make_data: Callable = make_demo_data,
) -> list[Row]:
    """Trains and tests every model at every rate; what is done is not done again.

    Args:
        configs: as for `vimpac_ext.benchmarks.comparison.compare`.
        output: the same.
        seed: of the videos; take one that the comparison does not test on.
        rates: values of SOLVER.BASE_LR.
        make_data: as for `compare`.

    Returns:
        One row for each model and rate: "model", "title", "seed", "rate", "top1" (percent),
        "seconds" and "shipped" (the rate of the model's configuration).
    """
    folder = output / f"seed_{seed}"
    shipped, clock = prepare_seed(configs, folder, seed, make_data)
    rows = []
    for name, title in TITLES.items():
        for rate in rates:
            stage = f"{name}_lr_{rate:g}"
            overrides = overrides_of(name, folder, seed)
            overrides += ["SOLVER.BASE_LR", f"{rate:g}", "OUTPUT_DIR", str(folder / stage)]
            loaded = prepare(configs / f"{name}.yaml", overrides)
            require_same_settings(folder, {stage: loaded})
            once(folder, clock, stage, partial(run, loaded))
            result = json.loads((folder / stage / "test" / "result.json").read_text())
            rows.append(
                {
                    "model": name,
                    "title": title,
                    "seed": seed,
                    "rate": rate,
                    "top1": result["top1"],
                    "seconds": clock.seconds[stage],
                    "shipped": shipped[name].cfg.SOLVER.BASE_LR,
                }
            )
    return rows


def rates_table(rows: Sequence[Row]) -> str:
    """Top-1 of every model at every rate, the best in bold, and the rate that is shipped."""
    rates = sorted({row["rate"] for row in rows})
    lines = []
    for title in dict.fromkeys(row["title"] for row in rows):
        found = {row["rate"]: row["top1"] for row in rows if row["title"] == title}
        best = max(found.values())
        cells = [f"**{number(v)}**" if v == best else number(v) for v in map(found.get, rates)]
        [shipped] = {row["shipped"] for row in rows if row["title"] == title}
        lines.append([title, *cells, f"{shipped:g}"])
    return markdown_table(["top-1 % at the rate", *(f"{r:g}" for r in rates), "used"], lines)


def write_rates(folder: Path, rows: Sequence[Row], document: Path | None) -> None:
    """Writes ``rates.csv``, and puts the table into a document, if there is one."""
    write_csv(folder / "rates.csv", rows)
    if document:
        write_csv(document.parent / f"{document.stem}_rates.csv", rows)
        replace_block(document, "rates", rates_table(rows))
