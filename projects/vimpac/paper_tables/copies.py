"""Copy-paste recovery of hidden tokens, over many videos: the csv file and what it says."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from paper_tables.findings import NOISE, OPPOSITE, SHOWS
from paper_tables.measures import Line
from paper_tables.output import read_csv, write_csv
from paper_tables.resolved import grid_of
from paper_tables.spread import half_width, spread_of
from vimpac_ext.config import LoadedConfig
from vimpac_ext.engine.assembly import build_tokenizer, open_store
from vimpac_ext.engine.figures import VideoCopies

_SHARES = ("hidden", "space", "space_time", "commonest", "error_space", "error_space_time")
FIELDS = (
    *("video", "masker", "ratio", *_SHARES, "clips", "masks"),
    *("seed", "grid", "tokenizer", "command"),
)
WAYS = {"space": "in space", "space_time": "in space and time"}


def write_copies(
    path: Path,
    found: Iterable[VideoCopies],
    loaded: LoadedConfig,
    command: str,
    seed: int,
    stored: bool,
) -> None:
    """One line for each video, ratio and masker, with how they were made.

    Args:
        path: csv file, replaced.
        found: what was measured.
        loaded: the configuration that it was measured with.
        command: that gives it.
        seed: of the masks.
        stored: whether the tokens are those of TRAIN.TOKEN_STORE.
    """
    tokenizer = (
        open_store(loaded.cfg, "TRAIN").meta.tokenizer_fingerprint
        if stored
        else build_tokenizer(loaded.cfg).fingerprint
    )
    common = {
        "seed": seed,
        "grid": " x ".join(map(str, grid_of(loaded.cfg))),
        "tokenizer": tokenizer,
        "command": command,
    }
    lines = []
    for entry in found:
        line = {**asdict(entry), **common}
        lines.append(line | {k: f"{line[k]:.4f}" for k in _SHARES if line[k] is not None})
    write_csv(path, FIELDS, lines)


def read_copies(path: Path) -> list[Line]:
    """Lines of a file by `write_copies`.

    Raises:
        ValueError: if it is something else, or has no line.
    """
    lines = read_csv(path)
    if not lines or set(lines[0]) != set(FIELDS):
        raise ValueError(f"{path} is not a file of copy_paste.py, or has no video")
    return [{**line, "video": str(line["video"])} for line in lines]


def copies_markdown(lines: Sequence[Line]) -> str:
    """Means over the videos with their standard deviations, in percent, and the verdicts."""
    header = ["mask", "hidden (%)"]
    header += [f"{what}, {way} (%)" for way in WAYS.values() for what in ("right", "error")]
    rows = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    ratios = sorted({line["ratio"] for line in lines})
    for ratio in ratios:
        for masker in ("uniform", "block"):
            cells = [f"{masker}, {ratio:.0%}"]
            for name in ("hidden", "space", "error_space", "space_time", "error_space_time"):
                values = _by_video(lines, masker, ratio, name).values()
                spread = spread_of([100 * value for value in values])
                cells.append(spread.shown() if spread else "-")
            rows.append(f"| {' | '.join(cells)} |")
    common = statistics.fmean({line["video"]: line["commonest"] for line in lines}.values())
    text = "\n".join(rows)
    text += (
        '\n\n"Right" is the share of the hidden tokens whose copy is equal; the most frequent '
        f'token of a clip is {common:.1%} of it. "Error" is the squared error of the decoded '
        "picture where tokens are hidden, 100 % being that of one colour.\n\n"
    )
    return text + "".join(_verdicts(lines, ratio) for ratio in ratios)


def copies_section(path: Path) -> str:
    """The part of RESULTS.md about one file."""
    lines = read_copies(path)
    first = lines[0]
    videos = len({line["video"] for line in lines})
    return (
        f"## Figures 4 and 7: copy-paste recovery ({copies_name(path)})\n\n"
        f"`{first['command']}`; {videos} videos, {first['clips']} clips of each, "
        f"{first['masks']} masks of each kind on them; grid {first['grid']}, tokens of "
        f"{first['tokenizer']}. Mean ± standard deviation over the videos. "
        f"{_tokenizer_of(first)}\n\n"
        f"{copies_markdown(lines)}"
    )


def _tokenizer_of(line: Line) -> str:
    """A sentence on the tokenizer that ships with the package; nothing of another one."""
    if "configs/vimpac/demo/" not in line["command"] or "TOKENIZER" in line["command"]:
        return ""
    return "The tokenizer is the demo's, 64 codes trained on its sprites; the paper's has 8192."


def copies_name(path: Path) -> str:
    """What the tokens of a file are of, by its name."""
    return path.stem.removeprefix("copy_paste_").replace("_", " ")


def copies_summary(lines: Sequence[Line], name: str) -> str:
    """One sentence on the smallest ratio, copying in space (Appendix G.2)."""
    ratio = min(line["ratio"] for line in lines)
    tokens, errors = (
        [
            100 * statistics.fmean(values.values())
            for masker in ("uniform", "block")
            if (values := _by_video(lines, masker, ratio, column))
        ]
        for column in ("space", "error_space")
    )
    text = (
        f"Copy-paste recovery in space, {ratio:.0%} hidden ({name}): {tokens[0]:.1f} % of the "
        f"tokens are right under a uniform mask and {tokens[1]:.1f} % under a block mask"
    )
    if errors:
        text += f"; of the picture's error {errors[0]:.0f} % and {errors[1]:.0f} % are left"
    return f"{text}. {_tokenizer_of(lines[0])}".rstrip()


def _verdicts(lines: Sequence[Line], ratio: float) -> str:
    text = ""
    for name, way in WAYS.items():
        for prefix, claim, sign in (
            ("", "has more tokens right", 1),
            ("error_", "gives a better picture", -1),
        ):
            uniform, block = (
                _by_video(lines, masker, ratio, prefix + name) for masker in ("uniform", "block")
            )
            if not uniform:
                continue
            differences = [100 * (uniform[video] - block[video]) for video in uniform]
            mean, width = statistics.fmean(differences), half_width(differences)
            better = NOISE if abs(mean) <= width else SHOWS if sign * mean > 0 else OPPOSITE
            count = sum(sign * difference > 0 for difference in differences)
            text += (
                f"- Under a uniform mask of {ratio:.0%} the copy {way} {claim} than under a block "
                f"mask. **{better}**: difference {mean:+.1f} ± {width:.1f} points (95 %), in "
                f"{count} of {len(differences)} videos.\n"
            )
    return text


def _by_video(lines: Sequence[Line], masker: str, ratio: float, name: str) -> dict[str, float]:
    return {
        line["video"]: float(line[name])
        for line in lines
        if line["masker"] == masker and line["ratio"] == ratio and line[name] != ""
    }
