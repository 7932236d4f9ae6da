"""Scalars and pictures of a run for Weights & Biases, if asked for."""

import importlib.util
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from vimpac_ext.config import ConfigError
from vimpac_ext.files import atomic_write
from vimpac_ext.visualization.sheet import Image

_ID_FILE = "wandb_id"


@dataclass(frozen=True)
class WandbOptions:
    """Where a run is shown.

    Attributes:
        project: receives the run.
        entity: user or team; "" = the default one.
        name: of the run; "" = the service finds one.
        mode: "online" or "offline".
        config: nested keys and values to show with it.
    """

    project: str
    entity: str = ""
    name: str = ""
    mode: str = "online"
    config: Mapping[str, Any] = field(default_factory=dict)


def wandb_options(cfg: CfgNode) -> WandbOptions | None:
    """What the configuration asks for, or None.

    Raises:
        ConfigError: if it is asked for and not installed.
    """
    options = cfg.WANDB
    if not options.ENABLE:
        return None
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "WANDB.ENABLE is True, but the package wandb is not installed: pip install "
            "'vimpac_ext[wandb]', or set WANDB.ENABLE False"
        )
    return WandbOptions(
        options.PROJECT, options.ENTITY, options.RUN_NAME, options.MODE, _plain(cfg)
    )


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, Mapping) else v for k, v in node.items()}


class WandbLog:
    """One run of the service, continued if the run in ``folder`` is.

    The parameter updates are its horizontal axis, not the service's own step counter, which cannot
    go back to where a killed run left its last checkpoint.

    Args:
        folder: OUTPUT_DIR; remembers the run's id.
        options: where it is shown.
        is_new: whether a training begins here; else the id of the folder is used, if there is one.
    """

    def __init__(self, folder: Path, options: WandbOptions, is_new: bool) -> None:
        import wandb

        id_file = folder / _ID_FILE
        if is_new or not id_file.is_file():
            with atomic_write(id_file) as file:
                file.write(secrets.token_hex(8))
        self._image = wandb.Image
        self._run = wandb.init(
            project=options.project,
            entity=options.entity or None,
            name=options.name or None,
            mode=options.mode,
            config=dict(options.config),
            dir=str(folder),
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
        )
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def write(self, kind: str, update: int, scalars: Mapping[str, Any]) -> None:
        """Sends numbers; texts are left out."""
        numbers = {
            f"{kind}/{name}": value
            for name, value in scalars.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self._run.log({"update": update, **numbers})

    def write_image(self, tag: str, update: int, image: Image) -> None:
        """Sends a picture, uint8 (H, W, 3)."""
        self._run.log({"update": update, tag: self._image(image)})

    def close(self, failed: bool = False) -> None:
        """Ends the run; the service shows it as failed or finished."""
        self._run.finish(exit_code=1 if failed else 0)
