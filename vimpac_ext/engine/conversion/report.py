"""What a conversion tells its user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimpac_ext.checkpoints import VimpacModel
from vimpac_ext.checkpoints.source import sha256_of_stream


@dataclass(frozen=True)
class ConversionReport:
    """What was found and written, line by line."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def describe_model(model: VimpacModel) -> list[str]:
    """Sizes and options of a model."""
    architecture = model.architecture
    kinds = {"classification": "fine-tuned", "token": "pre-trained", "contrast": "pre-trained"}
    kind = next((kinds[name] for name in kinds if name in architecture.heads), "backbone only")
    grid = " x ".join(map(str, architecture.grid))
    sections = {"backbone": architecture.backbone, **architecture.heads}
    num_parameters = sum(p.numel() for p in model.parameters())
    in_backbone = sum(p.numel() for p in model.backbone.parameters())
    return [
        f"  {kind}: clips of {grid} tokens, {architecture.vocab_size} codes"
        + (f", {architecture.num_classes} classes" if architecture.num_classes else ""),
        f"  {num_parameters:,} parameters, {in_backbone:,} of them in the backbone",
        *(f"  {name}: {_options(section)}" for name, section in sections.items()),
    ]


def describe_moments(moments: Mapping[str, Any]) -> str:
    """How much optimizer state there is."""
    return f"moments of {len(moments)} parameters" if moments else "none"


def describe_written(paths: Sequence[Path]) -> list[str]:
    """Names, sizes and check sums of files."""
    lines = []
    for path in paths:
        with path.open("rb") as file:
            sha256 = sha256_of_stream(file)
        lines += [f"wrote {path} ({path.stat().st_size:,} bytes)", f"  sha256 {sha256}"]
    return lines


def require_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Raises FileExistsError if one of the files is there and may not be replaced."""
    found = [str(path) for path in paths if path.exists()]
    if found and not overwrite:
        raise FileExistsError(f"{', '.join(found)} exists already; --overwrite replaces it")
    folders = [str(path) for path in paths if path.is_dir()]
    if folders:
        raise FileExistsError(f"{', '.join(folders)} is a folder; give the name of a file")


def _options(section: Mapping[str, Any]) -> str:
    arguments = (f"{key}={value}" for key, value in section.items() if key != "NAME")
    return f"{section['NAME']}({', '.join(arguments)})"
