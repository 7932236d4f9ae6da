"""Stages: commands with folders of their own, and which of them a row needs."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from paper_tables.spec import Row


@dataclass(frozen=True)
class Stage:
    """One command with a folder of its own.

    Attributes:
        kind: "data", "tokens", "pretrain", "heldout", "finetune", "probe" or "speed".
        key: hash of all that decides its result.
        folder: where it works; results appear here.
        command: words of the command line.
        needs: stages that must be done before.
        produced: what it makes; a token store that is there already and was not begun here is taken
            as it is. Empty = only the stage's own record counts.
        device: "cpu" or "cuda", where it runs.
    """

    kind: str
    key: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple["Stage", ...] = ()
    produced: str = ""
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Kind and key: the name of its folder."""
        return f"{self.kind}-{self.key}"


@dataclass(frozen=True)
class RowPlan:
    """The stages of one row with one seed.

    Attributes:
        row: what is run.
        seed: of everything random.
        pretrain: stages of pre-training, in order.
        heldout: losses of the pre-trained model on held-out videos.
        finetune: target -> stage: its fine-tuning, or the probe of frozen features.
    """

    row: Row
    seed: int
    pretrain: tuple[Stage, ...] = ()
    heldout: Stage | None = None
    finetune: dict[str, Stage] = field(default_factory=dict)

    @property
    def stages(self) -> list[Stage]:
        """All stages, each after what it needs."""
        ends = [*self.pretrain, *([self.heldout] if self.heldout else []), *self.finetune.values()]
        ordered: dict[str, Stage] = {}
        for stage in ends:
            _append(ordered, stage)
        return list(ordered.values())


def _append(ordered: dict[str, Stage], stage: Stage) -> None:
    for needed in stage.needs:
        _append(ordered, needed)
    ordered.setdefault(stage.name, stage)


def shown(command: tuple[str, ...]) -> str:
    """A command as one types it."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(words)
