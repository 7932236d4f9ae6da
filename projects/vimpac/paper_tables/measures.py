"""Reads what the stages of a row left in their folders."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paper_tables.heldout import FILE as HELDOUT
from paper_tables.plan import Planner
from paper_tables.probing import FILE as PROBE_FILE
from paper_tables.resolved import resolve
from paper_tables.runner import FAILURE, RECORD
from paper_tables.spec import Row, Table
from paper_tables.stages import RowPlan
from vimpac_ext.engine.assembly import build_task

Line = dict[str, Any]  # one row with one seed

DONE, FAILED, NOT_RUN = "done", "failed", "not run"
# Kind of the stage that gives a target's accuracy -> its file with "top1".
_RESULTS = {"finetune": Path("test", "result.json"), "probe": Path(PROBE_FILE)}


def stage_names(plan: RowPlan) -> dict[str, str]:
    """Role -> folder of the stages that a row's numbers come from."""
    names = {f"pretrain {i}": stage.name for i, stage in enumerate(plan.pretrain, start=1)}
    if plan.heldout:
        names["heldout"] = plan.heldout.name
    return names | {f"{end.kind}:{name}": end.name for name, end in plan.finetune.items()}


def measure(root: Path, stages: Mapping[str, str]) -> Line:
    """Numbers of a row with one seed, from its stages' folders below ``root``.

    Returns:
        "status" and "reason", and as far as they are there "mask_accuracy" (percent),
        "contrast_loss", "top1:<target>" (percent), "test_videos", "updates" and
        "updates_per_second" of pre-training (the last stage's, median), "seconds" (by the clock)
        and "cpu_seconds" of all these stages, "load" (largest load average of the machine),
        "stage_seconds" (of each stage, as JSON), "hardware" and "code" (commits). "cpu_seconds" and
        "load" are absent if one of the records does not have them.
    """
    line: Line = {"status": DONE, "reason": ""}
    records: dict[str, dict[str, Any]] = {}
    for name in stages.values():
        record = root / name / RECORD
        if record.is_file():
            records[name] = _read(record)
        elif line["status"] != FAILED:
            reason = _failure(root / name)
            line |= {"status": FAILED if reason else NOT_RUN, "reason": reason}
    found = list(records.values())
    line["seconds"] = round(sum(record["seconds"] for record in found), 1)
    seconds = {name: record["seconds"] for name, record in records.items()}
    line["stage_seconds"] = json.dumps(seconds)
    if found and all("load" in record for record in found):
        line["cpu_seconds"] = round(sum(record["cpu_seconds"] for record in found), 1)
        line["load"] = max(record["load"] for record in found)
    line["hardware"] = "; ".join(sorted({record["hardware"] for record in found}))
    line["code"] = "; ".join(sorted({record["code"] for record in found if record.get("code")}))
    if "heldout" in stages:
        heldout = _read(root / stages["heldout"] / HELDOUT)
        line |= {k: heldout[k] for k in ("mask_accuracy", "contrast_loss") if k in heldout}
        last = [name for role, name in stages.items() if role.startswith("pretrain")][-1]
        line |= _training(root / last / "metrics.jsonl")
    for role, name in stages.items():
        kind, _, target = role.partition(":")
        result = _read(root / name / _RESULTS[kind]) if kind in _RESULTS else {}
        if result:
            line[f"top1:{target}"] = result["top1"]
            scored = result["protocol"].get("scored_videos")
            line["test_videos"] = result["test_videos"] if scored is None else scored
    return line


def backbone_parameters(planner: Planner, row: Row) -> float:
    """Millions of parameters, token embedding included, heads not: the paper's "Params".

    Raises:
        ValueError: if the row's configuration is wrong.
    """
    if row.pretrain:
        cfg = resolve(row.pretrain[-1], planner.pretrain_overrides(row))
    else:
        target = row.targets[0]
        cfg = resolve(target.config, planner.finetune_overrides(target.overrides))
    with torch.device("meta"):
        backbone = build_task(cfg).backbone
    return round(sum(parameter.numel() for parameter in backbone.parameters()) / 1e6, 3)


def line_fields(table: Table) -> list[str]:
    """Columns of a table's runs, one line for each row and seed."""
    shown = [column for column in table.columns if column != "speed"]
    # Measured for every row that is pre-trained, whether the paper's table shows them or not.
    own = dict.fromkeys([*shown, "mask_accuracy", "contrast_loss"])
    return [
        *("row", "seed", "status", "reason", *own, "updates", "updates_per_second"),
        *("seconds", "cpu_seconds", "load", "test_videos", "hardware", "code", "settings", "note"),
        *("stages", "stage_seconds"),
    ]


def _failure(folder: Path) -> str:
    path = folder / FAILURE
    return str(_read(path)["reason"]) if path.is_file() else ""


def _training(path: Path) -> Line:
    """Updates and speed of a training run."""
    if not path.is_file():
        return {}
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = [entry for entry in entries if entry["_type"] == "train_iter"]
    if not steps:
        return {}
    seconds = statistics.median(step["dt"] for step in steps)
    return {"updates": steps[-1]["update"], "updates_per_second": float(f"{1 / seconds:.3g}")}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
