"""One run: configuration -> checks -> training -> test."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from vimpac_ext.config import (
    LoadedConfig,
    check_folders,
    folders_of,
    last_stage,
    load_config,
    stages_of,
    validate,
)
from vimpac_ext.engine.assembly import build_task, check_components
from vimpac_ext.engine.checkpoint import find_checkpoint, load_model
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.distributed import from_main, is_main
from vimpac_ext.engine.environment import write_config
from vimpac_ext.engine.events import open_events
from vimpac_ext.engine.features import AS_BUILT
from vimpac_ext.engine.knn_monitor import evaluate_knn
from vimpac_ext.engine.remote import fetch_remote_run, local_config, mirror_of
from vimpac_ext.engine.requirements import require_inputs
from vimpac_ext.engine.stages import begin, train_stages
from vimpac_ext.engine.tester import Tester
from vimpac_ext.engine.wandb_log import wandb_options
from vimpac_ext.files import is_remote
from vimpac_ext.plugins import import_builtin_components, import_plugins

_logger = logging.getLogger(__name__)


def prepare(
    path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()
) -> LoadedConfig:
    """Reads and checks a configuration; nothing is written and no data is read.

    Args:
        path: YAML file; a remote one is copied first.
        overrides: alternating keys and values.
        plugins: modules to import besides the config's PLUGINS.

    Raises:
        ConfigError: for a wrong key or value.
        BuildError: for a wrong component section.
        PluginError: for a plug-in that cannot be imported.
    """
    if isinstance(path, str) and is_remote(path):
        import_plugins(plugins)  # one may bring what reads such a URL
        path = local_config(path)
    loaded = load_config(path, overrides)
    cfg = loaded.cfg.clone()
    cfg.defrost()
    # The saved config and the checkpoints say which plug-ins were needed.
    cfg.PLUGINS = list(dict.fromkeys([*cfg.PLUGINS, *plugins]))
    cfg.freeze()
    loaded = replace(loaded, cfg=cfg)
    check_folders(loaded)
    stages = stages_of(loaded)
    for stage in stages:
        validate(stage)
    import_builtin_components()
    import_plugins(cfg.PLUGINS)
    for stage in stages:
        check_components(stage)
    return loaded


def run(loaded: LoadedConfig, local_rank: int = 0) -> dict[str, Any]:
    """Trains and tests as the configuration says (TRAIN.ENABLE, TEST.ENABLE, KNN.ENABLE).

    With a process group, every process calls this; the main one writes.

    Args:
        loaded: from `prepare`.
        local_rank: counts the processes of this machine; decides the GPU.

    Returns:
        The test result as written to ``result.json``, or an empty dictionary without a test; and
        "knn", if there was a k-NN evaluation without a training.

    Raises:
        MissingInputError: listing everything that the run needs and does not find.
        ConfigError: if it asks for a package that is not installed.
        OSError: REMOTE_DIR cannot be read at the start, or written at the end.
    """
    cfg = last_stage(loaded).cfg
    device = device_of(cfg, local_rank)
    if is_main():
        fetch_remote_run(loaded.cfg)
    from_main(None)  # waits for it
    require_inputs(loaded)
    wandb_options(cfg)  # says so now if the package is missing
    folder = Path(cfg.OUTPUT_DIR)
    update = 0
    if cfg.TRAIN.ENABLE:
        task, update, tester = train_stages(loaded, device)
    else:
        tester = begin(cfg, device)
        task = build_task(cfg).to(device) if tester is not None else None
    result = {} if tester is None else _test(cfg, task, tester, update, device)
    if cfg.KNN.ENABLE and not cfg.TRAIN.ENABLE and is_main():
        result = {**result, "knn": evaluate_knn(cfg, device, folder / "knn")}
    _copy_output(loaded.cfg)
    return result


def _test(
    cfg: CfgNode, task: Any, tester: Tester, update: int, device: torch.device
) -> dict[str, Any]:
    """Loads the checkpoint to test, unless it is the model just trained, and tests."""
    folder = Path(cfg.OUTPUT_DIR)
    wanted = cfg.TEST.CHECKPOINT_FILE_PATH
    if wanted != AS_BUILT and (wanted or not cfg.TRAIN.ENABLE):
        path = find_checkpoint(wanted or folder)
        update = load_model(path, task, tester.facts)
        _logger.info("testing %s", path)
    result = tester.report(task, folder / "test")
    if is_main():  # of a test without a training, too, and where that had another configuration
        write_config(folder / "test", cfg, device)
    with open_events(folder, cfg.TENSORBOARD, wandb=wandb_options(cfg)) as events:
        accuracies = {f"{name}_acc": f"{result[name]:.2f}" for name in ("top1", "top5")}
        protocol = {"split": "test_final", "protocol_id": result["protocol_id"]}
        events.write("test_final", update, {**protocol, **accuracies})
    return result


def _copy_output(cfg: CfgNode) -> None:
    mirror = mirror_of(cfg)
    if mirror is not None and is_main():
        mirror.push(cfg.TRAIN.KEEP_CHECKPOINTS, folders_of(cfg)[-1])
